"Erasing: the identity, what is kept in files, what is refused before work, random masks, and certificates that may say no."
import json

import numpy as np, pandas as pd, pytest, torch

from saebook import erase, intervene as iv, probe, sites
from saebook.core import BadInput
from saebook.erase import Certificate, Eraser, carried, certify, closed_form_eraser, fit_eraser, random_eraser
from saebook.intervene import FixedMask, Intervention, SAEFeaturizer
from saebook.sae import SAE
from saebook.sites import Site
from saebook.world import World, load_planted, load_taught

@pytest.fixture(scope='module')
def lm(): return load_taught('base')

@pytest.fixture(scope='module')
def bios(): return World(0).biographies(160, 0., seed=5)

@pytest.fixture(scope='module')
def at(): return load_planted().site

@pytest.fixture(scope='module')
def sae(lm, bios, at): # a dictionary of the planted values in both signs, made by hand
    p = load_planted()
    D = torch.cat([p.basis('gender').T, p.basis('trade').T]); D = torch.cat([D, -D])
    s = SAE(128, len(D), 'relu', apply_b_dec=False)
    with torch.no_grad(): s.W_enc.copy_(D.T); s.W_dec.copy_(D)
    return s.eval()

def known(n=400, d=24, seed=0): # rows whose features are known: 4 of gender, 4 of trade, 16 of neither
    g = torch.Generator().manual_seed(seed)
    e, k = torch.randint(2, (2, n), generator=g)
    F = torch.rand(n, d, generator=g).double()
    F[:, :4] += 2*e[:, None]; F[:, 4:8] += 2*k[:, None]
    W = torch.linalg.qr(torch.randn(32, d, generator=g).double())[0].T
    return erase.Carried(F @ W + .05*torch.randn(n, 32, generator=g), F, torch.ones(n).double(), W), F.mean(0), e, k

def test_a_mask_finds_the_features_of_the_concept_where_they_are_known_and_of_the_task_if_asked_the_other_way():
    c, mean, e, k = known()
    for concept, task, truth in ((e, k, set(range(4))), (k, e, set(range(4, 8)))):
        mask, _ = erase._learn_mask(c, mean, concept, task, .05, 1., 300, .05, False)
        got = set(mask.nonzero()[:, 0].tolist())
        assert len(got & truth)/len(got) >= .8 and len(got & truth)/len(truth) >= .8, got

def test_a_confounded_table_is_no_trouble_while_every_cell_has_a_text():
    c, mean, e, k = known(1200)
    use = (e == k) | (torch.rand(1200, generator=torch.Generator().manual_seed(1)) < .1)
    part = erase.Carried(c.X[use], c.F[use], c.s[use], c.W)
    mask, _ = erase._learn_mask(part, mean, e[use], k[use], .05, 1., 300, .05, False)
    assert set(mask.nonzero()[:, 0].tolist()) == set(range(4))

def test_what_was_never_active_stays(lm, bios, at):
    dead = SAE(128, 64, k=8)
    with torch.no_grad(): dead.b_enc[40:] = -1e4
    got = fit_eraser(*lm, bios, at, dead, keep='trade', cost=0., steps=40, progress=False).features[at]
    assert got and max(got) < 40

def test_the_same_seed_takes_the_same_features_and_files_keep_them(lm, bios, at, sae, tmp_path):
    a, b = (fit_eraser(*lm, bios, at, sae, keep='trade', steps=60, rest='leace', progress=False) for _ in range(2))
    assert a.features == b.features and a.about == b.about
    a.save(tmp_path/'e'); c = Eraser.load(tmp_path/'e')
    h = torch.randn(4, 3, 128)
    assert torch.equal(a(h), c(h)) and json.loads((tmp_path/'e'/'eraser.json').read_text())['about']['erase'] == 'gender'
    assert not set(bios.group) & set(map(str, c.about['groups'])) # names are not kept, only what they hash to
    (tmp_path/'e'/'eraser.json').write_text('{}')
    with pytest.raises(BadInput, match='no saebook-eraser'): Eraser.load(tmp_path/'e')

def test_it_works_while_generating_and_leaves_nothing_behind(lm, bios, at, sae):
    model, tok = lm
    x = sites.tokenize(tok, bios.text[:2].tolist(), side='left')
    before = sites.forward(model, x).logits
    e = fit_eraser(model, tok, bios, at, sae, keep='trade', steps=30, progress=False)
    with e.attach(model):
        changed = sites.forward(model, x).logits
        said = model.generate(**x, max_new_tokens=4, do_sample=False)
    assert (changed - before).abs().max() > 1e-3 and torch.equal(sites.forward(model, x).logits, before) and said.shape[1] > x['input_ids'].shape[1]
    first = changed[torch.arange(2), -1].argmax(-1)
    assert torch.equal(said[:, x['input_ids'].shape[1]], first) # what was generated first is what the erased model says

def test_random_features_of_the_same_number_move_a_fresh_probe_hardly(lm, bios, at):
    model, tok = lm
    sae = SAE(128, 512, k=16).eval()
    c, mean = carried(model, tok, bios.text, at, sae, progress=False)
    like = Eraser({at: Intervention(SAEFeaturizer(sae), FixedMask(512, range(12)), 'mean', mean)})
    active = (c.F > 0).any(0).nonzero()[:, 0].tolist()
    was = probe.read_out(c.X, bios.gender, bios.group, ['linear']).accuracy[0]
    for seed in range(10):
        m = torch.zeros(512).double(); m[random_eraser(like, active, seed).features[at]] = 1
        assert m.sum() == 12 and abs(probe.read_out(c.without(m, mean), bios.gender, bios.group, ['linear']).accuracy[0] - was) < .02

@pytest.mark.parametrize('method', ['leace', 'difference', 'inlp'])
def test_closed_forms_take_out_what_is_linear(method):
    g = np.random.default_rng(0)
    y = g.integers(2, size=600); X = torch.tensor(g.normal(size=(600, 8))); X[:, 0] += torch.tensor(3*y); X[:, 1] += .5*X[:, 0]
    e = closed_form_eraser(X, y, Site('here'), method)
    E, z = e(X), torch.tensor(y - y.mean())
    if method != 'inlp': assert ((E - E.mean(0)).T @ z/600).abs().max() < dict(leace=1e-12, difference=1e-6)[method] # class means are kept in single precision
    assert probe.read_out(E, y, kinds=['linear']).accuracy[0] < .6 < probe.read_out(X, y, kinds=['linear']).accuracy[0]

def test_a_certificate_says_no_where_a_reader_wins_and_its_files_say_the_same(tmp_path):
    g = np.random.default_rng(0)
    y, X = g.integers(2, size=500), torch.tensor(g.normal(size=(500, 6)))
    X[:, 0] *= torch.tensor(1. + 4*y)
    c = certify(X, np.where(y, '<b>yes</b>', 'no'), before=X, splits=1)
    assert not c.erased and c.winner in ('mlp', 'knn', 'trees') and c.winner in c.verdict
    c.save(tmp_path/'c')
    d = json.loads((tmp_path/'c'/'certificate.json').read_text())
    assert d['erased'] is False and d['winner'] == c.winner and len(d['rows']) == 4
    page = (tmp_path/'c'/'certificate.html').read_text(encoding='utf-8')
    assert c.verdict.replace("'", '&#x27;') in page and '<b>yes' not in page

@pytest.mark.parametrize('change, says', [
    (lambda d: d.assign(gender='female'), "all 160 values of 'gender'"), (lambda d: d.drop(columns='trade'), "no column 'trade'"), (lambda d: d[(d.gender == 'female') == (d.trade == 'nurse')], 'no text is both'),
    (lambda d: d.assign(gender=[None] + d.gender.tolist()[1:]), '1 of 160 values'), (lambda d: d.drop(columns='group'), "no column 'group'")])
def test_what_cannot_be_erased_is_told_before_the_model_runs(lm, bios, at, change, says, monkeypatch):
    monkeypatch.setattr(sites, 'read', lambda *a, **k: pytest.fail('the model was run'))
    with pytest.raises(BadInput, match=says): fit_eraser(*lm, change(bios), at, keep='trade', progress=False)

def test_groups_that_the_eraser_has_met_do_not_judge_it(lm, bios, at, sae):
    e = fit_eraser(*lm, bios, at, sae, keep='trade', steps=5, progress=False)
    with pytest.raises(BadInput, match='was fitted on'): certify(*lm, bios, eraser=e, keep='trade')
    with pytest.raises(BadInput, match='width 64'): fit_eraser(*lm, bios, at, SAE(64, 128, k=4), keep='trade', progress=False)
