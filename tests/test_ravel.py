"RAVEL: the benchmark's own files, what may not be in a pair, intervals, runs that are stopped, and the figures on the world's persons."
import numpy as np, pandas as pd, pytest, torch

from saebook import intervene as iv, sites
from saebook.core import BadInput
from saebook.intervene import FixedMask, Intervention, Neurons, Pairs
from saebook.ravel import METHODS, RavelBenchmark, RavelData, _answers, _same, _tokens, mask_table, match_label, ravel_gate, ravel_pairs, ravel_right, ravel_score
from saebook.world import load_planted, load_taught

@pytest.fixture(scope='module')
def lm(): return load_taught('base')

@pytest.fixture(scope='module')
def persons(): return RavelData.from_world('persons')

@pytest.fixture(scope='module')
def known(lm, persons): return persons.known(*lm, per=6)

# --- the files

@pytest.mark.parametrize('entity, entities, templates', [('city', 3552, 273), ('nobel_prize_winner', 928, None)])
def test_the_benchmarks_own_files(shared, entity, entities, templates):
    d = RavelData.load(shared('data/ravel'), entity)
    assert len(d.entities) == entities and len(d.templates) == (templates or len(d.templates))
    assert (d.templates.template.str.count('%s') == 1).all() and set(d.entities.split) == set(d.templates.split) == {'train', 'val', 'test'}
    if entity == 'city': assert d.entities.split.value_counts().to_dict() == dict(train=1787, val=818, test=947) and d.entities.at['Aarau', 'Country'] == 'Switzerland'

def test_a_type_that_is_not_there(shared, tmp_path):
    with pytest.raises(BadInput, match='city, nobel_prize_winner'): RavelData.load(shared('data/ravel'), 'verb')
    with pytest.raises(BadInput, match='entities of type none'): RavelData.load(tmp_path)

def test_the_entitys_last_token_is_found_in_gpt2s_pieces(shared):
    from transformers import AutoTokenizer
    tok, d = AutoTokenizer.from_pretrained(shared('models/gpt2-tokenizer')), RavelData.load(shared('data/ravel'))
    g = np.random.default_rng(0)
    rows = [(t.replace('%s', e), t.index('%s') + len(e), e, t[t.index('%s') + 2:]) for t, e in zip(g.choice(d.templates.template, 400), g.choice(d.entities.index, 400))]
    ids, at = _tokens(tok, [r[0] for r in rows], [r[1] for r in rows])
    for (prompt, _, e, after), row, k in zip(rows, ids, at):
        upto = tok.decode(row[:k + 1])
        assert e in upto and e not in upto[:-len(tok.decode(row[k:k + 1]))][-len(e):], (prompt, upto)
        assert tok.decode(row[k + 1:]) == after or len(tok.decode(row[k + 1:])) < len(after) # a token may reach beyond the entity, never end before it

def test_answers_go_on_from_the_prompt(shared):
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(shared('models/gpt2-tokenizer'))
    prompts, words = ['Oslo is in', '{"city": "Oslo", "country": "', 'Oslo lies in'], ['Norway', 'Norway', 'United Kingdom']
    got = _answers(tok, prompts, tok(prompts)['input_ids'], words, 3)
    assert [tok.decode(g) for g in got] == [' Norway', 'Norway', ' United Kingdom']
    assert [len(g) for g in _answers(tok, prompts, tok(prompts)['input_ids'], ['Bosnia and Herzegovina']*3, 3)] == [3, 3, 3]

@pytest.mark.parametrize('said, label, attribute, same', [
    (' the U.S.', 'United States', 'Country', True), ('USA and', 'United States', 'Country', True), ('U.K. where', 'United Kingdom', 'Country', True), ('Guinea-Bissau', 'Guinea', 'Country', False),
    ('Niger', 'Nigeria', 'Country', False), ('South', 'South Korea', 'Country', False), ('America/Argentina/Salta', 'America/Argentina', 'Timezone', False), ('Mandarin.', 'Chinese', 'Language', True),
    ('Kymri', 'English,Gaeli,Kymri', 'Language', True), ('57.3', '56', 'Latitude', True), ('-57', '57', 'Latitude', False), ('north', '57', 'Latitude', False), ('', 'Peru', 'Country', False)])
def test_names_of_a_label(said, label, attribute, same): assert match_label(said, label, attribute) == same

def test_no_pair_of_the_benchmarks_own_labels_has_an_answer_that_is_right_for_both(shared):
    from transformers import AutoTokenizer
    d = RavelData.load(shared('data/ravel'))
    q = d.only(attributes=['Language', 'Latitude', 'Country']).questions(AutoTokenizer.from_pretrained(shared('models/gpt2-tokenizer')), per=10)
    for a in ('Language', 'Latitude'):
        f = ravel_pairs(q, a, 'train', 200).frame
        value = lambda who: [d.entities.at[e, b] for e, b in zip(f[who], f.attribute)]
        assert not any(_same(x, y, b) for x, y, b in zip(value('base'), value('source'), f.attribute))

class Parrot(torch.nn.Module):
    "Says one word after any prompt: its tokens in turn."
    def __init__(self, ids, n): super().__init__(); self.ids, self.n, self.emb = ids, n, torch.nn.Embedding(n, 4)
    def forward(self, input_ids, attention_mask=None):
        h = self.emb(input_ids).sum(-1, keepdim=True)*0
        said = torch.zeros(*input_ids.shape, self.n)
        for b in range(len(input_ids)): # what follows the last token of the prompt, which is 5
            row = input_ids[b].tolist(); last = max(i for i, t in enumerate(row) if t == 5)
            for j in range(last, len(row)): said[b, j, self.ids[min(j - last, len(self.ids) - 1)]] = 1
        return said + h

def test_what_is_said_is_written_token_by_token():
    n = torch.arange(3)
    pairs = Pairs([[1, 5], [1, 2, 3, 5], [5]], [0, 0, 0], n, n, [[7], [7, 8], [9]], n == 0)
    assert iv.said(Parrot([7, 8, 9], 12), None, None, pairs, most=3) == [[7, 8, 9]]*3
    assert iv.right(Parrot([7, 8, 9], 12), None, None, pairs).tolist() == [True, True, False]

def test_a_model_that_says_another_name_knows_the_country(shared):
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(shared('models/gpt2-tokenizer'))
    d = RavelData.load(shared('data/ravel')).only(['Boston', 'Chicago', 'Paris'], ['Country', 'Continent'], lambda t: t in ('%s is a city in the country of', '%s is a city located in the continent of'))
    d.entities['split'] = 'train'
    class Says(torch.nn.Module):
        def __init__(self): super().__init__(); self.emb = torch.nn.Embedding(len(tok), 1)
        def forward(self, input_ids, attention_mask=None): # " the" then " USA", whatever is asked
            out = torch.zeros(*input_ids.shape, len(tok)) + 0*self.emb.weight.sum()
            the = input_ids == tok(' the').input_ids[0]
            usa, = tok(' USA').input_ids
            out[..., tok(' the').input_ids[0]] = 1; out[the] = 0; out[the] = torch.nn.functional.one_hot(torch.tensor(usa), len(tok)).float()
            return out
    with pytest.raises(BadInput, match='answers none of the'): d.known(Says(), tok)
    known = d.known(Says(), tok, answers='text')
    assert set(known.entity) == {'Boston', 'Chicago'} and set(known.attribute) == {'Country'}
    assert {tok.decode(l).strip() for l in known.label} <= {'the USA', 'USA'}

def test_a_template_has_one_place(persons):
    with pytest.raises(BadInput, match='has 2 places'): RavelData('x', persons.entities, pd.DataFrame([dict(attribute='town', template='%s and %s', split='train', form='')]))

# --- pairs

@pytest.mark.parametrize('split', ['train', 'val', 'entity', 'context', 'unplanted'])
def test_no_pair_has_equal_answers_and_nothing_held_out_is_in_training(known, persons, split):
    for a in persons.attributes:
        f = ravel_pairs(known, a, split, 200).frame
        value = lambda who: np.array([persons.entities.at[e, b] for e, b in zip(f[who], f.attribute)])
        assert (value('base') != value('source')).all() and f.cause.sum() == 100 and (f.cause == (f.attribute == a)).all()
        train = ravel_pairs(known, a, 'train', 200).frame
        if split in ('entity', 'val', 'unplanted'): assert not (set(f.base) | set(f.source)) & (set(train.base) | set(train.source))
        if split == 'context': assert not set(f.template) & set(train.template)

def test_identity_and_swap_are_one_half_exactly(lm, known):
    at = load_planted().site
    for a in ('gender', 'town'):
        p = ravel_pairs(known, a, 'entity', 100)
        for m, want in ((FixedMask(128, []), (0, 1, .5)), (None, (1, 0, .5))):
            s = ravel_score(p, iv.right(lm[0], at, Intervention(Neurons(128), m), p))
            assert (s['cause'], s['isolate'], s['disentangle']) == want

def test_the_last_block_cannot_matter_at_another_position(lm, known):
    p = ravel_pairs(known, 'town', 'entity', 60)
    last = sites.site(lm[0], sites.n_layers(lm[0]) - 1)
    s = ravel_score(p, iv.right(lm[0], last, Intervention(Neurons(128)), p))
    assert (s['cause'], s['isolate']) == (0, 1)
    g = ravel_gate(lm[0], known, n=60).set_index('layer').open
    assert g[['embedding', 0, 1]].all() and not g[[2, 3]].any()

def test_a_gate_that_is_shut_everywhere_says_so(lm, persons, tmp_path, monkeypatch):
    import saebook.ravel as r
    monkeypatch.setattr(r, 'ravel_gate', lambda model, known: pd.DataFrame(dict(layer=[0, 1], cause=[.2, .1], isolate=[0, 0], open=[False, False])))
    with pytest.raises(BadInput, match='shut everywhere.*0: 0.20, 1: 0.10'): RavelBenchmark(*lm, persons, per=3).run(tmp_path, progress=False)

def test_isolate_is_a_mean_over_attributes_however_many_templates_each_has():
    frame = pd.DataFrame(dict(attribute=['a'] + ['b']*3 + ['c'], template=['t', 'u', 'v', 'w', 'x'], base=list('pqrst'), source=list('qrstp'), cause=[True] + [False]*4))
    pairs = Pairs([[0]], [0], np.zeros(5, int), np.zeros(5, int), [[0]]*5, frame.cause.to_numpy(), frame)
    got = ravel_score(pairs, [True, True, True, True, False], n=1)
    assert (got['cause'], got['isolate']) == (1, .5) # all three templates of b, none of c

# --- intervals

def test_an_interval_covers_the_truth():
    "Entities differ in how well they can be moved, and a pair is right just if both of its are. 200 draws of entities from one population."
    covers, truth = [], None
    for seed in range(201):
        g = np.random.default_rng(seed)
        many = 4000 if truth is None else 60 # the first is the population, near enough
        good, n = g.beta(4, 1, many), 40_000 if truth is None else 400
        b, s = g.integers(many, size=(2, n))
        cause = np.arange(n) % 2 == 0
        frame = pd.DataFrame(dict(attribute=np.where(cause, 'a', 'b'), template=np.where(cause, 't', 'u'), base=b.astype(str), source=s.astype(str), cause=cause))
        right = g.random(n) < good[b]*good[s]
        pairs = Pairs([[0]], [0], np.zeros(n, int), np.zeros(n, int), [[0]]*n, cause, frame)
        got = ravel_score(pairs, right, n=1 if truth is None else 200)
        if truth is None: truth = got['disentangle']
        else: covers.append(got['low'] <= truth <= got['high'])
    assert .9 <= np.mean(covers) <= 1, np.mean(covers)

# --- runs

def test_a_run_goes_on_where_it_was_stopped(lm, persons, tmp_path, monkeypatch):
    kw = dict(methods=['identity', 'random', 'mdas'], layers=[1], attributes=['town'], per=4, pairs=200, judged=60, epochs=1)
    whole = RavelBenchmark(*lm, persons, **kw).run(tmp_path/'whole', progress=False)
    def stop(c): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setitem(METHODS, 'mdas', stop)
        with pytest.raises(KeyboardInterrupt): RavelBenchmark(*lm, persons, **kw).run(tmp_path/'stopped', progress=False)
    assert len(list((tmp_path/'stopped').glob('*/rows.json'))) == 2
    again = RavelBenchmark(*lm, persons, **kw).run(tmp_path/'stopped', progress=False)
    pd.testing.assert_frame_equal(whole.drop(columns='seconds'), again.drop(columns='seconds'))
    kept = iv.load_intervention(tmp_path/'whole'/whole.cell[whole.method == 'mdas'].iloc[0])
    assert kept.featurizer.directions.shape == (128, 8)

@pytest.mark.parametrize('kw, says', [(dict(methods=['dass']), "did you mean 'das'"), (dict(attributes=['height']), "unknown attribute 'height'"), (dict(methods=['sae']), 'without an SAE')])
def test_a_wrong_benchmark_is_told_at_once(lm, persons, kw, says):
    with pytest.raises(BadInput, match=says): RavelBenchmark(*lm, persons, **kw)

def test_answers_as_text_where_each_is_one_word_are_the_same_figures(lm, persons, tmp_path):
    kw = dict(methods=['identity', 'swap', 'random'], layers=[1], attributes=['town'], per=4, judged=60, most=1)
    tokens, text = (RavelBenchmark(*lm, persons, answers=a, **kw).run(tmp_path/a, progress=False) for a in ('tokens', 'text'))
    pd.testing.assert_frame_equal(tokens.drop(columns=['seconds', 'cell']), text.drop(columns=['seconds', 'cell']))

def test_masks_side_by_side(lm, persons, tmp_path):
    RavelBenchmark(*lm, persons, methods=['dbm', 'pca'], seeds=[0, 1], layers=[1], attributes=['town', 'gender'], per=4, pairs=100, judged=60, epochs=1).run(tmp_path, progress=False)
    t = mask_table(tmp_path)
    assert len(t) == 8 and t[t.method == 'dbm'][['other_attribute', 'other_seed']].notna().all().all() and t[t.method == 'pca'].other_seed.isna().all()
    with pytest.raises(BadInput, match='no finished cell'): mask_table(tmp_path/'none')

def test_held_to_the_logits_the_directions_are_nearer_the_truth(lm, known):
    from saebook.world import load_planted
    at, truth = load_planted().site, load_planted().basis('town')
    truth = torch.linalg.svd(truth - truth.mean(1, keepdim=True)).U[:, :7]
    pairs, found = ravel_pairs(known, 'town', 'train', 1000), {}
    for target in iv.TARGETS:
        iv.fit_intervention(lm[0], at, m := iv.mdas(128, 8), pairs, epochs=3, target=target, progress=False)
        found[target] = iv.principal_cosines(m.featurizer.directions.detach(), truth)[:7]
    assert (found['logits'] > found['answers'] - .02).all() and found['logits'].min() > found['answers'].min() + .1

def test_from_one_file(tmp_path, capsys):
    from saebook.cli import main
    (tmp_path/'c.yaml').write_text('kind: ravel\ndata: cities\nlayers: [embedding]\nmethods: [identity, swap]\nattributes: [country]\npairs: 60\njudged: 60\nper: 4\n')
    assert main(['run', str(tmp_path/'c.yaml'), '--out', str(tmp_path/'out'), '--quiet']) == 0
    assert {'results.csv', 'config.json', 'layers.png', 'cause_isolate.png'} <= {p.name for p in (tmp_path/'out').iterdir()}
    f = pd.read_csv(tmp_path/'out'/'results.csv')
    assert (f.disentangle == .5).all() and set(f.split) == {'entity', 'context'} and 'cause' in capsys.readouterr().out

# --- the figures

@pytest.mark.slow
def test_a_fit_that_begins_at_the_class_means_leaves_them_and_is_the_better_for_it(lm, persons, tmp_path):
    f = RavelBenchmark(*lm, persons, methods=['class_means', 'mdas_means', 'mdas'], attributes=['town', 'trade'], layers=[1], per=8).run(tmp_path, progress=False)
    s = f[f.split == 'unplanted'].set_index(['method', 'attribute'])
    print(s[['disentangle', 'low', 'high', 'cosine']].round(3))
    for a in ('town', 'trade'):
        assert s.cosine['class_means', a] > .999 and s.cosine['mdas', a] < s.cosine['mdas_means', a] < .95
        assert s.disentangle['mdas_means', a] > s.disentangle['class_means', a] and s.disentangle['mdas_means', a] >= .99

@pytest.mark.slow
def test_mdas_finds_what_was_planted(lm, persons, tmp_path):
    f = RavelBenchmark(*lm, persons, methods=['identity', 'swap', 'random', 'dbm', 'mdas'], seeds=[0, 1, 2], attributes=['town', 'trade'], per=15).run(tmp_path, progress=False)
    assert set(f.layer) == {1} # where it was planted
    s = f.groupby(['split', 'method', 'seed']).disentangle.mean()
    for split in ('entity', 'context', 'unplanted'):
        assert s[split, 'mdas'].min() >= .95 and s[split, 'random'].max() <= .6 and s[split, 'identity'].eq(.5).all() and s[split, 'swap'].eq(.5).all()
        assert s[split, 'mdas'].min() >= s[split, 'dbm'].max() + .05
    assert (f.low <= f.disentangle).all() and (f.disentangle <= f.high).all()
