"""Measures against formulas written out anew, and intervals against simulated truth."""
import math
import numpy as np, pytest, torch
from sklearn.metrics import r2_score

from saebook import metrics, sites
from saebook.codes import SparseCode, pack
from saebook.core import BadInput

def covers(k, trials=500, n=300):
    "Texts of unequal length, tokens with much in common; how many 95 % intervals hold the truth?"
    hits = 0
    for t in range(trials):
        r = np.random.default_rng(10_000 + t)
        size = r.integers(2, 60, k)
        sums = size*r.normal(size=k) + r.normal(size=k)*size**.5
        lo, hi = metrics.bootstrap(lambda w: w @ sums / (w @ size), np.arange(k), n=n, seed=t)
        hits += lo <= 0 <= hi
    return hits/trials

@pytest.mark.parametrize('k', [60, 100])
def test_intervals_hold_the_truth(k): assert .92 <= covers(k) <= .98

def test_few_texts_give_intervals_too_narrow(): assert covers(5) < .88

def test_intervals_of_reconstruction_hold_the_truth():
    "FVU under errors that whole texts share: the truth is the ratio of the variances."
    hits, trials, d = 0, 200, 4
    for t in range(trials):
        g = torch.Generator().manual_seed(t)
        size = torch.randint(5, 30, (60,), generator=g)
        text = torch.repeat_interleave(torch.arange(60), size)
        x = torch.randn(len(text), d, generator=g)
        err = (.3*torch.randn(60, d, generator=g))[text] + .4*torch.randn(len(text), d, generator=g)
        row = metrics.reconstruction(x, x + err, groups=text.numpy(), n=200, seed=t).loc['FVU']
        hits += row.low <= .25 <= row.high
    assert .9 <= hits/trials <= .99

def test_reconstruction_by_hand():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=g)*torch.arange(1, 7) + 40 # far from zero
    y = x + .3*torch.randn(300, 6, generator=g) + 1
    code = pack(torch.randn(300, 20, generator=g).relu()*(torch.arange(20) < 15))
    t = metrics.reconstruction(x, y, code)
    a, e = x.double(), (x - y).double()
    assert t.value['FVU'] == pytest.approx(metrics.fvu(x, y), abs=1e-9) == pytest.approx(1 - r2_score(a, y.double(), multioutput='variance_weighted'), abs=1e-9)
    assert t.value['explained variance'] == pytest.approx(1 - (e.var(0).sum()/a.var(0).sum()).item(), abs=1e-9)
    assert t.value['cosine'] == pytest.approx(torch.cosine_similarity(a, y.double()).mean().item(), abs=1e-9)
    assert t.value['norm ratio'] == pytest.approx((y.double().norm(dim=1)/a.norm(dim=1)).mean().item(), abs=1e-9)
    assert t.value['L0'] == metrics.mean_l0(code) and t.value['dead'] == .25 and t.low.isna().all()

def test_reconstruction_of_odd_input():
    x = torch.randn(10, 3)
    for bad, match in (((x, x[:, :2]), 'both are'), ((x[0], x[0]), 'both are'), ((torch.ones(5, 3),)*2, 'all equal')):
        with pytest.raises(BadInput, match=match): metrics.reconstruction(*bad)
    with pytest.raises(BadInput, match='9 names'): metrics.reconstruction(x, x, groups=range(9))
    with pytest.raises(BadInput, match='a code of 1 tokens'): metrics.reconstruction(x, x, pack(torch.ones(1, 4)))
    for bad in ((x, x*math.nan), (x[:0], x[:0])):
        with pytest.raises(BadInput, match='NaN or infinity, or none at all'): metrics.reconstruction(*bad)
    x[0] = 0 # a token without a direction
    assert metrics.reconstruction(x, x).value[['FVU', 'cosine', 'norm ratio']].tolist() == pytest.approx([0, 1, 1])
    assert metrics.reconstruction(x.bfloat16(), x.bfloat16(), groups=['a']*5 + ['b']*5).low.notna().all()

def test_kl_is_that_of_the_logits(shared):
    model, tok = sites.load_model(shared('models/stories260K'))
    b = sites.tokenize(tok, ['Once upon a time there was a cat', 'The dog'], side='right')
    use, at = b['attention_mask'] > 0, sites.site(model, 1)
    out = metrics.loss_recovered(model, [(b, use)], at, lambda h: .7*h, torch.zeros(64))
    clean = model(**b).logits
    with sites.patch(model, {at: lambda h: torch.where(use[..., None], .7*h, h)}): changed = model(**b).logits
    p, q = (l[:, :-1].log_softmax(-1).double() for l in (clean, changed))
    seen = (use[:, 1:] & use[:, :-1]).double()
    assert out.kl('sae') == pytest.approx((((p.exp()*(p - q)).sum(-1)*seen).sum()/seen.sum()).item(), rel=1e-4)
    assert out.kl('clean') == 0 and 0 < out.against('zero', what='kl') < 1 and out.kls['sae'].shape == (2,)
    with pytest.raises(BadInput, match="called 'n'"): metrics.loss_recovered(model, [(b, use)], at, dict(n=lambda h: h), torch.zeros(64))
    assert len(out.interval(['a', 'b'], what='kl', n=20)) == 2

def test_matched_cosines_beat_any_greedy_pairing():
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(12, 5, generator=g), torch.randn(9, 5, generator=g)
    c, pairs = metrics.matched_cosines(A, B)
    assert len(c) == 9 and len(set(pairs[:, 1].tolist())) == 9 and (c.diff() <= 0).all()
    cos = torch.nn.functional.normalize(A, dim=1) @ torch.nn.functional.normalize(B, dim=1).T
    assert torch.allclose(cos[pairs[:, 0], pairs[:, 1]], c, atol=1e-6) and torch.allclose(metrics.max_cosines(B, A), cos.amax(0), atol=1e-6)
    left, greedy = cos.clone(), 0.
    for _ in range(9):
        k = int(left.argmax()); greedy += left.flatten()[k].item(); left[k//9] = -9; left[:, k % 9] = -9
    assert c.sum() >= greedy - 1e-5
    with pytest.raises(BadInput, match='of one site'): metrics.max_cosines(A, B[:, :4])

def test_split_features_by_brute_force():
    "The first feature is the one of the best F1, among all."
    g = torch.Generator().manual_seed(0)
    x = torch.rand(400, 12, generator=g) < .3
    label = (x[:, 3] | x[:, 7]) ^ (torch.rand(400, generator=g) < .05)
    code = pack(x.float())
    f1 = lambda on: 2*(on & label).sum().item()/(on.sum() + label.sum()).item()
    found = metrics.split_features(code, label)
    assert f1(x[:, found[0]]) == max(f1(x[:, j]) for j in range(12)) and set(found) == {3, 7}
    assert len(metrics.split_features(code, label, gain=0)) < 10 # none that adds nothing
    with pytest.raises(BadInput, match='of both kinds'): metrics.split_features(code, torch.ones(400))

def test_a_concept_without_absorbers_is_not_absorbed():
    code = SparseCode(torch.tensor([[1.], [0.], [2.]]), torch.tensor([[0], [1], [1]]), 2)
    W = torch.eye(2)
    assert metrics.absorption(code, W, [True, True, True], torch.tensor([1., 0]), [0]) == dict(full=0, fraction=0, by={})
    with pytest.raises(BadInput, match='0 of 3 labels are true'): metrics.absorption(code, W, [False]*3, W[0], [0])

@pytest.mark.parametrize('f', [metrics.gini, metrics.hoyer, metrics.entropy, metrics.participation_ratio])
def test_complexity_of_nothing_is_nan(f):
    assert f(torch.zeros(2, 5)).isnan().all() and f(torch.rand(2, 3, 5)).shape == (2, 3)

def test_gini_by_its_definition():
    v = torch.rand(40, dtype=torch.float64)
    assert metrics.gini(v).item() == pytest.approx((v[:, None] - v).abs().mean().item()/(2*v.mean().item()))

def test_a_histogram_counts_every_feature_once():
    code = pack(torch.rand(1000, 50, generator=torch.Generator().manual_seed(0)).sub(torch.linspace(.5, 1.2, 50)).relu())
    h = metrics.firing_histogram(code)
    assert h.features.sum() == 50 and h.features.iloc[0] == (metrics.firing_counts(code) == 0).sum() and (h.high.iloc[-1], h.low.iloc[1]) == (1, pytest.approx(1e-3))

def test_a_word_that_is_ruled_out_costs_nothing():
    a = torch.tensor([[0., 1., -math.inf]]); b = torch.tensor([[1., 0., -math.inf]])
    assert metrics._divergence(a, a).item() == 0 and 0 < metrics._divergence(a, b).item() < 1
