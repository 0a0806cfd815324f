"Tables, misled probes, scores by their formulas, the published setting in its shape, and WinoMT with a real model."
import json

import numpy as np, pandas as pd, pytest, torch

from saebook import cache, cli, debias, erase, probe, sites
from saebook.core import BadInput
from saebook.debias import EraseConfig, ambiguous, balanced, bias_in_bios, compare, load_table, run_erase, scr, tpp, without_words
from saebook.erase import Eraser, carried_rows
from saebook.sae import SAE
from saebook.sites import Site
from saebook.train import TrainConfig, train_sae

def bios(n=8, seed=0): # a table as Bias in Bios is published, of made-up lines
    g = np.random.default_rng(seed)
    rows = [(f'{["He", "She"][s]} {dict([(21, "teaches at the university"), (13, "works on the ward")])[p]} and {w} .', p, s) for p in (21, 13) for s in (0, 1) for w in (f'likes number {i}' for i in g.integers(1000, size=n))]
    return pd.DataFrame(rows, columns=['hard_text', 'profession', 'gender'])

@pytest.mark.parametrize('name', ['csv', 'tsv', 'jsonl', 'json', 'parquet', 'folder'])
def test_bias_in_bios_is_read_from_whatever_holds_it(tmp_path, name):
    df, p = bios(), tmp_path/f'b.{name}'
    if name == 'folder': p = tmp_path/'bias_in_bios'; p.mkdir(); df.to_parquet(p/'train-00000-of-00001.parquet')
    else: dict(csv=lambda: df.to_csv(p, index=False), tsv=lambda: df.to_csv(p, sep='\t', index=False), jsonl=lambda: df.to_json(p, orient='records', lines=True), json=lambda: df.to_json(p, orient='records'), parquet=lambda: df.to_parquet(p))[name]()
    got = bias_in_bios(p)
    assert list(got.columns) == ['text', 'gender', 'profession', 'group'] and set(got.gender) == {'male', 'female'} and set(got.profession) == {'professor', 'nurse'}
    assert got[got.text.str.startswith('He')].gender.eq('male').all()

@pytest.mark.parametrize('make, says', [
    (lambda d: load_table(d/'none.csv'), "there is no"), (lambda d: load_table(d/'x.txt'), 'no table that is read here'), (lambda d: load_table(d/'b.csv', 'words'), "no column 'words'"),
    (lambda d: load_table(d/'b.csv', 'hard_text', names=dict(gender=['male'])), 'has no name'), (lambda d: bias_in_bios(d/'b.csv', ['wizard']), "profession 'wizard'"), (lambda d: load_table(d/'bad.json'), 'could not be read'),
    (lambda d: balanced(bias_in_bios(d/'b.csv'), 'gender', 'profession', 9), '8 rows are both'), (lambda d: ambiguous(bias_in_bios(d/'b.csv'), 'gender', 'profession', dict(professor='male', nurse='male')), 'most often')])
def test_tables_that_will_not_do_are_named(tmp_path, make, says):
    bios().to_csv(tmp_path/'b.csv', index=False); (tmp_path/'x.txt').write_text('x'); (tmp_path/'bad.json').write_text('{')
    with pytest.raises(BadInput, match=says): make(tmp_path)

def test_ambiguous_rows_take_what_is_commonest():
    df = pd.DataFrame(dict(gender=list('mmmffffm'), profession=['p', 'p', 'p', 'p', 'n', 'n', 'n', 'n']))
    got = ambiguous(df, 'gender', 'profession')
    assert sorted(zip(got.gender, got.profession)) == [('f', 'n')]*3 + [('m', 'p')]*3

def test_scr_and_tpp_by_their_formulas():
    assert scr(.95, .6, .95) == 1 and scr(.95, .6, .6) == 0 and scr(.9, .5, .7) == pytest.approx(.5)
    with pytest.raises(BadInput, match='nothing to win back'): scr(.8, .8, .7)
    assert tpp([.9, .8, .7], np.array([[.4, .8, .7], [.9, .3, .7], [.9, .8, .2]])) == pytest.approx(.5) # every class its own, no other
    assert tpp([.9, .8, .7], np.tile([.9, .8, .7], (3, 1))) == 0
    assert tpp([.9, .9], [[.9, .5], [.5, .9]]) == pytest.approx(-.4)
    with pytest.raises(BadInput, match='two classes'): tpp([.9], [[.5]])

def test_the_planted_features_have_the_effects_and_curves_show_it():
    g = np.random.default_rng(0)
    task, concept = g.integers(2, size=(2, 800)); taught = g.integers(2, size=400)
    def rows(t, c): X = g.normal(size=(len(t), 12))*.3; X[:, 0] += t; X[:, 1] += 3*c; return torch.tensor(X)
    X, W = rows(task, concept), rows(taught, taught)
    misled, right = probe.fit_adversary(W, taught, 'linear'), probe.fit_adversary(X, task, 'linear')
    c = carried_rows(X)
    effects = debias.feature_effects(c, concept, misled)
    assert debias.top_features(effects, 1) == [1] and debias.top_features(effects*0, 3) == []
    won = debias.scr_curve(c, concept, c, task, misled, right, ks=(1, 3)).scr
    assert won[0] > .9
    kinds = g.integers(3, size=900); Y = g.normal(size=(900, 9))*.3; Y[np.arange(900), kinds] += 2
    t = debias.tpp_curve(carried_rows(torch.tensor(Y)), kinds, carried_rows(torch.tensor(Y)), kinds, ks=(1,)).iloc[0]
    assert t.tpp > 0 and t.own > 5*abs(t.others) # the probe of a class reads the others' directions too, so its own is not all

@pytest.fixture(scope='module')
def pythia(shared, tmp_path_factory): # the published model and dictionaries, in shape and format, with random weights
    import shutil
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    d = tmp_path_factory.mktemp('published')
    torch.manual_seed(0)
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048, rotary_pct=.25, max_position_embeddings=2048)).save_pretrained(d/'pythia-70m-deduped')
    for f in ('tokenizer.json', 'tokenizer_config.json'): shutil.copy(shared('models/pythia-tokenizer')/f, d/'pythia-70m-deduped')
    for l in (3, 4):
        p = d/f'resid_out_layer{l}'/'10_32768'; p.mkdir(parents=True)
        D = torch.nn.functional.normalize(torch.randn(512, 32768), dim=0)
        torch.save({'bias': torch.randn(512)*.01, 'encoder.weight': D.T.clone(), 'encoder.bias': torch.full((32768,), -.5), 'decoder.weight': D}, p/'ae.pt')
    bios(20).to_csv(d/'bias_in_bios.csv', index=False)
    return d

@pytest.mark.slow
@pytest.mark.parametrize('layers', [[4], [3, 4]])
def test_the_published_setting_runs_whole_on_weights_of_its_shape(pythia, tmp_path, layers, capsys):
    (tmp_path/'c.yaml').write_text(json.dumps(dict(kind='erase', data='bias_in_bios', source=str(pythia/'bias_in_bios.csv'), model=str(pythia/'pythia-70m-deduped'), layers=layers, keep='profession', n=16, splits=1,
        sae={l: str(pythia/f'resid_out_layer{l}'/'10_32768'/'ae.pt') for l in layers}, kinds=['linear'], methods=['nothing', 'mask', 'mask + leace', 'leace', 'shift', 'random'], steps=40)))
    assert cli.main(['run', str(tmp_path/'c.yaml'), '--out', str(tmp_path/'out'), '--quiet']) == 0
    frame = pd.read_csv(tmp_path/'out'/'results.csv')
    assert frame.method.tolist() == ['nothing', 'mask', 'mask + leace', 'leace', 'shift', 'random'] and frame.concept.notna().all()
    e = Eraser.load(tmp_path/'out'/'mask'/'eraser')
    assert len(e.edits) == len(layers) and all(es[0].featurizer.n == 32768 for es in e.edits.values())
    assert {'results.csv', 'cells.csv', 'config.json'} <= {p.name for p in (tmp_path/'out').iterdir()} and (tmp_path/'out'/'mask+leace'/'certificate.html').is_file()

HE = 'he she him her his hers himself herself'.split()

@pytest.mark.slow
def test_winomt_with_a_real_model_and_honest_verdicts(shared):
    df = pd.read_csv(shared('data/winomt')/'winomt_en.csv')
    named = df[df.profession != 'someone']
    often = named.profession.value_counts().sort_index(kind='stable').sort_values(ascending=False, kind='stable').index[:6] # as many of each as there can be
    rows = named[named.profession.isin(often)].reset_index(drop=True)
    model, tok = sites.load_model(shared('models/stories260K'))
    at, held = sites.site(model, 2), probe.group_split(rows.group, .5, seed=0)
    train, test = rows[~held].reset_index(drop=True), rows[held].reset_index(drop=True)
    assert not set(train.group) & set(test.group) # templates, not sentences, are split
    ctx = cache.contexts(tok, train.text, groups=train.group)
    sae = train_sae(SAE(64, 256, k=12), cache.activations(model, ctx, at, progress=False), TrainConfig(steps=300), progress=False).sae
    found = compare(model, tok, train, test, at, sae, typical={p: ('female', 'male')[i % 2] for i, p in enumerate(sorted(often))}, pool='last', words=HE, kinds=('linear', 'knn'), splits=2, gate=None, progress=False)
    t = found.frame.set_index('method')
    print(found.frame.drop(columns=['reader', 'task_before']).round(3).to_string())
    assert list(t.index) == list(debias.METHODS)
    assert t.concept['nothing'] > .9 and not t.erased['nothing'] # a pronoun is easily read
    assert abs(t.concept['words'] - .5) < .02 # and gone with the word: nothing else in a template tells
    assert not t.erased['everything'] # what the dictionary leaves out tells as well
    assert not t.erased['random'] and t.concept['leace'] < t.concept['nothing']
    for m, c in found.certificates.items(): assert c.erased == (c.winner is None) and c.erased == bool(t.erased[m])

def test_words_are_left_out_whole_and_in_any_case():
    assert without_words(['He hears her; HERS is here'], HE) == ['hears ; is here']

@pytest.mark.parametrize('change, says', [
    (dict(methods=['magic']), "method 'magic'"), (dict(layers=3), 'layers 3'), (dict(kinds=['psychic']), "adversary 'psychic'"), (dict(n=0), 'n 0 was given'), (dict(splits=True), 'splits True')])
def test_configurations_that_will_not_do_are_named(change, says):
    with pytest.raises(BadInput, match=says): EraseConfig(**change)

def test_a_layer_without_its_dictionary_is_named_before_the_model_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(sites, 'read', lambda *a, **k: pytest.fail('the model was run'))
    with pytest.raises(BadInput, match='layer 2 has no SAE'): run_erase(EraseConfig(layers=[1, 2], sae={1: 'nowhere'}, n=10), tmp_path/'o', False)

def test_a_group_on_both_sides_is_named_before_the_model_runs(monkeypatch):
    from saebook.world import World, load_taught
    monkeypatch.setattr(sites, 'read', lambda *a, **k: pytest.fail('the model was run'))
    t = World(0).biographies(40)
    with pytest.raises(BadInput, match='a group belongs to one side'): compare(*load_taught('base'), t, t, Site('gpt_neox.layers.1'), keep='trade', progress=False)

# ---- found by a reviewer

def test_groups_come_from_the_text_or_from_a_column_of_that_name(tmp_path):
    df = bios(4); df.to_csv(tmp_path/'a.csv', index=False); df.assign(group='one').to_csv(tmp_path/'b.csv', index=False)
    a, b = bias_in_bios(tmp_path/'a.csv'), bias_in_bios(tmp_path/'b.csv')
    assert a.group.nunique() == a.text.nunique() and set(b.group) == {'one'}
    assert not set(a.group) & set(bias_in_bios_of(bios(4, seed=9), tmp_path).group) # another table's groups are others
    assert len(ambiguous(a.astype({'gender': 'category', 'profession': 'category'}), 'gender', 'profession', dict(professor='male', nurse='female')))

def bias_in_bios_of(df, tmp_path): df.to_csv(tmp_path/'c.csv', index=False); return bias_in_bios(tmp_path/'c.csv')

@pytest.mark.parametrize('how, says', [
    (lambda w: dict(taught=w.biographies(40, 1., split='test')), 'belongs to one side'), (lambda w: dict(eraser=Eraser({Site('gpt_neox.layers.1'): erase.chosen_eraser(Site('gpt_neox.layers.1'), 128, [0]).edits[Site('gpt_neox.layers.1')]}, dict(groups=erase._met(w.biographies(40, split='test').group)))), 'was fitted on'),
    (lambda w: dict(words=['x'], test=w.biographies(40, split='test').assign(text='x')), 'nothing but words'), (lambda w: dict(train=w.biographies(40).assign(gender=list('aabbccdd')*5)), 'between two')])
def test_a_comparison_that_would_be_unfair_or_break_is_told_before_the_model_runs(how, says, monkeypatch):
    from saebook.world import World, load_taught
    monkeypatch.setattr(sites, 'read', lambda *a, **k: pytest.fail('the model was run'))
    w = World(0)
    kw = dict(train=w.biographies(40), test=w.biographies(40, split='test'), taught=w.biographies(40, 1.)) | how(w)
    with pytest.raises(BadInput, match=says): compare(*load_taught('base'), at=Site('gpt_neox.layers.1'), keep='trade', progress=False, **kw)

def test_an_eraser_that_was_given_keeps_the_groups_it_met():
    from saebook.world import World, load_taught
    w, at = World(0), Site('gpt_neox.layers.1')
    given = erase.chosen_eraser(at, 128, [0]); given.about['groups'] = ['somebody']
    found = compare(*load_taught('base'), w.biographies(80), w.biographies(80, split='test'), at, keep='trade', taught=w.biographies(40, 1.), methods=['nothing'], kinds=('linear',), splits=1, eraser=given, progress=False)
    assert given.about['groups'] == ['somebody'] and found.erasers['nothing'].about['groups'] and found.frame.method.tolist() == ['given', 'nothing']
