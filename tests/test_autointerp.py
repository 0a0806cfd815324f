"Explanations: planted meanings found, real features beside another's explanation, and what a killed run, odd cache or careless scorer leaves."
import numpy as np, pytest, torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from saebook import lexical, records, sites
from saebook.autointerp import EmbeddingDetection, Explanation, Interpretation, LexicalDetection, LexicalFuzzing, LogitEffect, Records, Simulation, TokenStatistics, interpret, living
from saebook.cache import Contexts, FeatureCache, activations, contexts, read_documents
from saebook.codes import pack
from saebook.core import BadInput
from saebook.feedforward import FeedForwardSpec, feedforwards, sparsify_feedforward
from saebook.sae import SAE, Transcoder
from saebook.sites import Site, load_model
from saebook.train import TrainConfig, train_sae

class Given(torch.nn.Module):
    "A model whose activations are a fixed function of ids; and the coder that takes them as they are."
    def __init__(self, fn, n): super().__init__(); self.fn, self.n, self.d_in, self.site = fn, n, n, torch.nn.Identity()
    def forward(self, input_ids, attention_mask=None): return self.site(self.fn(input_ids))
    def encode(self, x): return pack(x)

def made(path, fn, n, rows=300, seq=40, vocab=60, docs=None, seed=0, pad=0):
    w = torch.ones(vocab); w[:2], w[9:11] = 0, 8 # the words of the planted pair are common ones
    ids = torch.multinomial(w, rows*seq, True, generator=torch.Generator().manual_seed(seed)).view(rows, seq)
    mask = torch.ones_like(ids)
    if pad: mask[::2, -pad:] = 0; ids[::2, -pad:] = 0
    use = mask.bool(); use[:, 0] = False
    m = Given(fn, n)
    return FeatureCache.create(path, type('Coder', (), dict(n=n, d_in=n, encode=lambda self, x: pack(x)))(), (m.eval(), Contexts(ids, mask, use, np.arange(rows)//3 if docs is None else docs)), Site('site'), progress=False)

after = lambda ids: torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
def planted(ids): # a token; a pair; a token that is nearly everywhere; one that fires nowhere; a neuron with two signs
    return torch.stack([ids == 7, (ids == 9) & (after(ids) == 10), ids > 2, ids < 0, (ids == 11).float() - (ids == 12).float()], -1).float()*(1 + ids[..., None]/60)

@pytest.fixture(scope='module')
def cache_(tmp_path_factory): return made(tmp_path_factory.mktemp('a')/'c', planted, 5, pad=10)

def test_windows_hold_the_activations_of_the_model_and_texts_are_on_one_side(cache_):
    rec = Records(cache_, length=12)
    ctx = cache_.contexts()
    want = torch.relu(planted(ctx.input_ids))*ctx.use[..., None]
    for f in (0, 1, 4):
        r = rec[f]
        assert not set(r.train.group) & set(r.test.group)
        for ex in (r.train, r.test):
            assert len(set(zip(ex.row.tolist(), ex.start.tolist()))) == len(ex)
            for i in range(len(ex)):
                a, b = ex.start[i], min(ex.start[i] + 12, 40)
                assert np.allclose(ex.acts[i, :b - a], want[ex.row[i], a:b, f], atol=2e-3) and (ex.acts[i, b - a:] == 0).all() and not ex.use[i, b - a:].any()
                assert ex.before[i] == (ctx.input_ids[ex.row[i], a - 1] if a else -1)
            assert (ex.use.sum(1) >= 6).all() # half of a window at least
    whole, twice = Records(cache_, length=12, n_train=None, n_test=None)[0], Records(cache_, length=12)[0]
    assert len(whole.train) > len(twice.train) and np.array_equal(twice.test.ids, Records(cache_, length=12)[0].test.ids)
    assert not np.array_equal(Records(cache_, length=12, seed=1).held, rec.held)

def test_too_few_windows_are_fewer_and_counted(cache_):
    r = Records(cache_, length=12)[2] # fires in every window
    assert r.train.active.all() and r.short == dict(train=[0, 40], test=[0, 50])
    s = LexicalDetection().score(r, Explanation('x', lexical._table([3], [-1], [1.], [1.], [1])))
    assert np.isnan(s.score) and 'every window' in s.more['why']
    none = Records(cache_, length=12)[3]
    assert none.short['test'][0] == 50 and not none.test.active.any() and TokenStatistics().explain(none).meta['failed']

def test_a_neuron_counts_on_its_positive_side(cache_):
    e = TokenStatistics().explain(Records(cache_, length=12)[4])
    assert e.weights['id'] == [11]

@pytest.mark.parametrize('by', records.CHOICES)
def test_choices(by):
    best, rng = np.random.default_rng(0).random(1003), np.random.default_rng(1)
    at, q = records._choose(best, 50, by, 10, rng)
    assert len(set(at)) == 50 and (np.diff(best[at]) <= 0).all()
    rank = (-best).argsort().argsort()[at]
    if by == 'top': assert rank.max() == 49
    if by == 'quantile': assert (np.bincount(q, minlength=10) == 5).all() and (abs(rank/1003*10 - q - .5) < .52).all()
    assert sorted(records._choose(best[:7], 50, by, 10, rng)[0]) == list(range(7))

def test_a_planted_token_and_a_planted_pair(cache_):
    rec = Records(cache_, length=12)
    alone, both = (TokenStatistics(context=c) for c in (False, True))
    score = lambda s, f, e: s.score(rec[f], e.explain(rec[f])).score
    assert score(LexicalDetection(), 0, alone) >= .99 and score(LexicalDetection(), 0, both) >= .99
    for s in (LexicalDetection(), LexicalFuzzing(), Simulation()): assert score(s, 1, both) >= score(s, 1, alone)
    assert score(LexicalDetection(), 1, both) > .99 > score(LexicalDetection(), 1, alone) + .05 and score(Simulation(), 1, both) > score(Simulation(), 1, alone) + .2

def test_hard_negatives_are_windows_of_neighbours(cache_):
    D = torch.eye(5); D[0] += .9*D[1]
    for kw in (dict(negatives='similar', directions=D, neighbours=1), dict(negatives='cooccurring')):
        rec = Records(cache_, length=12, **kw)
        near = rec.nearest(0, kw['negatives'])
        assert 0 not in near and (near == [1] or kw['negatives'] != 'similar')
        there = {(int(rec.row[w]), int(rec.start[w])) for j in near for w in rec.fires(j)[3]}
        ex = rec[0].test
        assert all((r, s) in there for r, s in zip(ex.row[~ex.active].tolist(), ex.start[~ex.active].tolist())) and not (ex.acts[ex.quantile < 0] > 0).any()
    rec = Records(cache_, length=12, negatives='similar')
    assert rec.nearest(1)[0] == 2 and rec.nearest(3) == [] # who never fires has no neighbours

def test_look_up_by_hand(cache_):
    ex = Records(cache_, length=12)[0].test
    t = lexical._table([7, 9, 9], [-1, -1, 4], [1., 2., 3.], [.1, .2, .3], [1, 1, 1])
    by_hand = np.where(ex.ids == 7, 1, np.where(ex.ids == 9, np.where(ex.previous == 4, 3, 2), 0))*ex.use
    assert np.array_equal(lexical.look_up(t, ex), by_hand) and not lexical.look_up(lexical._table(*[[]]*5), ex).any()
    with pytest.raises(BadInput, match='no table of weights'): lexical.look_up(None, ex)

def test_the_table_is_counted_on_one_side_alone(cache_):
    rec = Records(cache_, length=12); ctx = cache_.contexts()
    e = TokenStatistics(context=True).explain(rec[1])
    i = e.weights['before'].index(-1)
    on = (ctx.input_ids == 9) & ctx.use & torch.tensor(~rec.held)[:, None]
    assert sum(e.weights['n']) == int(on.sum()) and e.weights['id'][i] == 9 and e.weights['mean'][i] < .1

def test_fuzzing_marks_as_many_and_counts_who_cannot_be_marked(cache_):
    ex, marks, right = records.fuzzed(Records(cache_, length=12)[1].test)
    assert abs(int(right.sum()) - int((~right).sum())) <= 1 and (marks.sum(1) > 0).all() and (ex.acts[right][marks[right]] > 0).all() and (ex.acts[~right][marks[~right]] == 0).all()

def test_simulation_is_pearson_and_wrong_lengths_are_failures(cache_):
    r = Records(cache_, length=12)[1]
    foretold = np.random.default_rng(0).random(r.test.ids.shape)
    s = Simulation(lambda ex, e: foretold, draws=20).score(r, None)
    assert np.isclose(s.score, np.corrcoef(foretold[r.test.use], r.test.acts[r.test.use])[0, 1]) and s.low < s.score < s.high
    odd = [list(x) for x in foretold]; odd[0], odd[1], odd[2] = None, odd[1] + [0.], [float('nan')]*12
    s = Simulation(lambda ex, e: odd).score(r, None)
    assert s.failures == 3 and s.n == len(r.test) - 3
    assert Simulation(lambda ex, e: np.zeros(ex.ids.shape)).score(r, None).score == 0
    with pytest.raises(BadInput, match='give one a window'): Simulation(lambda ex, e: foretold[:3]).score(r, None)

def go(cache_, path, scorer=None, **kw): return interpret(cache_, [0, 1, 3, 4], TokenStatistics(context=True), scorer or [LexicalDetection(), Simulation()], path=path, length=12, progress=False, **kw)

def test_a_killed_run_goes_on_to_the_same_bytes(cache_, tmp_path):
    want = go(cache_, tmp_path/'a.jsonl'); raw = (tmp_path/'a.jsonl').read_bytes()
    for cut in (0, 5, 200, len(raw)//2, len(raw) - 1):
        (tmp_path/'b.jsonl').write_bytes(raw[:cut])
        got = go(cache_, tmp_path/'b.jsonl')
        assert (tmp_path/'b.jsonl').read_bytes() == raw and got.frame.equals(want.frame)
    assert go(cache_, None).frame.equals(want.frame)
    class Stops(LexicalDetection):
        def score(self, record, e):
            if record.feature == 4: raise KeyboardInterrupt
            return super().score(record, e)
    Stops.__name__ = 'LexicalDetection'
    with pytest.raises(KeyboardInterrupt): go(cache_, tmp_path/'c.jsonl', [Stops(), Simulation()])
    assert len(Interpretation.load(tmp_path/'c.jsonl').frame) and go(cache_, tmp_path/'c.jsonl').frame.equals(want.frame)
    assert want.save(tmp_path/'d.jsonl').read_bytes() == raw

def test_another_run_or_a_foreign_file_is_refused_and_left_alone(cache_, tmp_path):
    go(cache_, tmp_path/'a.jsonl'); raw = (tmp_path/'a.jsonl').read_bytes()
    for kw, says in ((dict(seed=1), 'seed=0, and seed=1 is asked for'), (dict(n_test=20), 'n='), (dict(scorer=LexicalFuzzing()), 'scorers='), (dict(directions=torch.eye(5), negatives='similar'), 'is asked for')):
        with pytest.raises(BadInput, match=says): go(cache_, tmp_path/'a.jsonl', **kw)
    assert (tmp_path/'a.jsonl').read_bytes() == raw
    for text in (b'notes of mine', b'a,b\n1,2\n', b'{"x": 1}\n'):
        (tmp_path/'f.jsonl').write_bytes(text)
        with pytest.raises(BadInput, match='damaged|no interpretation'): go(cache_, tmp_path/'f.jsonl')
        assert (tmp_path/'f.jsonl').read_bytes() == text

def test_who_fails_is_counted_and_out_of_the_circle(cache_):
    r = go(cache_, None)
    f = r.frame.set_index(['feature', 'scorer'])
    assert np.isnan(f.score[3, 'Simulation']) and 'does not fire' in f.why[3, 'Simulation'] and f.score.drop(3).notna().all() and f.control.drop(3).notna().all()
    assert r.summary().without.tolist() == [1, 1]
    of = {k: l['control_of'] for k, l in r.scored.items()}
    assert of[3] is None and sorted(of[k] for k in (0, 1, 4)) == [0, 1, 4] and all(k != g for k, g in of.items())
    assert go(cache_, None, control=None).frame.control.isna().all()
    assert interpret(cache_, [0], TokenStatistics(), LexicalDetection(), length=12, progress=False).frame.control.isna().all()

def test_mistakes_are_told_before_work(cache_):
    for says, f in ((r"kind of negatives 'hard'", lambda: Records(cache_, negatives='hard')), ('length=1 was given', lambda: Records(cache_, length=1)), ('4 directions were given for 5', lambda: Records(cache_, directions=torch.eye(4))), ('judged=1', lambda: Records(cache_, judged=1)),
                    ('feature 5 was asked for', lambda: Records(cache_)[5]), ('no features', lambda: interpret(cache_, [], TokenStatistics(), LexicalDetection())), ('one of them twice', lambda: interpret(cache_, [1, 1], TokenStatistics(), LexicalDetection())),
                    ('as explainer', lambda: interpret(cache_, [1], LexicalDetection(), LexicalDetection())), ('two of one kind', lambda: interpret(cache_, [1], TokenStatistics(), [LexicalDetection(), LexicalDetection()])),
                    ('no feature fires 9999999 times', lambda: living(cache_, least=9_999_999)), ('no tokenizer was given', lambda: EmbeddingDetection().score(Records(cache_)[0], Explanation('x'))), ("control 'random'", lambda: go(cache_, None, control='random'))):
        with pytest.raises(BadInput, match=says): f()

def test_one_document_is_divided_at_its_end(tmp_path):
    c = made(tmp_path/'one', planted, 5, rows=40, docs=np.zeros(40, int))
    held = Records(c, length=12).held
    assert held.sum() == 20 and held[20:].all()

@pytest.fixture(scope='module')
def lm():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=.3)).eval()

@pytest.mark.parametrize('kind', ['residual', 'transcoder'])
def test_logits_fall_where_a_feature_is_ablated(lm, tmp_path, kind):
    "Against a model changed by hand: the activation less what the feature writes."
    site = Site('gpt_neox.layers.1') if kind == 'residual' else Site('gpt_neox.layers.1.mlp', 'input')
    coder = SAE(16, 24, k=4, site=site, seed=1).eval() if kind == 'residual' else Transcoder(16, 24, k=4, site=site, seed=1).eval()
    with torch.no_grad(): coder.W_dec.normal_(generator=torch.Generator().manual_seed(2))
    ids = torch.randint(2, 60, (60, 20), generator=torch.Generator().manual_seed(0)); use = torch.ones(60, 20, dtype=torch.bool)
    c = FeatureCache.create(tmp_path/'c', coder, (lm, Contexts(ids, use.long(), use, np.arange(60))), progress=False)
    rec, most = Records(c, length=10), c.firing_counts().argsort(descending=True)[:4].tolist()
    r = rec[f := most[0]]
    effect = LogitEffect(lm, coder, top=5, windows=6, batch=4)
    e = effect.explain(r); got = effect.score(r, e)
    ex = r.test[r.test.active]; ex = ex[np.unique(np.linspace(0, len(ex) - 1, 6).round().astype(int))]
    falls = []
    for row, at in zip(ex.row, ex.start + ex.acts.argmax(1)):
        x = ids[row, :at + 1][None]
        a = coder.encode(sites.read(lm, x, site)[site]).to_dense()[..., f:f + 1]
        with torch.no_grad():
            clean = lm(x).logits[0, -1]
            with sites.patch(lm, {Site(site.path): lambda h: h - a*coder.W_dec[f]}): falls.append((clean - lm(x).logits[0, -1]).numpy())
    falls = np.stack(falls)
    assert np.isclose(got.more['change'], (falls[:, e.weights['id']].mean(1) - falls.mean(1)).mean(), atol=1e-4)
    own, others = ([effect.score(rec[i], effect.explain(rec[j])).score for i in most for j in most if (i == j) == mine] for mine in (True, False))
    assert got.n == 6 and np.mean(own) > np.mean(others) + .2
    assert effect.score(r, Explanation('x', None)).more['why'] == 'the explanation names no tokens'
    with pytest.raises(BadInput, match='the unembedding reads 16'): LogitEffect(lm, SAE(8, 16))

def test_units_of_a_sparse_block_are_features_too(lm, tmp_path):
    sparse = sparsify_feedforward(lm, FeedForwardSpec('topk', expansion=2, k=4), [1]).eval()
    ids = torch.randint(2, 60, (80, 20), generator=torch.Generator().manual_seed(0)); use = torch.ones(80, 20, dtype=torch.bool)
    coder = feedforwards(sparse)[1].coder()
    c = FeatureCache.create(tmp_path/'c', coder, (sparse, Contexts(ids, use.long(), use, np.arange(80))), Site('gpt_neox.layers.1.mlp', 'input'), progress=False)
    r = interpret(c, living(c, 5), TokenStatistics(), [LexicalDetection(), LogitEffect(sparse, coder, draws=0)], length=10, progress=False)
    assert r.frame.score.notna().all() and r.summary().score[0] > r.summary().control[0]

def test_the_report_stands_alone(cache_, tmp_path):
    r = go(cache_, None)
    page = r.to_html(tmp_path/'r.html').read_text()
    assert 'LexicalDetection' in page and 'http' not in page.replace('http://www.w3.org', '') and '<script' not in page
    assert 'median' not in repr(r) and 'LexicalDetection' in r._repr_html_()

# ---- real text

@pytest.fixture(scope='module')
def stories(shared, tmp_path_factory):
    "A model trained on real stories, and the features of an SAE trained for a minute on its third block."
    model, tok = load_model(shared('models/stories260K'))
    ctx = contexts(tok, read_documents(shared('data/tinystories/small.txt')), 128)
    site = sites.site(model, 2)
    x = activations(model, ctx, site, progress=False)
    sae = SAE(x.shape[1], 512, k=16, site=site, seed=0)
    train_sae(sae, x, TrainConfig(steps=600, batch=1024, seed=0), progress=False)
    return model, tok, ctx, sae.eval(), FeatureCache.create(tmp_path_factory.mktemp('s')/'c', sae, (model, ctx), progress=False)

@pytest.mark.slow
def test_words_explain_features_of_a_model_of_real_text_and_anothers_words_do_not(stories):
    model, tok, ctx, sae, features = stories
    r = interpret(features, living(features, 100), TokenStatistics(), LexicalDetection(), tokenizer=tok, progress=False)
    s = r.summary().iloc[0]
    assert s.score >= .70 and .45 <= s.control <= .55 and s.score_low > s.control_high

@pytest.mark.slow
def test_the_word_before_explains_more_of_them(stories):
    model, tok, ctx, sae, features = stories
    fs = living(features, 60, seed=1)
    a, b = (interpret(features, fs, TokenStatistics(c), [LexicalDetection(0), Simulation()], tokenizer=tok, progress=False).frame for c in (False, True))
    for k in ('LexicalDetection', 'Simulation'):
        more = (b.score - a.score)[a.scorer == k]
        assert more.median() > .05 and (more > 0).mean() > .9
    assert abs(b.control[b.scorer == 'LexicalDetection'].median() - .5) < .05

# --- what is easily got wrong

def test_odd_line_breaks_in_a_text_do_not_damage_a_report(cache_, tmp_path):
    class Says:
        def explain(self, r): return Explanation('one\u2028two\x85three', dict(id=[7], before=[-1], weight=[1.], mean=[1.], n=[1]))
    go = lambda: interpret(cache_, [0, 1], Says(), LexicalDetection(0), length=12, path=tmp_path/'r.jsonl', progress=False)
    assert go().frame.equals(go().frame) and Interpretation.load(tmp_path/'r.jsonl').explanation(0).text == 'one\u2028two\x85three'

def test_what_failed_is_asked_again_if_wished(cache_, tmp_path):
    up, asked = [], []
    class Sometimes:
        def explain(self, r):
            asked.append(r.feature)
            return TokenStatistics().explain(r) if up or r.feature == 0 else Explanation('', None, dict(failed='no connection'))
    go = lambda **kw: interpret(cache_, [0, 1, 4], Sometimes(), LexicalDetection(0), length=12, path=tmp_path/'r.jsonl', progress=False, **kw)
    f = go().frame
    assert f.failures.tolist() == [0, *f.n[:0], *[len(Records(cache_, length=12)[i].test) for i in (1, 4)]] and f.score.isna().tolist() == [False, True, True]
    up.append(1)
    assert go().frame.equals(f) and asked == [0, 1, 4]
    again = go(retry=True)
    assert asked == [0, 1, 4, 1, 4] and again.frame.score.notna().all() and again.frame.feature.tolist() == [0, 1, 4] and Interpretation.load(tmp_path/'r.jsonl').frame.equals(again.frame)

def test_an_unfinished_report_can_be_looked_at(cache_, tmp_path):
    interpret(cache_, [0, 1], TokenStatistics(), LexicalDetection(0), length=12, path=tmp_path/'r.jsonl', progress=False)
    lines = (tmp_path/'r.jsonl').read_text().splitlines(keepends=True)
    (tmp_path/'r.jsonl').write_text(''.join(lines[:2]))
    r = Interpretation.load(tmp_path/'r.jsonl')
    assert r.summary().features.tolist() == [0] and 'LexicalDetection' in r._repr_html_() and r.to_html(tmp_path/'r.html').is_file()

def test_another_tokenizer_or_another_embedding_is_another_interpretation(cache_, tmp_path):
    class Tok:
        all_special_ids, unk_token_id = [], None
        def __init__(self, sep): self.sep = sep
        def get_vocab(self): return {f'{self.sep}{i}': i for i in range(60)}
        def decode(self, ids, **kw): return ''.join(f'{self.sep}{i}' for i in ids)
        def convert_ids_to_tokens(self, i): return f'{self.sep}{i}'
        def batch_decode(self, rows, **kw): return [self.decode(r) for r in rows]
    class Embed:
        def __init__(self, n): self.n = n
        def encode(self, texts): return np.array([[len(t) % self.n, 1] for t in texts])
    go = lambda tok, n: interpret(cache_, [0, 1], TokenStatistics(), EmbeddingDetection(Embed(n).encode, 0), tokenizer=tok, length=12, shown=0, path=tmp_path/'r.jsonl', progress=False)
    go(Tok(' '), 3); go(Tok(' '), 3)
    with pytest.raises(BadInput, match='tokenizer='): go(Tok('_'), 3)
    with pytest.raises(BadInput, match='scorers='): go(Tok(' '), 5)

def test_equal_documents_are_on_one_side(tmp_path):
    c = made(tmp_path/'c', planted, 5, rows=120, docs=np.arange(120))
    ctx = c.contexts()
    twice = Contexts(*(torch.cat([t, t]) for t in (ctx.input_ids, ctx.attention_mask, ctx.use)), np.arange(240))
    m = Given(planted, 5); c = FeatureCache.create(tmp_path/'twice', type('Coder', (), dict(n=5, d_in=5, encode=lambda self, x: pack(x)))(), (m.eval(), twice), Site('site'), progress=False)
    r = Records(c, length=12, n_train=None, n_test=None)[0]
    assert not {x.tobytes() for x in r.train.ids} & {x.tobytes() for x in r.test.ids}

def test_one_document_still_has_intervals(tmp_path):
    c = made(tmp_path/'c', planted, 5, docs=np.zeros(300, int))
    s = LexicalDetection().score(r := Records(c, length=12)[1], TokenStatistics().explain(r))
    assert s.low < s.score < s.high or s.high == s.score == 1
    assert not set(r.train.row) & set(r.test.row)

def test_special_tokens_of_a_foreign_cache_are_no_text(tmp_path):
    c = made(tmp_path/'c', lambda ids: torch.stack([ids == 7, ids == 5], -1).float(), 2)
    class Tok: all_special_ids = [5]
    r = Records(c, Tok(), length=12)
    assert r[1].firings == 0 and not (r[0].train.use & (r[0].train.ids == 5)).any() and (r[0].train.ids == 5).any()
    plain = Records(c, length=12)
    near = lambda rec: rec.nearest(0, 'cooccurring')
    assert near(plain) == near(r) == [1] # tokens of the cache are numbered as they were

def test_a_pair_at_the_beginning_is_not_taken_for_any_token(tmp_path):
    ids = torch.randint(8, 60, (200, 20), generator=torch.Generator().manual_seed(0)); ids[:100, 0] = 7; ids[100:, 5] = 7
    use = torch.ones_like(ids).bool()
    m = Given(lambda i: ((i == 7) & (torch.arange(i.shape[1]) == 0))[..., None].float(), 1)
    c = FeatureCache.create(tmp_path/'c', type('Coder', (), dict(n=1, d_in=1, encode=lambda self, x: pack(x)))(), (m.eval(), Contexts(ids, use.long(), use, np.arange(200))), Site('site'), progress=False)
    e = TokenStatistics(context=True).explain(Records(c, length=10)[0])
    assert len(set(zip(e.weights['id'], e.weights['before']))) == len(e.weights['id']) == 1

def test_right_marks_are_no_stronger_than_wrong_ones_and_differ_between_features(cache_):
    ex = Records(cache_, length=12)[0].test
    rights = [records.fuzzed(ex, feature=f)[2] for f in range(40)]
    n = len(rights[0])
    assert all(abs(r.sum() - n/2) <= .5 and abs(np.flatnonzero(r).mean() - (n - 1)/2) <= .76 for r in rights) and len({r.tobytes() for r in rights}) == 40

def test_a_foreign_coder_is_refused_where_logits_are_asked_about(lm, tmp_path):
    site = sites.site(lm, 0); a, b = (SAE(16, 24, k=4, site=site, seed=s) for s in (0, 1))
    ids = torch.randint(2, 60, (60, 20), generator=torch.Generator().manual_seed(0)); use = torch.ones(60, 20, dtype=torch.bool)
    c = FeatureCache.create(tmp_path/'c', a, (lm, Contexts(ids, use.long(), use, np.arange(60))), progress=False)
    r = Records(c, length=10)[living(c, 1, 1)[0]]
    with pytest.raises(BadInput, match='is not the SAE that made this cache'): LogitEffect(lm, b).explain(r)
    assert LogitEffect(lm, a).explain(r).weights and all(p.requires_grad for p in a.parameters()) # nobody froze it

def test_features_are_whole_numbers(cache_):
    go = lambda f: interpret(cache_, f, TokenStatistics(), LexicalDetection(0), length=12, progress=False).frame.feature.tolist()
    assert go(1) == go(np.int64(1)) == go(torch.tensor([1])) == [1]
    with pytest.raises(BadInput, match='whole numbers'): go([1.5])
    with pytest.raises(BadInput, match='unknown feature 5: this cache has 0 to 4'): go([0, 5])
    with pytest.raises(BadInput, match='no tokenizer was given'): interpret(cache_, [0], TokenStatistics(), EmbeddingDetection())
