"From a model to pages: every kind of feature on the same texts, in one call, gone on with; from a shell; and what cannot be used is told before anything is read."
import json, re
from dataclasses import asdict
from pathlib import Path

import pandas as pd, pytest, torch

from saebook import interpretations, sites
from saebook.cache import FeatureCache
from saebook.cli import main
from saebook.core import BadInput
from saebook.feedforward import FeedForwardSpec, sparsify_feedforward
from saebook.formats import save_sae
from saebook.interpretations import InterpretConfig, cache_features, coders_of, run_interpret
from saebook.labels import Labels
from saebook.records import Records
from saebook.sae import SAE, Transcoder
from saebook.sites import Site
from saebook.world import World, load_taught

SMALL = dict(n_tokens=8000, context=48, features=6, least=5, length=12, n_train=10, n_test=10, scorers=['detection'])

@pytest.fixture(scope='module')
def home(tmp_path_factory): # a model with sparse blocks, coders in three formats, a text
    d = tmp_path_factory.mktemp('i'); model, tok = load_taught('base')
    sparse = sparsify_feedforward(model, FeedForwardSpec('topk', expansion=2, k=8), [2])
    sparse.save_pretrained(d/'model'); tok.save_pretrained(d/'model')
    at = Site('gpt_neox.layers.1')
    save_sae(SAE(128, 64, k=8, site=at, seed=0), d/'coders'/at.path, 'sparsify')
    SAE(128, 96, k=8, site=at, seed=1).save_pretrained(d/'coders'/'second')
    save_sae(Transcoder(128, 64, k=8, site=Site('gpt_neox.layers.1.mlp', 'input'), seed=2), d/'coders'/'gpt_neox.layers.1.mlp', 'sparsify')
    (d/'coders'/'training').mkdir()
    (d/'t.txt').write_text('<|endoftext|>'.join(World(0).documents(600, seed=3).text))
    return d

def config(home, **kw): return InterpretConfig(**dict(SMALL, model=str(home/'model'), text=str(home/'t.txt')) | kw)

def test_every_kind_of_feature_on_the_same_texts(home, tmp_path):
    cfg = config(home, coders=[str(home/'coders')], units='gpt_neox.layers.3.mlp.act', feedforward=True)
    medians = run_interpret(cfg, tmp_path/'out', progress=False)
    assert sorted(medians.module) == sorted(['gpt_neox.layers.1', 'gpt_neox.layers.1-second', 'gpt_neox.layers.1.mlp', 'gpt_neox.layers.3.mlp.act', 'gpt_neox.layers.2.mlp'])
    caches = {n: FeatureCache.open(tmp_path/'out'/'features'/n) for n in medians.module}
    assert len({len(c) for c in caches.values()}) == 1 and caches['gpt_neox.layers.2.mlp'].site.side == 'input' and len(next(iter(caches.values()))) <= 8000
    page = Path(medians.attrs['page'])
    assert {f.name for f in page.parent.iterdir()} == {'index.html', 'scores.csv'} | {f'{n}.{e}' for n in medians.module for e in ('html', 'jsonl')}
    assert not re.search(r'''(src|href)=["']?(https?:)?//''', page.read_text()) and set(re.findall(r"href='([^'#]+)'", page.read_text())) == {f'{n}.html' for n in medians.module}
    assert len(pd.read_csv(page.parent/'scores.csv')) == 30
    before = {f: f.read_bytes() for f in (tmp_path/'out').rglob('*.*') if f.suffix in ('.jsonl', '.safetensors')}
    again = run_interpret(cfg, tmp_path/'out', progress=False)
    assert again.equals(medians) and {f: f.read_bytes() for f in before} == before

def test_features_that_were_read_before_also_by_delphi(home, tmp_path):
    read = cache_features(config(home, coders=[str(home/'coders'/'second')]), tmp_path/'a', progress=False)
    c = read['gpt_neox.layers.1']
    c.to_delphi(tmp_path/'delphi', n_splits=2)
    own, theirs = (run_interpret(InterpretConfig(**SMALL, model=str(home/'model'), caches=[str(d)]), tmp_path/d.name/'o', progress=False) for d in (tmp_path/'a'/'features', tmp_path/'delphi'))
    assert own.module.tolist() == theirs.module.tolist() == ['gpt_neox.layers.1'] and theirs.features[0] > 0
    with pytest.raises(BadInput, match='no cache of features'): run_interpret(InterpretConfig(caches=[str(home/'coders'/'training')]), tmp_path/'b', progress=False)
    with pytest.raises(BadInput, match='is no SAE or transcoder'): run_interpret(InterpretConfig(**SMALL | dict(scorers=['logits']), model=str(home/'model'), caches=[str(tmp_path/'a'/'features')]), tmp_path/'c', progress=False)

def test_labels_and_logits(home, tmp_path):
    cfg = config(home, coders=[str(home/'coders'/'second')], explainer='logits', scorers=['logits', 'embedding'], features=3)
    m = run_interpret(cfg, tmp_path/'o', progress=False)
    assert m.scorer.tolist() == ['logits', 'embedding'] and m.features.tolist() == [3, 3]
    c = FeatureCache.open(tmp_path/'o'/'features'/'gpt_neox.layers.1')
    fs = interpretations.living(c, 3, 5)
    b = Labels(Records(c, load_taught('base')[1], length=12), fs, tmp_path/'l.jsonl')
    for w in ('the', 'she', 'in'): b.label(f'"{w}"')
    m = run_interpret(config(home, coders=[str(home/'coders'/'second')], features=3, explainer='labels', labels=str(tmp_path/'l.jsonl')), tmp_path/'o', progress=False)
    assert m.features[0] == 3

def test_from_a_shell(home, tmp_path, capsys):
    go = lambda *a: main([*map(str, a), '--quiet'])
    assert go('cache-features', tmp_path/'x', '--model', home/'model', '--text', home/'t.txt', '--coders', home/'coders'/'second', '--tokens', 8000, '--context', 48) == 0
    assert 'gpt_neox.layers.1: 7,' in capsys.readouterr().out
    assert go('interpret', tmp_path/'x', '--features', 4, '--least', 5, '--scorers', 'fuzzing') == 0
    out = capsys.readouterr().out
    assert 'fuzzing' in out and Path(out.strip().rsplit(' ', 1)[1]).is_file()
    (tmp_path/'c.yaml').write_text(f'kind: interpret\nmodel: {home}/model\ntext: {home}/t.txt\ncoders: {home}/coders/second\nn_tokens: 8000\ncontext: 48\nfeatures: 4\nleast: 5\nscorers: fuzzing')
    assert go('run', tmp_path/'c.yaml', '--out', tmp_path/'x') == 0 # the same, from a file: nothing is asked again
    assert capsys.readouterr().out == out

@pytest.mark.parametrize('kw,says', [(dict(coders=['nowhere']), 'is not there'), (dict(units=['gpt_neox.layers.9.mlp']), 'gpt_neox.layers.9.mlp'), (dict(feedforward=True, model=None, text=None), 'no sparse feed-forward block'),
                                     (dict(units=['gpt_neox.layers.1'], generator='nowhere', scorers=['chat_detection']), 'nowhere'), (dict(units=['gpt_neox.layers.1'], device='nowhere'), 'cannot be used'), (dict(units=['gpt_neox.layers.1'], least=10**6), 'the busiest')])
def test_what_cannot_be_used_is_told(home, tmp_path, kw, says):
    with pytest.raises(BadInput, match=says): run_interpret(config(home, **kw), tmp_path/'o', progress=False)
    assert 'least' in kw or not (tmp_path/'o').exists()

def test_a_coder_without_a_site(home, tmp_path):
    SAE(128, 64, k=8).save_pretrained(tmp_path/'s')
    with pytest.raises(BadInput, match='does not say which module'): coders_of(load_taught('base')[0], config(home, coders=[str(tmp_path/'s')]))

def test_an_endpoint_explains_and_judges_and_is_paid_once(home, tmp_path, monkeypatch):
    from serving import KEY, judge, serving
    def says(asked): # explains by the word that is marked most, judges by quoted words
        text = asked['messages'][-1]['content']
        if '[EXPLANATION]' in text:
            words = re.findall('<<(.*?)>>', text.split('Examples:\n')[1])
            return f'[EXPLANATION]: The word "{max(sorted(set(words)), key=words.count)}".'
        return str(judge(text)) if 'Examples:' in text else 'yes'
    monkeypatch.setenv('A_KEY', KEY)
    mood = lambda h, n, asked: h.send(500, b'oops') if n % 9 == 5 else None
    with serving(mood, says) as (server, url):
        cfg = config(home, coders=[str(home/'coders'/'second')], features=3, explainer='chat', scorers=['chat_detection', 'detection'], generator=url, generator_model='reader', key_env='A_KEY')
        monkeypatch.setattr('saebook.generators.time.sleep', lambda s: None)
        m = run_interpret(cfg, tmp_path/'o', progress=False).set_index('scorer')
        n, page = server.n, Path(m.attrs['page'])
        assert m.features['chat_detection'] == 3 and m.failures['chat_detection'] == 0
        assert m.without['detection'] == 3 # a text has no table
        server.mood = lambda *a: None
        for f in page.parent.glob('*'): f.unlink() # what was answered is kept beside the features
        again = run_interpret(cfg, tmp_path/'o', progress=False).set_index('scorer')
        assert again.equals(m) and server.n == n + 1 # only: are you there?
    assert all(KEY.encode() not in f.read_bytes() for f in (tmp_path/'o').rglob('*') if f.is_file())
    monkeypatch.setenv('A_KEY', 'wrong')
    with serving(lambda h, n, asked: h.send(401, b'{"error": {"message": "wrong key"}}')) as (server, url), pytest.raises(BadInput, match='401: wrong key'): run_interpret(config(home, units=['gpt_neox.layers.1'], scorers=['chat_detection'], generator=url, generator_model='r', key_env='A_KEY'), tmp_path/'p', progress=False)
    assert not (tmp_path/'p').exists()

def test_features_of_others_are_not_taken_for_the_worlds_nor_for_those_at_hand(home, tmp_path):
    own = dict(SMALL, units=['gpt_neox.layers.3.mlp.act'])
    cache_features(InterpretConfig(**own), tmp_path/'world', progress=False)
    cache_features(config(home, units=own['units']), tmp_path/'other', progress=False)
    given = lambda d, **kw: run_interpret(InterpretConfig(**SMALL | kw, caches=[str(tmp_path/d/'features')]), tmp_path/'o', progress=False)
    assert len(given('world')) == 1
    with pytest.raises(BadInput, match='not read from the model of the built-in world'): given('other')
    with pytest.raises(BadInput, match='two sets of features are called'): given('world', units=own['units'])
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({'a': 0, 'b': 1, '[U]': 2}, '[U]')), unk_token='[U]')
    model, _ = load_taught('base'); model.save_pretrained(tmp_path/'m'); tok.save_pretrained(tmp_path/'m')
    with pytest.raises(BadInput, match='and this tokenizer has 3'): given('other', model=str(tmp_path/'m'))
