"Merging two real fine-tunes of a real model, and what must hold of any merge."
import copy, functools, json

import numpy as np, pytest, torch

from saebook import joint as jt, merge as mg, sites, weights as wt
from saebook.core import BadInput
from saebook.joint import LinearMap, paired_activations, train_joint
from saebook.merge import MergedModel, compare_merges, distil, ensemble, fit_corrections, last_words, merge_weights, text_loss
from saebook.sae import JointSAE
from saebook.train import TrainConfig
from saebook.world import World, load_taught

SEEDS, LAST = (0, 1, 2), 4 # the last block: the site of the trials that the bars come from
three_seeds = pytest.mark.parametrize('seed', [0, *(pytest.param(s, marks=pytest.mark.long) for s in (1, 2))])

@pytest.fixture(scope='module')
def pair(shared): # base, both parents, tokenizer
    (base, tok), (a, _), (b, _) = (sites.load_model(shared(f'models/stories260K{n}')) for n in ('', '-shakespeare', '-sherlock'))
    return base, a, b, tok

@pytest.fixture(scope='module')
def texts(shared, pair): # rows of 256 tokens: of the first 90 % of the characters, and 60 of the last 10 %
    tok, out = pair[3], {}
    for d, f in dict(a='tinyshakespeare', b='sherlock').items():
        t = (shared(f'data/{f}')/'input.txt').read_text(encoding='utf-8')
        cut = int(len(t)*.9)
        fit, held = mg._rows(tok, t[:cut], 256), mg._rows(tok, t[cut:], 256)
        out[d] = fit, held[np.linspace(0, len(held) - 2, 60).astype(int)] # evenly over the text, without its last, shorter row
    stories = (shared('data/tinystories')/'valid.txt').read_text(encoding='utf-8').split('<|endoftext|>')
    rows = mg._rows(tok, [s.strip() for s in stories[:600]], 256)
    full = rows[(rows.attention_mask.sum(1) == 256).numpy()]
    out['neutral'] = full[:len(full)//2], full[len(full)//2:][:60]
    return out

def losses(texts, say, tok, domains=('a', 'b')): return np.array([text_loss(say, tok, texts[d][1]).loss for d in domains])
def some(texts, n): return {d: texts[d][0][torch.randperm(len(texts[d][0]), generator=torch.Generator().manual_seed(0))[:n].numpy()] for d in ('a', 'b')}

@pytest.fixture(scope='module')
def bars(pair, texts): # what a merge is measured by
    _, a, b, tok = pair
    L = functools.partial(losses, texts, tok=tok)
    return dict(own=np.array([L(a)[0], L(b)[1]]), ensemble=L(ensemble([a, b])).mean(), average=L(merge_weights([a, b])).mean())

def tell(capsys, what, loss, bars):
    with capsys.disabled(): print(f'\n{what}: {np.round(loss, 3)}, of the ensemble {loss.mean()/bars["ensemble"]:.3f}, of the average {loss.mean()/bars["average"]:.3f}, of the parents {np.round(loss/bars["own"], 3)}')

@pytest.mark.slow
@three_seeds
def test_a_translator_taught_for_the_merge(pair, texts, bars, seed, capsys):
    _, a, b, tok = pair
    fit = some(texts, 150)
    rows = mg.Contexts(*(torch.cat([getattr(c, k) for c in fit.values()]) for k in ('input_ids', 'attention_mask', 'use')), np.arange(300))
    code = train_joint([a, b], tok, rows, LAST, n=512, k=32, activation='topk', seed=seed, cfg=TrainConfig(steps=300, seed=seed), progress=False).sae
    before = losses(texts, MergedModel([a, b], LAST, copy.deepcopy(code)), tok)
    tell(capsys, f'crosscoder as it is, seed {seed}', before, bars)
    for name, t in dict(linear=LinearMap.identity(64), joint=code).items():
        m = MergedModel([a, b], LAST, t)
        m.fit(tok, fit, steps=100, batch=12, seed=seed, progress=False)
        now = losses(texts, m, tok)
        tell(capsys, f'fit {name}, seed {seed}', now, bars)
        assert now.mean() < before.mean()
        assert now.mean() <= 1.04*bars['ensemble'] and now.mean() <= .95*bars['average'] and (now <= 1.12*bars['own']).all()

@pytest.mark.slow
@three_seeds
def test_one_model_from_two(pair, texts, bars, seed, capsys):
    _, a, b, tok = pair
    start, teachers, fit = merge_weights([a, b]), dict(a=a, b=b), {d: texts[d][0] for d in 'ab'}
    m, _ = distil(start, tok, fit, teachers, steps=300, seed=seed, progress=False)
    now = losses(texts, m, tok)
    tell(capsys, f'distilled, seed {seed}', now, bars)
    assert now.mean() <= 1.03*bars['ensemble'] and now.mean() <= .92*bars['average'] and (now <= 1.10*bars['own']).all()
    assert {k: p.shape for k, p in m.named_parameters()} == {k: p.shape for k, p in a.named_parameters()}
    x = dict(input_ids=torch.ones(2, 64, dtype=torch.long), attention_mask=torch.ones(2, 64, dtype=torch.long))
    assert mg.forward_cost(mg.says(m), x) == mg.forward_cost(mg.says(a), x)
    few, _ = distil(start, tok, fit, teachers, steps=100, windows=24, seed=seed, progress=False)
    now = losses(texts, few, tok)
    tell(capsys, f'distilled from 24 windows a domain, seed {seed}', now, bars)
    assert now.mean() <= .97*bars['average']

@pytest.mark.slow
def test_corrections_sparse_and_dense_at_equal_text_and_size(pair, texts, bars, capsys):
    _, a, b, tok = pair
    start, fit = merge_weights([a, b]), {d: texts[d][0] for d in 'ab'}
    for kind in mg.CORRECTIONS:
        c, _ = fit_corrections(start, tok, fit, dict(a=a, b=b), kind, steps=100, progress=False)
        with c.attach(start): now = losses(texts, start, tok)
        tell(capsys, f'{kind} corrections of {sum(p.numel() for p in c.parameters()):,} numbers', now, bars)
        assert now.mean() < .97*bars['average']

@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('seed', SEEDS)
def test_the_base_teaches_what_both_have_lost(pair, texts, bars, seed, capsys):
    "With the base as a third teacher text of neither domain is told better, intervals apart, and both domains keep their bars."
    base, a, b, tok = pair
    start, fit, found = merge_weights([a, b]), {d: texts[d][0] for d in ('a', 'b', 'neutral')}, {}
    for w in (0., .5):
        m, _ = distil(start, tok, fit, dict(a=a, b=b, neutral=base), weights=dict(neutral=w), steps=300, batch=8 if w == 0 else 12, seed=seed, progress=False) # as many windows of both domains with it as without
        t = text_loss(m, tok, texts['neutral'][1])
        found[w] = now, t = losses(texts, m, tok), t
        tell(capsys, f'base with weight {w}, seed {seed}, neutral {t.loss:.3f} [{t.low:.3f}, {t.high:.3f}]', now, bars)
        assert now.mean() <= 1.03*bars['ensemble'] and now.mean() <= .92*bars['average'] and (now <= 1.10*bars['own']).all()
    assert found[.5][1].high < found[0.][1].low

# ---- another width

@pytest.fixture(scope='module')
def narrow(shared, texts, pair): # a model of width 48 on the same tokens
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    m = LlamaForCausalLM(LlamaConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3, intermediate_size=128, vocab_size=512, max_position_embeddings=512, bos_token_id=1, eos_token_id=2))
    opt, rows = torch.optim.AdamW(m.parameters(), 3e-3), texts['b'][0].input_ids
    for step in range(250):
        for g in opt.param_groups: g['lr'] = 3e-3*min(1, (step + 1)/20, (250 - step)/100)
        x = rows[torch.randint(0, len(rows) - 1, (12,))]
        opt.zero_grad(); torch.autograd.backward(m(input_ids=x, labels=x).loss); opt.step()
    return m.eval()

@pytest.mark.slow
@three_seeds
def test_the_crosscoder_translates_between_widths_better_than_ridge(pair, texts, narrow, seed, capsys):
    _, a, _, tok = pair
    fit = mg.Contexts(*(torch.cat([getattr(c, k) for c in some(texts, 150).values()]) for k in ('input_ids', 'attention_mask', 'use')), np.arange(300))
    held = mg.Contexts(*(torch.cat([getattr(texts[d][1], k)[:, :256] for d in 'ab']) for k in ('input_ids', 'attention_mask', 'use')), np.arange(120))
    at = [sites.site(narrow, 1), sites.site(a, 3)]
    acts, tests = (paired_activations([narrow, a], tok, c, at, progress=False)[0] for c in (fit, held))
    code = train_joint(acts, n=512, k=32, activation='topk', seed=seed, cfg=TrainConfig(steps=500, seed=seed), progress=False).sae
    t = jt.cross_fvu(code, tests, acts).set_index(['source', 'target'])
    with capsys.disabled(): print(f"\nseed {seed}: 48 -> 64: crosscoder {t.joint[0, 1]:.3f}, ridge {t.ridge[0, 1]:.3f}; 64 -> 48: {t.joint[1, 0]:.3f}, {t.ridge[1, 0]:.3f}")
    assert t.joint[0, 1] <= .95*t.ridge[0, 1] and t.joint[1, 0] <= .95*t.ridge[1, 0]
    m = MergedModel([a, narrow], [[sites.site(a, 3), sites.site(narrow, 1)]], train_joint(acts[::-1], n=256, k=16, activation='topk', seed=seed, cfg=TrainConfig(steps=50), progress=False).sae)
    assert m.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=4, do_sample=False, pad_token_id=0).shape == (1, 7)

# ---- what holds of any merge

@pytest.fixture(scope='module')
def world():
    (base, tok), (s, _), (i, _) = map(load_taught, ('base', 'stories', 'instructions'))
    w = World(0)
    return base, s, i, tok, list(w.domain('stories', 40, 'test').text), list(w.domain('instructions', 40, 'test').text)

def tiny(kind='llama', d=16, seed=0, vocab=40):
    import transformers as tf
    torch.manual_seed(seed)
    if kind == 'llama': cfg = tf.LlamaConfig(hidden_size=d, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24, vocab_size=vocab, max_position_embeddings=64)
    elif kind == 'gpt2': cfg = tf.GPT2Config(n_embd=d, n_layer=4, n_head=2, vocab_size=vocab, n_positions=64, bos_token_id=0, eos_token_id=1)
    else: cfg = tf.GPTNeoXConfig(hidden_size=d, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=vocab, max_position_embeddings=64)
    return tf.AutoModelForCausalLM.from_config(cfg).eval()

IDS = torch.randint(3, 40, (4, 9), generator=torch.Generator().manual_seed(0))
def logits(m, ids=IDS): return sites.forward(m, dict(input_ids=ids, attention_mask=torch.ones_like(ids))).logits

def twin_code(d, seed=0): # a joint SAE whose two sides are one SAE
    code = JointSAE([d, d], 32, 'topk', 4, seed=seed).eval()
    with torch.no_grad():
        code.b_enc.normal_(0, .1); code.b_dec.copy_(torch.randn(d).repeat(2)); code.center.copy_(torch.randn(d).repeat(2))
        code.W_enc.copy_(code.enc(0).clone().repeat(2, 1)); code.W_dec.copy_(code.dec(0).clone().repeat(1, 2))
    return code

@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'neox'])
def test_a_model_merged_with_itself_is_itself(kind):
    m = tiny(kind); own = logits(m)
    assert torch.equal(logits(merge_weights([m, m])), own) and torch.equal(logits(wt.passthrough(m, [(0, sites.n_layers(m))])), own)
    assert torch.equal(logits(MergedModel([m, m], 1)), own) # the mean of twice the same
    assert torch.allclose(logits(MergedModel([m, m], 1, twin_code(16), rule='error')), own, atol=1e-4)
    base = tiny(kind, seed=1)
    for method, kw in dict(slerp={}, task_arithmetic=dict(weights=[.5, .5]), ties=dict(density=1.)).items():
        assert torch.allclose(logits(merge_weights([m, m], base, method, **kw)), own, atol=1e-4), method
    grams = [wt.collect_grams(m, None, mg.Contexts(IDS, torch.ones_like(IDS), torch.ones_like(IDS).bool(), np.arange(4)), progress=False)]*2
    assert torch.allclose(logits(merge_weights([m, m], method='regmean', grams=grams)), own, atol=1e-4)

def test_a_translating_code_of_a_model_with_itself_reports_its_gap(capsys):
    m = tiny()
    h = sites.read(m, torch.randint(3, 40, (200, 9)), s := sites.site(m, 1))[s].flatten(0, 1)
    code = train_joint([h, h], n=64, k=4, activation='topk', cfg=TrainConfig(steps=300), progress=False).sae
    gaps = lambda code: {r: (logits(MergedModel([m, m], 1, code, rule=r)) - logits(m)).abs().max().item() for r in mg.RULES}
    gap, raw = gaps(code), gaps(JointSAE([16, 16], 64, 'topk', 4, seed=3).eval())
    with capsys.disabled(): print(f'\na trained code of a model with itself moves its logits by {gap}, an untrained one by {raw}')
    assert gap['mean'] < raw['mean'] # an untrained code moves them further

def test_the_original_rule_is_its_formula():
    a, b = tiny(seed=0), tiny(seed=1)
    code = JointSAE([16, 16], 32, 'relu', kind='aligned')
    with torch.no_grad(): [p.add_(torch.randn_like(p)*.2) for p in code.parameters()]; code.center.normal_()
    s = sites.site(a, 1)
    ha, hb = (sites.read(m, IDS, s)[s] for m in (a, b))
    z = torch.relu((hb - code.center[16:]) @ code.W_enc[16:] + code.b_enc)
    want = (ha + z @ code.W_dec[:, :16] + code.b_dec[:16])/2
    with sites.patch(a, {s: lambda h: want}): want = logits(a)
    assert torch.allclose(logits(MergedModel([a, b], 1, code)), want, atol=1e-5)

@pytest.mark.parametrize('layers', [0, 1, 2, -1, -2, [0, 2]])
def test_every_block_up_to_the_site_runs_once(layers):
    ms, runs = [tiny(seed=s) for s in range(3)], []
    m = MergedModel(ms, layers)
    for j, p in enumerate(ms):
        for i, b in enumerate(p.model.layers): b.register_forward_hook(lambda *_, k=(j, i): runs.append(k))
    m(input_ids=IDS)
    last = max(l % 3 for l in (layers if isinstance(layers, list) else [layers]))
    assert sorted(runs) == [(0, i) for i in range(3)] + [(j, i) for j in (1, 2) for i in range(last + 1)]

def test_a_weight_of_zero_is_the_first_model_to_the_bit():
    a, b = tiny(seed=0), tiny('gpt2', d=12, seed=1)
    m = MergedModel([a, b], [[sites.site(a, 1), sites.site(b, 2)]], LinearMap(torch.randn(12, 16), torch.randn(16)), weight=0)
    assert torch.equal(logits(m), logits(a))

@pytest.mark.parametrize('rule', mg.RULES)
@pytest.mark.parametrize('kw', [dict(num_beams=3), dict(), dict(num_beams=2, num_return_sequences=2)], ids=str)
def test_generate_with_a_cache_and_without(rule, kw):
    a, b = tiny(seed=0), tiny('gpt2', d=12, seed=1)
    code = JointSAE([16, 12], 32, 'topk', 4).eval()
    m = MergedModel([a, b], [[sites.site(a, 0), sites.site(b, 1)], [sites.site(a, 2), sites.site(b, 3)]], [code, JointSAE([16, 12], 24, 'topk', 3, seed=1).eval()], rule)
    mask = torch.ones_like(IDS); mask[0, :4] = 0
    one, two = (m.generate(input_ids=IDS, attention_mask=mask, max_new_tokens=7, do_sample=False, pad_token_id=0, use_cache=c, **kw) for c in (True, False))
    assert torch.equal(one, two)
    with torch.no_grad(): whole = m(input_ids=IDS).logits; first = m(input_ids=IDS[:, :5], use_cache=True); rest = m(input_ids=IDS[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    assert torch.allclose(torch.cat([first.logits, rest.logits], 1), whole, atol=1e-5)

@pytest.mark.parametrize('side', ['left', 'right'])
def test_rows_and_padding(side):
    m = MergedModel([tiny(seed=0), tiny('neox', seed=1)], [[sites.Site('model.layers.1'), sites.Site('gpt_neox.layers.0')]], JointSAE([16, 16], 32, 'topk', 4).eval())
    rows = [IDS[0, :9], IDS[1, :4], IDS[2, :6]]
    ids, mask = sites.padded([r.tolist() for r in rows], side, 0), sites.padded([[1]*len(r) for r in rows], side)
    out = sites.forward(m, dict(input_ids=ids, attention_mask=mask)).logits
    for i, r in enumerate(rows): assert torch.allclose(out[i][mask[i].bool()], logits(m, r[None])[0], atol=1e-5)

@pytest.mark.parametrize('grads', ['short', 'whole'])
def test_the_short_way_of_fitting_is_the_long_one(grads):
    a, b = tiny(seed=0), tiny(seed=1)
    def losses_of(place):
        m = MergedModel([a, b], place, [LinearMap.identity(16), JointSAE([16, 16], 32, 'topk', 4).eval()])
        rows = mg.Contexts(IDS, torch.ones_like(IDS), torch.ones_like(IDS).bool(), np.arange(4))
        lessons = mg._Lessons(None, dict(x=rows), dict(x=b), length=9)
        heard = mg._Parents(m, lessons, 16)
        assert heard.short
        for said in (heard.said, mg._as_taught(m, lessons)):
            m.zero_grad(); loss = said('x', torch.arange(4), dict(input_ids=IDS, attention_mask=torch.ones_like(IDS)))
            torch.autograd.backward(loss); yield loss.item(), [p.grad.clone() for p in m.translators.parameters() if p.grad is not None]
    (l, g), (m, h) = losses_of([0, 2] if grads == 'short' else [1, 2])
    assert abs(l - m) < 1e-6 and all(torch.allclose(x, y, atol=1e-5) for x, y in zip(g, h))
    assert 'forward' not in a.model.layers[0].__dict__ # nothing is left behind

def test_fitting_leaves_the_parents_as_they_were(world):
    base, s, i, tok, texts_s, texts_i = world
    before = [p.clone() for p in (*s.parameters(), *i.parameters())]
    m = MergedModel([s, i], 2, LinearMap.identity(128))
    h = m.fit(tok, dict(stories=texts_s[:20], instructions=texts_i[:20]), steps=3, progress=False)
    assert list(h.columns) == ['step', 'loss', 'stories', 'instructions'] and all(torch.equal(p, q) and p.grad is None and p.requires_grad for p, q in zip((*s.parameters(), *i.parameters()), before))
    again = MergedModel([s, i], 2, LinearMap.identity(128)); again.fit(tok, dict(stories=texts_s[:20], instructions=texts_i[:20]), steps=3, progress=False)
    assert torch.equal(again.translators[0][0].weight, m.translators[0][0].weight) # one seed, one result

def test_three_models_and_other_places(world):
    base, s, i, tok, *_ = world
    m = MergedModel([s, i, base], sites.site(s, 1, 'mlp') and [[sites.site(p, 1, 'mlp') for p in (s, i, base)]])
    m.translators = torch.nn.ModuleList([torch.nn.ModuleList([LinearMap.identity(128), LinearMap.identity(128)])])
    h = m.fit(tok, dict(a=world[4][:8], b=world[5][:8], c=world[4][8:12]), steps=2, progress=False) # no block's end: the long way
    assert np.isfinite(h.loss).all()

def test_synthetic_pairs():
    "At least 90 % of the true directions are found at a cosine of .9, with the right owner: three seeds."
    import torch.nn.functional as F
    for seed in SEEDS:
        acts, true = jt.toy_pairs(seed=seed)
        code = train_joint(acts, n=64, k=3, seed=seed, cfg=TrainConfig(steps=2500, lr=3e-3, seed=seed), progress=False).sae
        scaled = lambda parts: F.normalize(torch.cat([p/u for p, u in zip(parts, code.unit)], 1), dim=1)
        best, which = (scaled(true) @ scaled([code.dec(0), code.dec(1)]).detach().T).max(1)
        truth = torch.stack([d.norm(dim=1) > 0 for d in true], 1)
        assert ((best > .9) & (jt.whose(code)[which] == truth).all(1)).float().mean() >= .9

@pytest.mark.parametrize('make,says', [
    (lambda: MergedModel([tiny(), tiny(vocab=50)], 1), 'vocabularies of 40, 50 tokens'),
    (lambda: MergedModel([tiny(), tiny(d=24)], 1), 'without a translator'),
    (lambda: MergedModel([tiny(), tiny(d=24)], 1, JointSAE([16, 16], 8, 'topk', 2)), 'a joint SAE of widths [16, 16]'),
    (lambda: MergedModel([tiny(), tiny(d=24)], 1, LinearMap(torch.ones(24, 8), torch.ones(8))), 'from width 24 gave width 8'),
    (lambda: MergedModel([tiny(), tiny()], 7), 'unknown layer 7'),
    (lambda: MergedModel([tiny(), tiny()], 1, weight=2), 'from 0 to 1'),
    (lambda: MergedModel([tiny(), tiny()], 1, rule='sum'), "choose one of 'mean', 'error'"),
    (lambda: MergedModel([tiny(), tiny()], 1).fit(None, dict(x=mg.Contexts(IDS, IDS*0 + 1, IDS > 0, np.arange(4)), y=mg.Contexts(IDS, IDS*0 + 1, IDS > 0, np.arange(4)))), 'without weights'),
    (lambda: merge_weights([tiny(), tiny(d=24)]), 'MergedModel'),
    (lambda: distil(tiny(), None, dict(x=None), dict(y=tiny())), 'a teacher and texts for each domain'),
    (lambda: compare_merges(dict(a=tiny()), None, object(), dict(a='x'), dict(a='x')), 'a merge needs two'),
    (lambda: compare_merges(dict(a=tiny(), b=tiny(d=24)), None, object(), dict(a='x', b='x'), dict(a='x', b='x'), methods=['linear']), 'models of one shape'),
    (lambda: compare_merges(dict(a=tiny(), b=tiny()), None, object(), dict(a='x', b='x'), dict(a='x', b='x'), methods=['ties']), 'needs the base model'),
    (lambda: compare_merges(dict(a=tiny(), b=tiny()), None, object(), dict(a='x'), dict(a='x', b='x')), "domain with text to learn from 'b'"),
    (lambda: MergedModel.from_pretrained('nowhere'), 'has no merged.json'),
    (lambda: train_joint([torch.randn(9, 4), torch.randn(8, 4)]), 'of the same tokens'),
    (lambda: train_joint([tiny(), tiny()]), 'without a tokenizer'),
    (lambda: train_joint([torch.randn(9, 4), torch.ones(9, 4)], n=8, k=2, cfg=TrainConfig(steps=1)), 'model 1 are all equal'),
], ids=lambda x: x if isinstance(x, str) else '')
def test_bad_input_is_one_sentence(make, says):
    with pytest.raises(BadInput) as e: make()
    assert says in str(e.value) and '\n' not in str(e.value)

@pytest.mark.parametrize('make', [lambda d: JointSAE(d, 24, 'batch_topk', 3), lambda d: JointSAE(d, 24, 'relu', kind='universal'), lambda d: JointSAE(d, 24, 'topk', 3, 'aligned'), lambda d: JointSAE([*d, 5], 24, 'jump_relu')])
def test_a_joint_sae_of_any_kind_trains_saves_and_goes_on(make, tmp_path):
    j = make([6, 9])
    x = jt.beside(jt.toy_pairs(1000, j.widths, 8, [2]*j.models, k=2)[0]) + 3
    r = train_joint_like(j, x, tmp_path/'run')
    assert r.history.fvu.iloc[-1] < r.history.fvu.iloc[0]
    back = JointSAE.from_pretrained(j.save_pretrained(tmp_path/'j'))
    assert torch.equal(back(x), j(x)) and (back.widths, back.kind, back.align) == (j.widths, j.kind, j.align) and torch.equal(back.unit, j.unit)
    again = make([6, 9]); again = train_joint_like(again, x, tmp_path/'run').sae # the finished run is gone on with
    assert torch.equal(again.W_dec, j.W_dec)

def train_joint_like(j, x, path):
    from saebook.train import train_sae
    return train_sae(j, x, TrainConfig(steps=120, batch=64, warmup=10, log_every=10), progress=False, path=path, save_every=60)

def test_last_words_of_a_file(tmp_path, world):
    tok = world[3]
    (tmp_path/'x.jsonl').write_text('\n'.join(json.dumps(dict(text=t)) for t in world[4][:5]))
    got = last_words(world[1], tok, tmp_path/'x.jsonl')
    assert got['n'] == 5 and 0 <= got['accuracy'] <= 1 and got == last_words(world[1], tok, world[4][:5], batch=2)

def test_a_table_goes_on_where_it_was(world, tmp_path):
    base, s, i, tok, a, b = world
    call = functools.partial(compare_merges, dict(s=s, i=i), base, tok, dict(s=a, i=b), dict(s=a[:6], i=b[:6], neutral=a[6:12]), seeds=(0, 1), n=64, k=8, joint_steps=3, fit_steps=2, distil_steps=2, path=tmp_path, progress=False)
    part = call(methods=['parents', 'distil'])
    f = call(methods=['parents', 'distil', 'sparse', 'fit joint', 'original', 'regmean', 'slerp'])
    assert f.iloc[:len(part)].equals(part) and set(f.method) == {'parent s', 'parent i', 'distil', 'sparse', 'fit joint', 'original', 'regmean', 'slerp'}
    assert f[f.domain == 'neutral'].score.isna().all() and (f[f.method == 'parent s'].iloc[0].score == 1)
    assert f.groupby('method').forward_cost.first()['distil'] == 1 < f.groupby('method').forward_cost.first()['fit joint'] and f.groupby('method').parameters.first()['sparse'] > 1
    with pytest.raises(BadInput, match='holds another table'): call(methods=['parents'], n=65)

def test_rows_that_do_not_fill_a_batch(world):
    assert np.isfinite(text_loss(world[1], world[3], world[4][:17]).loss) # sixteen and one

def test_a_teacher_that_is_the_corrected_model_speaks_without_the_corrections(world):
    _, s, i, tok, a, b = world
    rows = dict(a=a[:6], b=b[:6])
    own, other = (fit_corrections(s, tok, rows, dict(a=t, b=i), n=16, k=4, steps=3, seed=0, progress=False)[1] for t in (s, copy.deepcopy(s)))
    assert own.equals(other)

def test_models_in_training_are_judged_in_eval_mode_and_left_as_they_were():
    m = tiny('gpt2').train()
    rows = mg.Contexts(IDS, torch.ones_like(IDS), IDS > 0, np.arange(4))
    assert text_loss(m, None, rows).loss == text_loss(m, None, rows).loss and m.training and m.transformer.h[0].training

def test_a_forward_of_its_own_is_given_back():
    a = tiny(); own = a.model.layers[0].forward; a.model.layers[0].forward = own
    with mg._only_after(a, sites.site(a, 0)): pass
    assert a.model.layers[0].__dict__['forward'] is own

def test_what_is_kept_of_a_merged_model(tmp_path):
    m = MergedModel([tiny(), tiny(seed=1)], 1, LinearMap.identity(16)).bfloat16()
    m.generation_config.max_new_tokens = 3
    back = MergedModel.from_pretrained(m.save_pretrained(tmp_path))
    assert back.generation_config.max_new_tokens == 3 and back.translators[0][0].weight.dtype == torch.bfloat16 and torch.equal(logits(back), logits(m))
    with pytest.raises(BadInput, match='that is a Linear'): MergedModel([tiny(), tiny()], 1, torch.nn.Linear(16, 16)).save_pretrained(tmp_path/'new')
    assert not (tmp_path/'new').exists()

def test_a_training_of_another_kind_is_not_gone_on_with(tmp_path):
    x = torch.randn(200, 12)
    train_joint_like(JointSAE([6, 6], 24, 'topk', 3), x, tmp_path)
    with pytest.raises(BadInput, match='holds another training'): train_joint_like(JointSAE([6, 6], 24, 'topk', 3, 'universal'), x, tmp_path)

def test_a_table_of_other_models_is_not_gone_on_with(world, tmp_path):
    base, s, i, tok, a, b = world
    call = lambda p, **kw: compare_merges(p, None, tok, dict(s=a[:6], i=b[:6]), dict(s=a[6:10], i=b[6:10]), methods=['linear'], path=tmp_path, progress=False, **kw)
    call(dict(s=s, i=i)); call(dict(s=s, i=i), save='linear')
    assert (tmp_path/'linear'/'config.json').is_file()
    with pytest.raises(BadInput, match='holds another table'): call(dict(s=base, i=i))

def test_three_parents_and_parents_of_other_depth_in_one_table(world):
    base, s, i, tok, a, b = world
    f = compare_merges(dict(s=s, i=i, x=base), base, tok, dict(s=a[:6], i=b[:6], x=a[6:12]), dict(s=a[12:15], i=b[12:15], x=a[15:18]), methods=['linear', 'fit joint', 'distil'], n=64, k=8, joint_steps=2, fit_steps=2, distil_steps=2, length=64, progress=False)
    assert np.isfinite(f.loss).all() and len(f) == 9
    with pytest.raises(BadInput, match='goes between two models'): compare_merges(dict(s=s, i=i, x=base), base, tok, dict(s=a, i=b, x=a), dict(s=a, i=b, x=a), methods=['slerp'])
    short = wt.passthrough(i, [(0, 2)])
    f = compare_merges(dict(s=s, i=short), None, tok, dict(s=a[:6], i=b[:6]), dict(s=a[6:9], i=b[6:9]), methods=['ridge', 'fit linear'], fit_steps=2, length=64, progress=False)
    assert np.isfinite(f.loss).all()

def test_a_cached_step_of_rows_padded_on_the_left():
    m = MergedModel([tiny('gpt2'), tiny('gpt2', seed=1)], 1, LinearMap(torch.randn(16, 16)*.2, torch.randn(16)))
    mask = torch.ones_like(IDS); mask[0, :4] = 0
    with torch.no_grad():
        whole = m(input_ids=IDS, attention_mask=mask).logits
        first = m(input_ids=IDS[:, :6], attention_mask=mask[:, :6], use_cache=True)
        rest = m(input_ids=IDS[:, 6:], attention_mask=mask, past_key_values=first.past_key_values, use_cache=True).logits # nobody gives position ids
    assert torch.allclose(rest, whole[:, 6:], atol=1e-5)

def test_what_else_a_model_of_hugging_face_gives():
    m = MergedModel([tiny(), tiny(seed=1)], 1)
    with torch.no_grad(): loss, said = m(input_ids=IDS, labels=IDS, return_dict=False)[:2]; out = m(input_ids=IDS, output_hidden_states=True)
    assert torch.equal(said, out.logits) and torch.isfinite(loss) and len(out.hidden_states) == 4
    with pytest.raises(BadInput, match='input_ids are missing'): m(inputs_embeds=torch.zeros(1, 2, 16))
    with pytest.raises(ValueError): m.generate(input_ids=IDS, max_new_tokens=2, cache_implementation='static')

def test_a_translator_in_another_precision_than_the_parents():
    m = MergedModel([tiny().bfloat16(), tiny(seed=1).bfloat16()], 1, torch.nn.Linear(16, 16))
    assert logits(m).dtype == torch.bfloat16 and torch.isfinite(logits(m)).all()

def test_places_are_layers_or_a_layer_a_model():
    a, b = tiny(), tiny('neox', seed=1)
    places = lambda at: [[s.path for s in p] for p in mg._places([a, b], at)]
    assert places(-1) == [['model.layers.2', 'gpt_neox.layers.1']] and places([0, 1]) == [['model.layers.0', 'gpt_neox.layers.0'], ['model.layers.1', 'gpt_neox.layers.1']]
    assert places([[2, 0]]) == places([[sites.site(a, 2), 0]]) == [['model.layers.2', 'gpt_neox.layers.0']]
    for at, says in (([[1, 1, 1]], '3 sites were given for 2 models'), ([], 'no place'), (sites.Site('model.layers.1', positions=[0]), 'positions of its own')):
        with pytest.raises(BadInput, match=says): mg._places([a, a], at)

def test_a_student_with_the_teachers_features(world):
    base, s, i, tok, a, b = world
    pairs, _ = paired_activations([s, i], tok, a[:20] + b[:20], 2, progress=False)
    joint = train_joint(pairs, n=128, k=8, activation='topk', cfg=TrainConfig(steps=60), progress=False).sae
    start, special = merge_weights([s, i]), sites.special_ids(tok)
    x = sites.tokenize(tok, a[20:28])
    apart = lambda m: mg._features_apart(m, joint, sites.site(m, 2), 0, s, x, special).item()
    teach = lambda **kw: distil(start, tok, dict(s=a[:20], i=b[:20]), dict(s=s, i=i), steps=20, progress=False, **kw)[0]
    assert apart(s) == 0 and apart(teach(joint=joint, at=2, feature_weight=5.)) < .9*apart(teach()) < apart(start)
    with pytest.raises(BadInput, match='name its place'): distil(start, tok, dict(s=a[:2]), dict(s=s), joint=joint)

def test_every_row_of_a_table_and_several_places(world):
    base, s, i, tok, a, b = world
    f = compare_merges(dict(s=s, i=i), base, tok, dict(s=a[:6], i=b[:6]), dict(s=a[6:9], i=b[6:9]), layer=[1, [3, 2]], n=64, k=8, joint_steps=2, fit_steps=2, distil_steps=2, length=64, progress=False)
    assert {m for m in mg.METHODS if m not in ('parents', 'ensembles')} <= set(f.method) and np.isfinite(f.loss).all()
    mean = f.groupby('method').loss.mean()
    assert abs(mean['aligned linear']/mean['linear'] - 1) < .01 # fine-tunes of one base stand in one basis
    assert mean['passthrough'] > mean['linear'] and f.groupby('method').parameters.first()['passthrough'] > 1

def test_intervals_over_texts_and_seeds(world):
    base, s, i, tok, a, b = world
    f = compare_merges(dict(s=s, i=i), base, tok, dict(s=a[:6], i=b[:6]), dict(s=a[6:14], i=b[6:14]), methods=['ensembles', 'linear', 'distil'], seeds=(0, 1), distil_steps=2, length=64, progress=False)
    t = mg.over_seeds(f, 'linear').set_index(['method', 'domain'])
    assert t.seeds['distil', 's'] == 2 and t.seeds['linear', 's'] == 1
    assert np.isclose(t.loss['distil', 's'], f[(f.method == 'distil') & (f.domain == 's')].loss.mean()) and np.isclose(t.loss['linear', 'mean'], f[f.method == 'linear'].loss.mean())
    assert (t.low < t.loss).all() and (t.loss < t.high).all()
    wide = (t.high - t.low)/t.loss
    assert (t.ratio_high - t.ratio_low)['distil', 'mean'] < .5*wide['distil', 'mean'] # what is compared on the same texts is known better
    with pytest.raises(BadInput, match='without its texts'): mg.over_seeds(f.__class__(f.to_dict()))

def test_a_joint_sae_learns_from_caches_as_from_memory(world, tmp_path):
    from saebook import cache
    base, s, i, tok, a, b = world
    ctx = cache.contexts(tok, a + b, 64)
    pairs, _ = paired_activations([s, i], tok, ctx, 2, progress=False)
    at = sites.site(s, 2)
    views = [cache.ActivationCache.create(tmp_path/n, m, ctx, at, torch.float32, progress=False)[at] for n, m in (('s', s), ('i', i))]
    train = lambda acts: train_joint(acts, n=128, k=8, activation='topk', cfg=TrainConfig(steps=150, window_mb=1), progress=False)
    from_disk, from_memory = train(views), train(pairs)
    assert from_disk.sae.sites == [at, at] and abs(from_disk.history.fvu.iloc[-1] - from_memory.history.fvu.iloc[-1]) < .03
    fvu = [jt.cross_fvu(r.sae, pairs).joint for r in (from_disk, from_memory)]
    assert np.abs(fvu[0] - fvu[1]).max() < .03
    with pytest.raises(BadInput, match="take loss='fvu'"): train_joint(views, cfg=TrainConfig(loss='ce'))

def test_a_table_counts_the_parents_domains_in_its_mean_with_or_without_a_base(world):
    base, s, i, tok, a, b = world
    call = lambda held, **kw: compare_merges(dict(s=s, i=i), None, tok, dict(s=a[:6], i=b[:6]), dict(s=a[6:9], i=b[6:9], **held), length=64, progress=False, **kw)
    f = call(dict(neutral=a[9:12]), methods=['linear'])
    t = mg.over_seeds(f).set_index('domain').loss
    assert np.isclose(t['mean'], (t['s'] + t['i'])/2)
    with pytest.raises(BadInput, match='give it another name'): call(dict(mean=a[9:12]), methods=['linear'])
    shallow = [wt.passthrough(m, [(0, 1)]) for m in (s, i)]
    with pytest.raises(BadInput, match='too few for that'): compare_merges(dict(s=shallow[0], i=shallow[1]), None, tok, dict(s=a[:6], i=b[:6]), dict(s=a[6:9], i=b[6:9]), methods=['passthrough'])
