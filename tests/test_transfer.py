"Transfer: real languages with known bars, no translation on both sides, and a file that asks for the whole matrix."
import json, sys

import numpy as np, pandas as pd, pytest

from saebook import readings, sites
from saebook.cli import main
from saebook.core import BadInput, configured
from saebook.results import Settings, judge
from saebook.sae import SAE
from saebook.tables import labelled, make_splits, read_table
from saebook.transfer import TransferConfig, run_transfer, transfer

transfers = sys.modules['saebook.transfer']
TFIDF = dict(row='TF-IDF', reader='logistic')

def sib(shared, *languages):
    return {l: labelled(read_table(shared(f'data/sib200/{l}.csv')), id='id', split='split', name=l) for l in languages}

def test_letters_carry_a_little_from_english(shared):
    tables = sib(shared, 'eng_Latn', 'deu_Latn', 'fra_Latn')
    m = transfer(tables, {}, Settings(controls=['TF-IDF'])).set_index(['source', 'target'])
    assert m.f1['eng_Latn', 'deu_Latn'] == pytest.approx(.35, abs=.03) and m.f1['eng_Latn', 'fra_Latn'] == pytest.approx(.41, abs=.03)
    alone = judge(tables['deu_Latn'].text, tables['deu_Latn'], make_splits(tables['deu_Latn']), TFIDF)
    assert m.f1['deu_Latn', 'deu_Latn'] == alone['f1'] # the diagonal is the ordinary experiment
    assert .4 < m.ratio['eng_Latn', 'deu_Latn'] < .6 and m.ratio['eng_Latn', 'eng_Latn'] == 1

def test_transfer_never_judges_a_translation(shared):
    tables = sib(shared, 'eng_Latn', 'deu_Latn')
    both = {l: t.iloc[::2] if l == 'eng_Latn' else t for l, t in tables.items()}
    both = {l: t.assign(split='').reset_index(drop=True) for l, t in both.items()} # dealt out by id, in both languages alike
    m = transfer(both, {}, Settings(C=[10.], test_size=.3, controls=['TF-IDF']), shots=(0, 5))
    assert (m.test > 0).all() and m.set_index(['source', 'target', 'shots']).f1['eng_Latn', 'deu_Latn', 5] > m.set_index(['source', 'target', 'shots']).f1['eng_Latn', 'deu_Latn', 0]
    with pytest.raises(BadInput, match='whose table has 1004'): transfer(tables, dict(SAE={'eng_Latn': np.zeros((1004, 2)), 'deu_Latn': np.zeros((3, 2))}))

def test_features_of_any_name_are_read_as_what_they_are(monkeypatch):
    "Dense activations are scaled, as hidden states are; sparse ones are left sparse."
    from scipy import sparse
    g = np.random.default_rng(0)
    rows = labelled(pd.DataFrame(dict(id=range(60), label=np.arange(60) % 2)), None, id='id')
    X, seen, fit = g.normal(size=(60, 4))*[1, 1000, 1, 1], [], transfers.fit_best
    monkeypatch.setattr(transfers, 'fit_best', lambda of, *a: seen.append(of['row']) or fit(of, *a))
    transfer(dict(en=rows), dict(mine=dict(en=X), other=dict(en=sparse.csr_matrix(np.abs(X)))), Settings(C=[1.], cv=3, controls=[]))
    assert seen == ['hidden']*3 + ['SAE']*3
    for name in ('PCA', 'shuffled', 'majority', 'TF-IDF'):
        with pytest.raises(BadInput, match='give them another name'): transfer(dict(en=rows), {name: dict(en=X)})

def config(shared, d, **more):
    "Two languages of sib200, a small model, an SAE that has learnt nothing."
    SAE(64, 128, k=4, seed=1).save_pretrained(d/'sae')
    return dict(dict(settings=dict(readers=['logistic'], C=[1.], batch_size=32, length=64), models=[dict(name=str(shared('models/stories260K')), saes={2: [str(d/'sae')]})],
                     datasets=[dict(path=str(shared(f'data/sib200/{l}.csv')), id_field='id', split_field='split', limit=150) for l in ('eng_Latn', 'deu_Latn')], classification_params=dict(top_n_values=[0], features=[None, 20])), **more)

def test_a_file_gives_every_row_of_every_place(shared, tmp_path, capsys, monkeypatch):
    (tmp_path/'c.yaml').write_text(json.dumps(dict(config(shared, tmp_path), kind='transfer', shots=[0, 3])))
    assert main(['run', str(tmp_path/'c.yaml'), '--out', str(tmp_path/'out'), '--quiet']) == 0
    f = pd.read_csv(tmp_path/'out'/'transfer.csv')
    places = f[f.row == 'SAE'].groupby(['pool', 'features'], dropna=False).size()
    assert set(f.row) == {'majority', 'TF-IDF', 'hidden', 'PCA', 'random SAE', 'shuffled', 'SAE'} and len(places) == 2 and (places == 8).all()
    page = (tmp_path/'out'/'transfer.html').read_text()
    assert page.count('<svg') == 1 and 'http://' not in page.replace('http://www.w3.org', '') and 'did best on the rows of the sources that choose' in page
    def no(*a, **kw): raise AssertionError('read again')
    monkeypatch.setattr(sites, 'read', no)
    before = (tmp_path/'out'/'transfer.csv').read_bytes()
    run_transfer(configured(TransferConfig, dict(config(shared, tmp_path), shots=[0, 3])), tmp_path/'out', progress=False)
    assert (tmp_path/'out'/'transfer.csv').read_bytes() == before

def test_the_function_and_the_file_say_the_same(shared, tmp_path):
    f = run_transfer(configured(TransferConfig, config(shared, tmp_path, classification_params={})), tmp_path/'out', progress=False)
    model, tok = sites.load_model(shared('models/stories260K'))
    at, sae = sites.site(model, 2), SAE(64, 128, k=4, seed=1)
    tables = {l: t.iloc[:150].reset_index(drop=True) for l, t in sib(shared, 'eng_Latn', 'deu_Latn').items()}
    got = {l: readings.collect(model, tok, list(t.text), dict(hidden=readings.Reading(at), SAE=readings.Reading(at, sae)), batch=32, length=64, progress=False) for l, t in tables.items()}
    m = transfer(tables, {r: {l: got[l][r] for l in tables} for r in ('hidden', 'SAE')}, Settings(C=[1.]))
    for row in ('majority', 'TF-IDF', 'hidden', 'PCA', 'SAE', 'shuffled'):
        assert f[f.row == row].f1.tolist() == pytest.approx(m[m.row == row].f1.tolist(), abs=1e-9), row

@pytest.mark.parametrize('change, says', [
    (dict(shots=[-1]), 'shots -1'), (dict(shots=[]), 'give one number at least'), (dict(datasets=[dict(name='world', config_name='en')], models=[]), 'give two at least'), (dict(shot=[1]), "did you mean 'shots'?")])
def test_a_wrong_file_is_told_in_one_sentence(shared, tmp_path, change, says):
    with pytest.raises(BadInput) as e: configured(TransferConfig, dict(config(shared, tmp_path), **change))
    assert says in str(e.value) and '\n' not in str(e.value), e.value

def test_an_sae_of_another_width_is_told_before_anything_is_fitted(shared, tmp_path):
    c = config(shared, tmp_path); SAE(32, 64, k=4).save_pretrained(tmp_path/'narrow'); c['models'][0]['saes'] = {2: [str(tmp_path/'narrow')]}
    with pytest.raises(BadInput, match='has the width 32'): run_transfer(configured(TransferConfig, c), tmp_path/'out', progress=False)

@pytest.mark.slow
def test_real_sentences_in_three_languages(shared):
    "sib200 through a small model of English stories and an SAE trained on them: letters are the bar, and what is above it or not is only told."
    from saebook import cache
    from saebook.train import TrainConfig, train_sae
    model, tok = sites.load_model(shared('models/stories260K'))
    at = sites.site(model, 2)
    acts = cache.activations(model, cache.contexts(tok, cache.read_documents(shared('data/tinystories/small.txt'))[:400]), at, progress=False)
    sae = train_sae(SAE(64, 512, k=16, site=at), acts, TrainConfig(steps=600), progress=False).sae.eval()
    tables = sib(shared, 'eng_Latn', 'deu_Latn', 'fra_Latn')
    read = lambda t: readings.collect(model, tok, list(t.text), dict(hidden=readings.Reading(at), SAE=readings.Reading(at, sae)), progress=False)
    got = {l: read(t) for l, t in tables.items()}
    m = transfer(tables, {r: {l: got[l][r] for l in tables} for r in ('hidden', 'SAE')}, Settings(C=[.1, 1., 10., 100.], controls=['TF-IDF', 'PCA', 'shuffled', 'majority']))
    print(m.pivot_table(index=['source', 'target'], columns='row', values='f1', sort=False).round(3).to_string())
    f = m.set_index(['row', 'source', 'target']).f1
    assert f['TF-IDF', 'eng_Latn', 'deu_Latn'] == pytest.approx(.35, abs=.03) and f['TF-IDF', 'eng_Latn', 'fra_Latn'] == pytest.approx(.41, abs=.03)
    assert set(m.row) == {'majority', 'TF-IDF', 'shuffled', 'PCA', 'hidden', 'SAE'} and len(m) == 54 and (m.fit == 800).all() and (m.test == 204).all() and f['hidden', 'eng_Latn', 'eng_Latn'] > .2 > f['shuffled', 'eng_Latn', 'eng_Latn']
