"Following a training: measures against closed forms, checkpoints of every kind, answers that are asked alone, three seeds that grok."
import math, signal, subprocess, sys, os, time
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from torch import nn
from safetensors.torch import save_file

from saebook import cache, generalise as g, lm, metrics, sites
from saebook.core import BadInput
from saebook.sites import Site
from saebook.world import World

# --- measures

@pytest.mark.parametrize('n', [2, 7, 100])
def test_concentration_at_both_ends(n):
    one, equal = 5*torch.eye(n)[n//2], torch.full((n,), -.3)
    assert metrics.gini(one).item() == pytest.approx(1 - 1/n) and metrics.gini(equal).item() == pytest.approx(0, abs=1e-12)
    assert metrics.hoyer(one).item() == pytest.approx(1) and metrics.hoyer(equal).item() == pytest.approx(0, abs=1e-12)
    assert metrics.participation_ratio(one).item() == pytest.approx(1) and metrics.participation_ratio(equal).item() == pytest.approx(n)
    assert metrics.entropy(one).item() == pytest.approx(0) and metrics.entropy(equal).item() == pytest.approx(math.log(n))

def test_concentration_does_not_depend_on_scale_or_order_and_gini_is_that_of_all_pairs():
    v = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for f in (metrics.gini, metrics.hoyer, metrics.entropy, metrics.participation_ratio):
        for other in (1e-8*v, -1e8*v, v.flip(1), torch.cat([v, v], 0)[:3]): torch.testing.assert_close(f(other), f(v))
    a = v.abs()
    pairs = (a[:, :, None] - a[:, None]).abs().mean((1, 2))/(2*a.mean(1))
    torch.testing.assert_close(metrics.gini(v), pairs)
    half = torch.cat([torch.ones(10), torch.zeros(30)]) # ten of forty share equally
    assert metrics.participation_ratio(half).item() == pytest.approx(10) and metrics.gini(half).item() == pytest.approx(.75)
    assert metrics.hoyer(half).item() == pytest.approx((40**.5 - 10**.5)/(40**.5 - 1))

def test_effective_rank_of_equal_singular_values_is_their_number():
    Q = torch.linalg.qr(torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    assert metrics.effective_rank(Q @ torch.diag(torch.tensor([2., 2, 2, 0, 0, 0], dtype=torch.float64))).item() == pytest.approx(3)

def test_matched_cosines_of_a_permuted_dictionary_are_1():
    gen = torch.Generator().manual_seed(0)
    D = torch.randn(40, 20, generator=gen); perm = torch.randperm(40, generator=gen)
    c, pairs = metrics.matched_cosines(D, D[perm]*torch.rand(40, 1, generator=gen))
    assert c.min() == pytest.approx(1, abs=1e-5) and (perm[pairs[:, 1]] == pairs[:, 0]).all()

def test_moments_and_norms_by_other_formulas():
    from scipy.stats import kurtosis, skew
    h = torch.randn(500, 7, generator=torch.Generator().manual_seed(0))**3
    r = h.double().norm(dim=1).numpy(); m = g.norm_moments(h)
    assert [m[k] for k in ('mean', 'variance', 'skew', 'kurtosis')] == pytest.approx([r.mean(), r.var(), skew(r), kurtosis(r)])
    net = nn.Linear(3, 4); w = dict(net.named_parameters())
    assert g.parameter_norm(w) == pytest.approx(torch.nn.utils.parameters_to_vector(net.parameters()).norm().item())
    assert list(g.spectra(w)) == ['weight'] and g.numerical_rank(torch.tensor([1., .5, .009, 0])) == 2 and g.numerical_rank(torch.zeros(3)) == 0

def test_davies_bouldin_by_hand_and_mix_up_within_classes_only():
    gen = torch.Generator().manual_seed(0)
    h, y = torch.randn(90, 5, generator=gen) + 3*torch.eye(5)[torch.arange(90) % 3], torch.arange(90) % 3
    mu = torch.stack([h[y == c].mean(0) for c in range(3)]); s = torch.stack([(h[y == c] - mu[c]).norm(dim=1).mean() for c in range(3)])
    R = (s[:, None] + s)/(torch.cdist(mu, mu) + torch.eye(3)*1e9)
    assert g.davies_bouldin(h, y) == pytest.approx(R.max(1).values.mean().item(), rel=1e-4)
    class Sign(nn.Module):
        def forward(self, x): return torch.cat([x, -x], 1)
    x, y = torch.tensor([[1.], [2], [3], [-1], [-2], [9]]), torch.tensor([0, 0, 0, 1, 1, 2])
    assert g.mixup_accuracy(Sign(), x, y) == 1 # the row alone in class 2, which would be wrong, is left out
    with pytest.raises(BadInput, match='two rows'): g.mixup_accuracy(Sign(), x[:1], y[:1])

def test_a_mixture_inside_is_made_inside():
    "Mixed at the embedding, a linear model says the mean of what it says of both."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3))
    x, y = torch.randint(0, 10, (2, 2)), torch.tensor([1, 1])
    want = (net(x).mean(0).argmax() == 1).item()
    assert g.mixup_accuracy(net, x, y, Site('0')) == want
    with pytest.raises(BadInput, match='tokens cannot be'): g.mixup_accuracy(net, x, y)

# --- checkpoints and data

def net(): return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
def some(n=3):
    out = {}
    for i in range(n):
        torch.manual_seed(i); out[10*i] = {k: v.clone() for k, v in net().state_dict().items()}
    return out
data = dict(train=(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3))

def test_weights_from_memory_and_files_and_folders_say_the_same(tmp_path):
    states = some(); want = g.track(net, states, data, site=Site('1'))
    for k, s in states.items(): save_file(s, tmp_path/f'step-{k:03}.safetensors'); torch.save(s, tmp_path.parent/f'm{k}.pt')
    files = [tmp_path/f'step-{k:03}.safetensors' for k in (20, 0, 10)]
    for given in (files, tmp_path, {k: tmp_path.parent/f'm{k}.pt' for k in states}): pd.testing.assert_frame_equal(g.track(net, given, data, site=Site('1')), want)
    assert want.step.unique().tolist() == [0, 10, 20] and want[want.measure == 'weight_change'].value.iloc[0] == 0
    late = g.track(net, {20: states[20]}, data, 'weight_change', start=states[0])
    assert late.value.item() == want[(want.measure == 'weight_change') & (want.step == 20)].value.item()

def test_states_that_were_not_copied_are_told():
    m, states = net(), {}
    for i in range(3): states[i] = m.state_dict(); m[0].weight.data += 1
    with pytest.raises(BadInput, match='very same weights'): g.track(net, states, data)

@pytest.mark.parametrize('kw,match', [(dict(checkpoints={}), 'no checkpoints'), (dict(checkpoints={'a': {}}), 'numbers of steps'), (dict(data=3), 'give a dict'), (dict(data=dict(train=torch.ones(3, 2))), 'without classes'),
    (dict(measures=['pgdl']), 'without a site'), (dict(checkpoints=['no/such-7']), 'is not there'), (dict(checkpoints=[Path('a-1'), Path('b-1')]), 'the same step'), (dict(model_factory=None), 'without a model')])
def test_mistakes_are_told_in_a_sentence(kw, match):
    with pytest.raises(BadInput, match=match): g.track(**dict(dict(model_factory=net, checkpoints=some(), data=data), **kw))

def test_a_file_that_is_no_weights(tmp_path):
    (tmp_path/'step-1.safetensors').write_bytes(b'not at all'); (tmp_path/'step-2.pt').write_bytes(b'neither')
    for f in tmp_path.iterdir():
        with pytest.raises(BadInput, match='could not be read'): g.track(net, [f], data)

def test_the_models_that_a_training_kept_are_followed(tmp_path):
    "Language models: the loss is that of `lm.validation_loss`, and tokens that only fill a row count nowhere."
    world = World(0); tok = world.tokenizer()
    learn, judge = lm.split_documents(world.documents(200, 'train').text.tolist(), .1)
    r = lm.train_lm(lm.new_lm(tok, 32, 1, 2, 32), learn, lm.LMConfig(steps=20, batch=8, context=32, sample=0, valid_every=10), tok, judge, tmp_path, keep=10, progress=False)
    at = sites.site(r.model, 0, 'mlp')
    f = g.track(None, tmp_path, dict(test=r.valid), site=at)
    assert f.step.unique().tolist() == [10, 20] and set(f.measure) >= {'loss', 'accuracy', 'gini', 'norm: skew', 'weight_rank'} and not set(f.measure) & {'pgdl', 'davies_bouldin'}
    m = f.pivot_table(index=['side', 'measure'], columns='step', values='value')
    assert m.loc['test', 'loss'][20] == pytest.approx(lm.validation_loss(r.model, r.valid), abs=1e-4) and m.loc['weights', 'weight_change'][10] == 0 < m.loc['weights', 'weight_change'][20]
    assert m.loc['test', 'loss'][10] == pytest.approx(r.history.valid[r.history.step == 10].item(), abs=1e-4)
    last = r.valid[-1:]; k = int((last >= 0).sum()); assert k < 32 # a row with something to fill
    of = lambda rows: g.Look(r.model, 0, 'test', rows, None, at)
    assert len(of(r.valid).h) == int((r.valid >= 0).sum()); torch.testing.assert_close(of(last).h, of(last[:, :k]).h, atol=1e-5, rtol=1e-4)
    with pytest.raises(BadInput, match='of rows without any'): g.track(None, tmp_path, dict(test=r.valid), 'davies_bouldin', at)
    folder = tmp_path/'checkpoints/step-000010'
    assert g.track(None, [folder], dict(test=r.valid), 'loss').value.item() == m.loc['test', 'loss'][10]
    with pytest.raises(BadInput, match='could not be loaded'): g.track(None, ['nobody/nothing@step7'], dict(test=r.valid), 'loss')
    whole = g.Look(r.model, 0, 'test', r.valid, None, at); few = g.Look(r.model, 0, 'test', r.valid, None, at, batch=40) # tokens: a row at a time
    torch.testing.assert_close(few.h, whole.h, atol=1e-5, rtol=1e-4)
    cfg = g.GeneraliseConfig(experiment='checkpoints', checkpoints=[str(tmp_path)], context=32, texts=20, sae_steps=10)
    end = g.run_generalise(cfg, tmp_path.parent/'followed', progress=False)
    assert set(end.side) == {'weights', 'text'} and {'loss', 'sae: FVU', 'change_rank'} <= set(end.measure) and np.isfinite(end.iloc[:, 2]).all()
    assert pd.read_csv(tmp_path.parent/'followed/track.csv').step.unique().tolist() == [10, 20]
    one = g.run_generalise(g.GeneraliseConfig(experiment='checkpoints', checkpoints=[str(folder)], measures=['loss'], context=32, texts=20), tmp_path.parent/'one', progress=False)
    assert set(one.measure) == {'loss', 'accuracy'} # of a single moment: measures, and no dates

def test_pictures_and_sequences_at_a_site():
    "Channels of a picture and positions of a sequence are instances; classes are judged on their mean."
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    x, y = torch.randn(12, 1, 6, 6), torch.arange(12) % 2
    l = g.Look(conv, 0, 'train', x, y, Site('0'), batch=5)
    torch.testing.assert_close(l.h, conv[0](x).permute(0, 2, 3, 1).reshape(-1, 5)); torch.testing.assert_close(l.activations.mean(1), conv[0](x).mean((2, 3)))
    assert g.pgdl_score(conv, x, y, Site('0')) == pytest.approx(l.apart*(1 - l.mixed))
    f = g.track(lambda: conv, [conv.state_dict()], dict(train=(x, y)), ['pgdl'], Site('0'))
    assert f.value.item() == pytest.approx(l.apart*(1 - l.mixed))

def test_a_look_has_the_covariance_of_its_activations_and_says_what_cannot_be_had():
    torch.manual_seed(0)
    x = torch.randn(300, 6) @ torch.randn(6, 6) + 5
    l = g.Look(nn.Sequential(nn.Identity(), nn.Linear(6, 3)), 0, 'train', x, torch.arange(300) % 3, Site('0'))
    torch.testing.assert_close(l.variances, torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)).flip(0))
    assert g.MEASURES['effective_rank'](l) == pytest.approx(metrics.effective_rank(x - x.mean(0)).item(), rel=1e-4)
    assert g.MEASURES['variance'](l) == pytest.approx(x.double().var(0, correction=0).sum().item())
    line = torch.arange(8.)[:, None]*torch.ones(1, 6) # one dimension: an effective rank of 1
    assert g.MEASURES['effective_rank'](g.Look(l.model, 0, 'train', line, torch.arange(8) % 2, Site('0'))) == pytest.approx(1, abs=1e-4)
    each = g.Look(l.model, 0, 'unseen', x[:3], torch.arange(3), Site('0')); same = g.Look(l.model, 0, 'unseen', x[:3], torch.zeros(3).long(), Site('0'))
    assert math.isnan(each.apart) and math.isnan(each.mixed) and math.isnan(same.apart) and 0 <= same.mixed <= 1

def test_dictionaries_are_trained_on_one_side_and_judged_on_every():
    torch.manual_seed(0)
    D = F.normalize(torch.randn(16, 8), dim=1)
    def rows(n, seed):
        gen = torch.Generator().manual_seed(seed); x = torch.zeros(n, 16)
        return x.scatter_(1, torch.rand(n, 16, generator=gen).topk(2).indices, 1 + torch.rand(n, 2, generator=gen)) @ D
    both = dict(train=(rows(2000, 0), torch.arange(2000) % 2), test=(rows(500, 1), torch.arange(500) % 2), noise=(torch.randn(500, 8), torch.arange(500) % 2))
    model = nn.Sequential(nn.Identity(), nn.Linear(8, 2))
    f = g.track(lambda: model, [model.state_dict()], both, 'sae', Site('0'), sae=dict(n=32, k=4, steps=600)).pivot_table(index='measure', columns='side', values='value')
    assert f.loc['sae: FVU', 'train'] < .1 and abs(f.loc['sae: FVU', 'test'] - f.loc['sae: FVU', 'train']) < .03 < .1 < f.loc['sae: FVU', 'noise']

def test_dates_of_a_curve_that_comes_back():
    rows = lambda m, side, vs: [dict(run='', seed=0, step=10*i, side=side, measure=m, value=v) for i, v in enumerate(vs)]
    f = pd.DataFrame(rows('accuracy', 'test', [0, 0, 1, 1]) + rows('norm', 'weights', [9, 0, 6, 0]) + rows('flat', 'train', [1, 1, 1, 1]) + rows('late', 'train', [math.nan, 0, 0, 2]))
    d = g.dates(f, since=10).set_index('measure')
    assert d.generalised.unique().tolist() == [15] and d.settled['late'] == 25 and d.lag['late'] == 10 and math.isnan(d.settled['flat'])
    assert g.dates(f).set_index('measure').loc['norm', ['first', 'settled']].tolist() == [5, 22.5]
    assert g.dates(f, until=10).set_index('measure').loc['norm', ['first', 'settled']].tolist() == [5, 5] # what came later does not count
    with pytest.raises(BadInput, match='was not tracked'): g.dates(f, 'unseen')

# --- trainings

script = "import sys, torch; torch.set_num_threads(1); from saebook.generalise import run_grokking; run_grokking(p=13, width=32, epochs=400, every=20, path=sys.argv[1])"

@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL is POSIX')
def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    start = lambda d: subprocess.Popen([sys.executable, '-c', script, str(tmp_path/d)], env=dict(os.environ, PYTHONPATH=str(Path(g.__file__).resolve().parents[1])))
    p = start('killed'); end = time.time() + 120
    while len(list((tmp_path/'killed'/'checkpoints').glob('step-*'))) < 5 and time.time() < end and p.poll() is None: time.sleep(.02)
    p.send_signal(signal.SIGKILL); p.wait()
    assert 5 <= len(list((tmp_path/'killed'/'checkpoints').glob('step-*'))) < 21
    assert start('killed').wait() == 0 == start('whole').wait()
    files = [sorted((tmp_path/d/'checkpoints').glob('step-*')) for d in ('killed', 'whole')]
    assert len(files[0]) == 21 and [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]

def test_only_the_answer_is_asked_and_equals_sign_alone_answers():
    r = g.run_grokking(p=7, width=16, epochs=5, every=5)
    m, (x, y) = r.model(5), r.data['test']
    assert m(x).shape == (len(y), 7) and (x[:, 2] == 7).all()
    f = r.track('loss'); last = f[(f.step == 5) & (f.side == 'test')].value.item()
    assert last == pytest.approx(F.cross_entropy(m(x), y).item(), abs=1e-6) == pytest.approx(r.history[(r.history.step == 5) & (r.history.side == 'test')].loss.item(), abs=1e-6)
    with pytest.raises(BadInput, match='unknown step'): r.model(3)

def test_a_model_of_ones_own_learns_arithmetic():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    def make(seed):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=4, attention_dropout=0., hidden_dropout=0.))
    r = g.run_grokking(p=7, op='*', epochs=40, every=20, lr=1e-2, make=make, site=Site('gpt_neox.layers.0.mlp.act'), mix=Site('gpt_neox.embed_in'))
    assert r.history[r.history.side == 'train'].accuracy.iloc[-1] > .5
    f = r.track(); assert {'pgdl', 'norm: mean', 'change_rank'} <= set(f.measure) and np.isfinite(f[f.step > 0].value).all()

def test_pictures_from_a_users_arrays(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90); x = (rng.integers(0, 60, (90, 6, 6)) + 80*y[:, None, None]).astype('uint8')
    np.savez(tmp_path/'own.npz', x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    (tmp_path/'folder').mkdir(); np.save(tmp_path/'folder/x_train.npy', x); np.save(tmp_path/'folder/y_train.npy', y)
    d = g.image_data(tmp_path/'own.npz'); assert d['train'][0].max() <= 1 and len(d['test'][1]) == 30
    r = g.run_digits(source=tmp_path/'folder', epochs=30, every=10, lr=1e-2, batch=16)
    assert r.history[r.history.side == 'test'].accuracy.iloc[-1] > .9 and len(r.checkpoints) == 4
    with pytest.raises(FloatingPointError, match='after epoch 10: lower lr'): g.run_digits(source=tmp_path/'folder', epochs=30, lr=1e30)
    np.save(tmp_path/'folder/y_train.npy', np.array([{}]*90)) # would need pickle
    with pytest.raises(BadInput, match='could not be read'): g.image_data(tmp_path/'folder')
    for source, match in ((tmp_path, 'x_train and y_train are needed'), (tmp_path/'none.npz', 'could not be read')):
        with pytest.raises(BadInput, match=match): g.image_data(source)
    with pytest.raises(BadInput, match='one of each'): g.image_data(kind='few', rows=5)
    np.savez(tmp_path/'alone.npz', x_train=x, y_train=y, x_test=x)
    with pytest.raises(BadInput, match='without y_test'): g.image_data(tmp_path/'alone.npz')
    np.savez(tmp_path/'below.npz', x_train=x, y_train=y.astype(int) - 1)
    with pytest.raises(BadInput, match='below 0'): g.image_data(tmp_path/'below.npz')

def test_a_vision_transformer_is_followed_as_well():
    from transformers import ViTConfig, ViTForImageClassification
    class Vit(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = ViTForImageClassification(ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=8, patch_size=4, num_channels=1, num_labels=10, hidden_dropout_prob=0., attention_probs_dropout_prob=0.))
        def forward(self, x): return self.vit(x[:, None]).logits
    def make(seed): torch.manual_seed(seed); return Vit()
    block = sites.site(make(0).vit, 1).path
    r = g.run_digits('few', epochs=60, every=20, lr=3e-3, make=make, site=Site(f'vit.{block}'))
    f = r.track(); m = f.pivot_table(index=['side', 'measure'], columns='step', values='value')
    assert m.loc['train', 'accuracy'][60] > .9 > m.loc['test', 'accuracy'][60] and m.loc['train', 'davies_bouldin'][60] < m.loc['train', 'davies_bouldin'][0] and len(r.checkpoints) == 4

def test_every_panel_is_drawn():
    import matplotlib; matplotlib.use('Agg')
    f = pd.concat([g.run_digits('few', epochs=20, every=10, hidden=16, seed=s).track() for s in (0, 1)])
    assert len(g.plot_track(f)) == f.measure.nunique() - 1 and len(g.plot_track(f, ['loss', 'gini'], by='run', beside='loss')) == 2
    with pytest.raises(BadInput, match="did you mean 'gini'"): g.plot_track(f, 'ginni')

# --- slow

@pytest.mark.slow
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_a_small_transformer_groks_addition_and_not_without_decay_nor_sums_dealt_at_random(seed):
    decayed, not_decayed, dealt = (g.run_grokking(p=31, frac=.7, width=64, heads=4, lr=3e-3, epochs=e, seed=seed, **kw) for e, kw in ((1000, dict(weight_decay=1.)), (1500, dict(weight_decay=0.)), (1000, dict(weight_decay=1., op='?'))))
    assert decayed.reached(.99, 'train') <= 150 and decayed.reached(.95) <= 1000
    assert not_decayed.reached(.99, 'train') <= 150 and not_decayed.history[not_decayed.history.side == 'test'].accuracy.max() < .8
    assert not_decayed.history[not_decayed.history.side == 'unseen'].accuracy.max() < .2 # what it has right are mirror images of rows it learnt
    assert dealt.reached(.99, 'train') <= 150 and dealt.history[dealt.history.side == 'test'].accuracy.max() < .1 # decay, and nothing to understand
    f = [r.track(['accuracy', 'parameter_norm', 'gini', 'effective_rank']) for r in (decayed, not_decayed, dealt)]
    when = g.dates(f[0][f[0].side != 'test'], 'unseen', since=100).set_index(['side', 'measure'])
    assert decayed.reached(.4, 'unseen') - 50 <= when.generalised.iloc[0] <= decayed.reached(.6, 'unseen') + 50 and np.isfinite(when.settled['weights', 'parameter_norm'])
    assert 0 < when.lag['train', 'effective_rank'] < when.lag['train', 'gini'] # as the network goes on tidying up
    rank = [t[(t.step == 1000) & (t.side == 'train') & (t.measure == 'effective_rank')].value.item() for t in f]
    assert rank[0] < .6*min(rank[1:])
