"""Interventions: pyvene computes the same, nothing is left behind after an error, padding and the form of a block make no difference, and what the featurizers promise."""
import contextlib, itertools, json, os, shutil, subprocess, sys
from pathlib import Path

import numpy as np, pytest, torch, torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

from saebook.core import BadInput
from saebook.intervene import (BinaryMask, FixedMask, Intervention, Neurons, Pairs, Rotation, SAEFeaturizer, Subspace, ToyFacts, attribution, boundless_das, class_means, das, dbm,
                               fit_intervention, interchange, intervene, leace_subspace, load_intervention, mdas, pca_subspace, right, sae_mask, save_intervention, toy_pairs)
from saebook.sae import ACTIVATIONS, SAE, Transcoder
from saebook.sites import Site, forward, read, site
from saebook.world import World, load_planted, load_taught

here = Path(__file__).parent/'peers'
sys.path.insert(0, str(here))
import make as peers

close = lambda a, b, tol=1e-5: torch.testing.assert_close(a, b, atol=tol*max(1, b.abs().max().item()), rtol=0)
gen = lambda seed=0: torch.Generator().manual_seed(seed)
quick = dict(progress=False, epochs=2)

def gpt2(seed=0, **kw):
    import transformers as tf
    torch.manual_seed(seed)
    m = tf.GPT2LMHeadModel(tf.GPT2Config(**dict(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=32, bos_token_id=None, eos_token_id=None) | kw)).eval()
    for p in m.parameters():
        if p.ndim > 1: nn.init.normal_(p, std=.3) # large enough for every part to matter
    return m

def prompts_of(n=10, lengths=(3, 7, 4, 9, 5), seed=1): return [torch.randint(1, 40, (l,), generator=gen(seed + i)).tolist() for i, l in zip(range(n), itertools.cycle(lengths))]
def hooks(m): return sum(len(getattr(c, k)) for c in m.modules() for k in ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks'))
def state(m):
    "All that a function has no business to change."
    return (hooks(m), [(k, t.numpy().tobytes()) for k, t in m.state_dict().items()], [(k, p.requires_grad, p.grad is None) for k, p in m.named_parameters()], [(k, c.training) for k, c in m.named_modules()])

@pytest.fixture(scope='module')
def toy(): return ToyFacts()
@pytest.fixture(scope='module')
def taught(): return *load_taught('base'), load_planted()
at_toy = Site('site')

# --- pyvene

def pyvene_fixture(folder):
    "Saebook computes what is written there."
    import transformers as tf
    t, model = load_file(folder/'swap.safetensors'), tf.GPT2LMHeadModel.from_pretrained(folder/'model').eval()
    rotation = Rotation(*t['W'].shape)
    with torch.no_grad(): rotation.turn.weight = t['W']
    for f in (rotation, Subspace(t['W'])):
        iv = Intervention(f).eval()
        with torch.no_grad(): close(iv(t['h'], t['s']), t['expected'])
        where = site(model, 0)
        close(interchange(model, t['ids'][0], t['ids'][1], {where: iv}, {where: t['at'][0]}, {where: t['at'][1]}).logits, t['logits'])
    return t

def test_what_pyvene_wrote_is_computed_the_same(): pyvene_fixture(here/'fixtures'/'pyvene')

def test_pyvene_swaps_the_same_today(tmp_path):
    "The same rotation, on activations and inside a model that both load, each row at its own position; the fixture is what is written today."
    python = peers.venvs/'pyvene'/'bin'/'python'
    if not python.exists():
        why = 'no environment of pyvene: make it with benchmarks/peers.sh'
        if 'pyvene' in os.environ.get('SAEBOOK_PEERS', '').split(): pytest.fail(why)
        pytest.skip(f'compared with what pyvene wrote before alone, {why}')
    r = subprocess.run([python, here/'pyvene_swap.py', str(tmp_path)], env=dict(os.environ, OMP_NUM_THREADS='1'), capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    old = load_file(here/'fixtures'/'pyvene'/'swap.safetensors')
    for k, v in pyvene_fixture(tmp_path).items(): close(v.float(), old[k].float())
    assert sum(p.stat().st_size for p in (here/'fixtures'/'pyvene').rglob('*') if p.is_file()) < 50_000

# --- nothing is left behind

class Breaks(Neurons):
    "Raises in the middle, at its third encoding."
    def __init__(self, d, error): super().__init__(d); self.raises, self.used = error, 0
    def encode(self, h):
        self.used += 1
        if self.used > 2: raise self.raises
        return h

@contextlib.contextmanager
def untouched(model):
    "Some parts frozen, some in training mode: afterwards as before."
    model.train(); model.transformer.h[1].eval(); model.transformer.h[0].attn.requires_grad_(False)
    before = state(model)
    yield
    assert state(model) == before and before[0] == 0
    assert not parametrize._cache_enabled and not parametrize._cache

def use(how, model, iv, pairs, where):
    ids, source = (torch.tensor([p[:3] for p in pairs.prompts[i:i+2]]) for i in (0, 2))
    if how == 'intervene':
        with intervene(model, {where: iv}, {where: read(model, source, where)[where]}):
            for _ in range(2): forward(model, ids)
    if how == 'interchange':
        for _ in range(2): interchange(model, ids, source, {where: iv})
    if how == 'fit': fit_intervention(model, where, iv, pairs, batch=2, **quick)
    if how == 'right': right(model, where, iv, pairs, batch=2)
    if how == 'attribution': attribution(model, where, iv, pairs, batch=2)

HOWS = ('intervene', 'interchange', 'fit', 'right', 'attribution')
def some_pairs(): return Pairs(prompts_of(6), [1]*6, [0, 1, 2, 3], [3, 4, 5, 0], [[5], [6, 7], [8], [9]], [True, True, False, True])

@pytest.mark.parametrize('how', HOWS)
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, 'width'])
def test_after_an_error_the_model_is_as_it_was(how, error):
    model = gpt2()
    iv = Intervention(Neurons(8), BinaryMask(8)) if error == 'width' else Intervention(Breaks(16, error('in the middle')), BinaryMask(16))
    with untouched(model):
        with pytest.raises(BadInput if error == 'width' else error, match='features of width 8' if error == 'width' else 'in the middle'): use(how, model, iv, some_pairs(), site(model, 1))
    if how == 'fit': assert not any(m.training for m in iv.modules())

@pytest.mark.parametrize('how', HOWS)
def test_without_an_error_the_model_is_as_it_was(how):
    model = gpt2()
    for iv in (mdas(16, 2), sae_mask(SAE(16, 32, k=4))):
        with untouched(model): use(how, model, iv, some_pairs(), site(model, 1))

def test_dropout_does_not_reach_an_answer():
    model, iv, pairs = gpt2(), Intervention(Rotation(16, 3)), some_pairs()
    said = right(model, site(model, 1), iv, pairs), attribution(model, site(model, 1), iv, pairs)
    model.train()
    for a, b in zip(said, (right(model, site(model, 1), iv, pairs), attribution(model, site(model, 1), iv, pairs))): assert torch.equal(a, b)

def test_an_sae_is_not_trained_with_its_mask(toy):
    iv = sae_mask(SAE(32, 64, 'batch_topk', k=4))
    before = state(iv.featurizer.sae)
    fit_intervention(toy, at_toy, iv, toy_pairs(toy, range(20), 40), **quick)
    assert state(iv.featurizer.sae) == before and iv.mask.w.abs().max() > 0

# --- padding

def town_pairs(tok, n=24):
    people, asks = World(0).persons.iloc[:8], ['{X} lives in', 'as we know , {X} was born in', 'the home of {X} is in', 'everyone knows that {X} votes in', '{X} works as a', 'I heard that {X} was trained as a']
    texts = [(a, i) for a in asks for i in range(len(people))]
    prompts = [tok(a.replace('{X}', people.name.iloc[i]))['input_ids'] for a, i in texts]
    at = [p.index(tok.convert_tokens_to_ids(people.name.iloc[i])) for p, (_, i) in zip(prompts, texts)]
    base, source = torch.randint(len(texts), (2, n), generator=gen(3))
    cause = [q < 32 for q in base.tolist()] # the town is moved, the trade stays
    says = [people.town.iloc[texts[s][1]] if c else people.trade.iloc[texts[b][1]] for b, s, c in zip(base.tolist(), source.tolist(), cause)]
    return Pairs(prompts, at, base, source, [[i] for i in tok.convert_tokens_to_ids(says)], cause)

def padded(rows, side):
    n = max(map(len, rows))
    fill = lambda r, v: [v]*(n - len(r)) + r if side == 'left' else r + [v]*(n - len(r))
    return dict(input_ids=torch.tensor([fill(list(r), 0) for r in rows]), attention_mask=torch.tensor([fill([1]*len(r), 0) for r in rows]))

def alone_and_padded(model, where, iv, pairs):
    "The last logits of each pair alone, and of all of them padded on either side."
    rows, at = lambda i: [pairs.prompts[j] for j in i.tolist()], lambda i: {where: pairs.at[i]}
    alone = torch.cat([interchange(model, torch.tensor(rows(b)), torch.tensor(rows(s)), {where: iv}, at(b), at(s)).logits[:, -1] for b, s in zip(pairs.base[:, None], pairs.source[:, None])])
    for side, other in (('left', 'right'), ('right', 'left')):
        x = padded(rows(pairs.base), side)
        logits = interchange(model, x, padded(rows(pairs.source), other), {where: iv}, at(pairs.base), at(pairs.source)).logits
        last = (x['attention_mask']*torch.arange(1, logits.shape[1] + 1)).argmax(1)
        close(logits[torch.arange(len(last)), last], alone)
    return alone

def same_answers(model, where, iv, pairs):
    left = right(model, where, iv, pairs)
    assert torch.equal(left, right(model, where, iv, pairs, side='right')) and torch.equal(left, right(model, where, iv, pairs, batch=3))
    assert torch.equal(left, torch.cat([right(model, where, iv, pairs[torch.tensor([i])]) for i in range(len(pairs))]))
    return left

def test_padding_changes_no_answer_of_the_taught_model(taught):
    model, tok, planted = taught
    pairs, moved = town_pairs(tok), Intervention(Subspace(planted.basis('town')))
    assert len({len(p) for p in pairs.prompts}) > 2
    assert same_answers(model, planted.site, moved, pairs).float().mean() > .9
    assert not right(model, planted.site, Intervention(Neurons(128), FixedMask(128, [])), pairs)[pairs.cause].all()
    alone_and_padded(model, planted.site, moved, pairs[torch.arange(8)])

def test_padding_changes_no_answer_of_a_gpt2():
    model, iv = gpt2(), Intervention(Rotation(16, 5))
    prompts, where = prompts_of(), site(model, 0)
    pairs = Pairs(prompts, [len(p)//2 for p in prompts], range(10), [(3*i + 1) % 10 for i in range(10)], [[0]]*10, [True]*10)
    says = alone_and_padded(model, where, iv, pairs).argmax(1)
    pairs.label = [[int(v) + i % 2] for i, v in enumerate(says)]
    assert same_answers(model, where, iv, pairs).tolist() == [True, False]*5

# --- the form of a block

class Block(nn.Module):
    def __init__(self, form): super().__init__(); self.mlp, self.form = nn.Linear(8, 8), form
    def forward(self, h): return self.form(h + self.mlp(h).tanh())

class Stack(nn.Module):
    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Block(form) for _ in range(3)])
    def forward(self, h):
        for b in self.layers:
            out = b(h)
            h = out if isinstance(out, torch.Tensor) else out[0]
        return h

@pytest.mark.parametrize('form', [lambda h: (h,), lambda h: (h, None, 'more'), lambda h: [h, h*2]])
def test_blocks_that_return_tuples_and_tensors_are_changed_alike(form):
    base, source = torch.randn(2, 4, 5, 8, generator=gen()).unbind()
    for iv, at in itertools.product((Intervention(Rotation(8, 3)), Intervention(SAEFeaturizer(SAE(8, 16, k=2)), FixedMask(16, range(8))), Intervention(Neurons(8), FixedMask(8, [2]), 'zero')), (None, [0, 1, 2, 4])):
        plain, other = (interchange(m, base, source, {Site('layers.1'): iv}, *[at and {Site('layers.1'): at}]*2) for m in (Stack(lambda h: h), Stack(form)))
        assert torch.equal(plain, other) and not torch.equal(plain, forward(Stack(form), base))

# --- nothing and everything

FEATURIZERS = dict(neurons=lambda: Neurons(16), one=lambda: Subspace(-torch.eye(16)[:, :1]), subspace=lambda: Subspace(torch.linalg.qr(torch.randn(16, 4, generator=gen()))[0]),
                   leace=lambda: leace_subspace(torch.randn(60, 16, generator=gen()), torch.arange(60) % 3), two=lambda: leace_subspace(torch.randn(60, 16, generator=gen()), torch.arange(60) % 2),
                   rotation_1=lambda: Rotation(16, 1), rotation_3=lambda: Rotation(16, 3), rotation=lambda: Rotation(16)) \
    | {a: lambda a=a: SAEFeaturizer(SAE(16, 32, a, k=4)) for a in ACTIVATIONS} | {k: lambda kw=kw: SAEFeaturizer(SAE(16, 32, k=4, **kw)) for k, kw in dict(unit_norm=dict(normalize='unit_norm'), layer_norm=dict(normalize='layer_norm'), centred=dict(center_input=True)).items()} \
    | dict(transcoder=lambda: SAEFeaturizer(Transcoder(16, 32, k=4, skip=True)))

def awkward(dtype, rows=64):
    "Activations with zeros of both signs, large and tiny numbers, and whole rows of -0.0."
    h = torch.randn(rows, 16, generator=gen(2)).to(dtype)
    h[::3, ::5], h[1::3, ::4], h[5], h[6], h[7], h[8] = -0., 0., -0., 0., h[7]*1e4, h[8]*1e-20
    return h
bits = lambda t: t.detach().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('name', FEATURIZERS)
def test_an_empty_mask_changes_no_bit(name, dtype):
    f, h, s = FEATURIZERS[name](), awkward(dtype), torch.randn(64, 16, generator=gen(3)).to(dtype)
    for kind, value in dict(interchange=None, zero=None, mean=torch.ones(f.n), steer=torch.ones(f.n), resample=torch.ones(3, f.n)).items():
        iv = Intervention(f, FixedMask(f.n, []), kind, value)
        for rows in (slice(None), slice(5, 6), slice(7, 8)):
            got = iv(h[rows], s[rows])
            assert got.dtype == dtype and torch.equal(bits(got), bits(h[rows])), kind

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_a_full_mask_of_neurons_gives_the_source_to_the_bit(dtype):
    h, s = awkward(dtype), torch.randn(64, 16, generator=gen(3)).to(dtype)
    assert torch.equal(bits(Intervention(Neurons(16))(h, s)), bits(s))
    some = Intervention(Neurons(16), FixedMask(16, range(5)))(h, s)
    assert torch.equal(bits(some), bits(torch.cat([s[:, :5], h[:, 5:]], 1)))

# --- transcoders

def linear_and_transcoder(d=4, d_out=3, skip=False, seed=0):
    "A module, and a transcoder that is the same to the bit on whole numbers: features i and d + i hold the two signs of coordinate i."
    g = gen(seed)
    W, b, S = torch.randint(-4, 5, (d, d_out), generator=g).float(), torch.randint(-4, 5, (d_out,), generator=g).float(), torch.randint(-4, 5, (d, d_out), generator=g).float()*skip
    lin, t = nn.Linear(d, d_out), Transcoder(d, 2*d, 'relu', d_out=d_out, skip=skip)
    with torch.no_grad():
        lin.weight.copy_(W.T); lin.bias.copy_(b)
        t.W_enc.copy_(torch.cat([torch.eye(d), -torch.eye(d)], 1)); t.b_enc.zero_(); t.W_dec.copy_(torch.cat([W - S, S - W])); t.b_dec.copy_(b)
        if skip: t.W_skip.copy_(S)
    return lin, t

def whole(*shape, seed=0): return torch.randint(-9, 10, shape, generator=gen(seed)).float()

@pytest.mark.parametrize('error', [True, False])
@pytest.mark.parametrize('skip', [False, True])
def test_the_features_of_a_transcoder_that_equals_its_module(skip, error):
    "All of them swapped, the output is the source's, but for what the skip makes of the base; some of them, those coordinates of the input are."
    lin, t = linear_and_transcoder(skip=skip)
    model, out, base, source = nn.Sequential(nn.Identity(), lin, nn.Identity()), Site('1'), whole(2, 5, 4, seed=1), whole(2, 5, 4, seed=2)
    assert torch.equal(t(base), lin(base)) and Intervention(SAEFeaturizer(t)).read_at(out) == Site('1', 'input')
    kept = base @ t.W_skip - source @ t.W_skip if skip else 0.
    swap = lambda features=None, **kw: interchange(model, base, source, {out: Intervention(SAEFeaturizer(t, error), FixedMask(8, features))}, **kw)
    assert torch.equal(swap(), lin(source) + kept) and torch.equal(swap([]), lin(base))
    mixed = base.clone(); mixed[..., [0, 2]] = source[..., [0, 2]]
    assert torch.equal(swap([0, 2, 4, 6]), lin(mixed) + (base - mixed) @ (t.W_skip if skip else torch.zeros(4, 3)))
    at = swap(at={out: [1, 0]}, at_source={out: [3, 4]})
    want = lin(base)
    for row, (i, j) in enumerate([(1, 3), (0, 4)]): want[row, i] = lin(source[row, j]) + ((base[row, i] - source[row, j]) @ t.W_skip if skip else 0.)
    assert torch.equal(at, want)
    want = lin(base); want[:, 2] = (lin(source) + kept)[:, 2]
    assert torch.equal(interchange(model, base, source, {out.at(2): Intervention(SAEFeaturizer(t, error))}), want)

def test_a_transcoder_goes_together_with_a_change_of_its_modules_input():
    "It reads what the module is given, that change included."
    lin, t = linear_and_transcoder()
    model, base, source = nn.Sequential(nn.Identity(), lin), whole(2, 5, 4, seed=1), whole(2, 5, 4, seed=2)
    inner, outer = Intervention(Neurons(4), FixedMask(4, [0, 2]), 'zero'), Intervention(SAEFeaturizer(t), FixedMask(8, [0, 1, 4, 5]))
    x = torch.cat([source[..., :2], torch.zeros(2, 5, 1), base[..., 3:]], -1)
    for edits in ({Site('1', 'input'): inner, Site('1'): outer}, {Site('1'): outer, Site('1', 'input'): inner}): assert torch.equal(interchange(model, base, source, edits), lin(x))

def test_a_transcoder_at_the_input_of_its_module_is_told():
    lin, t = linear_and_transcoder(d_out=4)
    with pytest.raises(BadInput): interchange(nn.Sequential(nn.Identity(), lin), whole(1, 2, 4), whole(1, 2, 4), {Site('1', 'input'): Intervention(SAEFeaturizer(t))})

# --- answers of several tokens

def test_an_answer_of_several_tokens_is_what_is_generated():
    "Right where greedy generation under the same intervention says the whole answer; one other token, whichever, is wrong."
    model, iv = gpt2(), Intervention(Rotation(16, 12))
    prompts, where = prompts_of(8), site(model, 0)
    at, base, source = torch.tensor([len(p) - 1 for p in prompts]), torch.arange(8), torch.arange(8).roll(3)
    acts = torch.cat([read(model, torch.tensor([p]), where, at={where: [a]})[where] for p, a in zip(prompts, at)])
    x, said = padded([prompts[b] for b in base], 'left'), {}
    with intervene(model, {where: iv}, {where: acts[source]}, {where: at}): told = model.generate(**x, max_new_tokens=3, do_sample=False, pad_token_id=0)[:, -3:]
    plain = model.generate(**x, max_new_tokens=3, do_sample=False, pad_token_id=0)[:, -3:]
    assert (told != plain).any(1).sum() >= 4 and len(told.unique()) > 4
    labels, want, which = [], [], []
    for i, n in itertools.product(range(8), (2, 3)):
        l = told[i, :n].tolist()
        for j in (None, *range(n)): labels.append([(v + (k == j)) % 40 for k, v in enumerate(l)]); want.append(j is None); which.append(i)
    pairs = Pairs(prompts, at, base[which], source[which], labels, [True]*len(want))
    for side in ('left', 'right'): assert right(model, where, iv, pairs, batch=7, side=side).tolist() == want

# --- subspaces

def labelled(d=20, n=400, classes=2):
    "Correlated activations, with labels of a linear rule; the classes differ in size, as a constant must say one of them."
    g = gen(4)
    X = torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g) + torch.randn(d, generator=g)
    score = (X - X.mean(0)) @ torch.randn(d, generator=g)
    return X, torch.bucketize(score, score.quantile(torch.tensor([.6]) if classes == 2 else torch.tensor([.5, .8])))

def probe(X, y):
    from sklearn.linear_model import LogisticRegression
    return LogisticRegression(C=1e3, max_iter=5000).fit(X.numpy(), y.numpy()).score(X.numpy(), y.numpy())

@pytest.mark.parametrize('classes', [2, 3])
def test_after_leace_no_linear_probe_does_better_than_the_majority(classes):
    X, y = labelled(classes=classes)
    most, leace = y.bincount().max().item()/len(y), leace_subspace(X, y)
    erased = lambda f: f(X, None).double()
    assert leace.n == classes - 1 and probe(X, y) > .9
    for iv in (Intervention(leace, None, 'zero'), Intervention(leace, None, 'mean', leace.encode(X).mean(0))): assert probe(erased(iv), y) <= most + 1e-9
    assert probe(erased(Intervention(class_means(X, y), None, 'zero')), y) <= most + 1e-9

@pytest.mark.parametrize('flat', [False, True])
def test_leace_is_the_formula_of_its_paper(flat):
    "P = W⁺ Q W, with W the pseudo-inverse root of the covariance and Q the orthogonal projection on the span of W Σxz (Belrose et al. 2023, theorem 4.2); flat: where some directions hold nothing."
    X, y = labelled(classes=3)
    if flat: X = torch.cat([X, X[:, :2] @ torch.tensor([[1., 2.], [3., -1.]]), torch.ones(len(X), 1)], 1)
    x, z = (t.double() - t.double().mean(0) for t in (X, F.one_hot(y)))
    v, V = np.linalg.eigh((x.T @ x/len(x)).numpy())
    real = v > v.max()*1e-10
    root, W = (V[:, real]*v[real]**p @ V[:, real].T for p in (.5, -.5))
    C = W @ (x.T @ z/len(x)).numpy()
    P = torch.from_numpy(root @ (C @ np.linalg.pinv(C, rcond=1e-8)) @ W) # root is the pseudo-inverse of W
    leace = leace_subspace(X, y)
    assert not flat or real.sum() == 20
    close((leace.read.double() @ leace.write.double()).T, P, 1e-4)
    got = Intervention(leace, None, 'mean', leace.encode(X).mean(0)).double()(X.double())
    close(got, X.double() - x @ P.T, 1e-4)

def test_the_differences_of_means_span_no_more_than_there_is():
    g = gen(5)
    y = torch.arange(200) % 4
    X = torch.randn(200, 12, generator=g) + 3*torch.randn(4, 12, generator=g)[y]
    means = torch.stack([X[y == c].mean(0) for c in range(4)])
    f = class_means(X, y.tolist())
    D = (means - means[:1])[1:]
    assert f.n == 3 and class_means(X[:, :2], y).n == 2 and class_means(X, y, 1).n == 1
    close(D @ f.read @ f.read.T, D); close(f.read.T @ f.read, torch.eye(3))
    assert class_means(X, [f'class {c}' for c in y]).read.allclose(f.read)

def test_means_on_a_line_span_a_line():
    "What lies beyond the rank of the differences is chance, and no part of their span."
    y = torch.arange(200) % 4
    X = torch.randn(200, 12, generator=gen(5))
    for c in range(4): X[y == c] -= X[y == c].mean(0)
    X = X.double() + y[:, None]*torch.randn(12, generator=gen(6)).double()
    for c in range(4): X[y == c] += c*X.new_tensor([1.] + [0.]*11) - X[y == c].mean(0) # exact means, but for rounding
    assert class_means(X, y).n == 1

def test_pca_is_that_of_sklearn():
    from sklearn.decomposition import PCA
    X, _ = labelled()
    theirs, ours = PCA(5).fit(X.numpy()).components_, pca_subspace(X, 5)
    cos = torch.from_numpy(theirs).float() @ ours.read
    close(cos.abs(), torch.eye(5), 1e-4)

# --- the same again

FITS = dict(das=lambda: das(32, 3, seed=1), mdas=lambda: mdas(32, 4, seed=1), masked=lambda: mdas(32, seed=1), dbm=lambda: dbm(32), boundless=lambda: boundless_das(32, seed=1),
            sae=lambda: sae_mask(SAE(32, 64, k=8)), resample=lambda: Intervention(Neurons(32), BinaryMask(32), 'resample', torch.randn(50, 32, generator=gen())))

@pytest.mark.parametrize('name', FITS)
def test_the_same_seed_gives_the_same_bytes_whatever_chance_was_before(toy, name):
    pairs, runs = toy_pairs(toy, range(60), 100), []
    for chance, seed in ((0, 0), (123, 0), (0, 1)):
        torch.manual_seed(chance); np.random.seed(chance)
        iv = FITS[name]()
        log = fit_intervention(toy, at_toy, iv, pairs, seed=seed, **quick)
        runs.append(({k: bits(v).tolist() for k, v in iv.state_dict().items() if v.is_floating_point()}, log.history.drop(columns='step').to_numpy()))
    assert runs[0][0] == runs[1][0] and np.array_equal(runs[0][1], runs[1][1], equal_nan=True)
    assert runs[0][0] != runs[2][0]

def test_making_and_fitting_take_nothing_from_chance(toy):
    "What is drawn after them is what would have been drawn without."
    torch.manual_seed(0)
    before, pairs = torch.get_rng_state(), toy_pairs(toy, range(60), 50)
    for make in (lambda: mdas(32, 4), lambda: boundless_das(32), lambda: sae_mask(SAE(32, 64, k=8)), lambda: pca_subspace(toy.entities, 2)): make(); assert torch.equal(torch.get_rng_state(), before)
    fit_intervention(toy, at_toy, dbm(32), pairs, **quick)
    assert torch.equal(torch.get_rng_state(), before)

@pytest.mark.parametrize('n, batch', [(64, 32), (33, 32), (5, 4), (3, 2), (1, 32)])
def test_a_fit_ends_at_the_last_temperature_after_whole_epochs(toy, n, batch):
    iv = boundless_das(32)
    log = fit_intervention(toy, at_toy, iv, toy_pairs(toy, range(60), n), batch=batch, epochs=6, progress=False)
    assert iv.mask.T == pytest.approx(iv.mask.range[1]) and len(log.history) >= 6*n/batch

def test_attributions_along_the_whole_way_add_up_to_what_the_whole_does(toy):
    "Integrated gradients: their sum is the loss with nothing moved less the loss with everything moved."
    pairs, ends = toy_pairs(toy, range(60), 40), []
    for f in (Rotation(32, 6), Subspace(toy.subspace(0)), SAEFeaturizer(SAE(32, 64, 'relu'))):
        for features in ([], None):
            acts = torch.cat([read(toy, torch.tensor([pairs.prompts[i]]), at_toy.at(0))[at_toy.at(0)] for i in pairs.source])
            with intervene(toy, {at_toy.at(0): Intervention(f, FixedMask(f.n, features))}, {at_toy.at(0): acts}): logits = forward(toy, torch.tensor([pairs.prompts[i] for i in pairs.base]))[:, -1]
            ends.append(F.cross_entropy(logits, torch.tensor(pairs.label)[:, 0]).item())
        assert attribution(toy, at_toy, Intervention(f), pairs, steps=100, batch=16).sum().item() == pytest.approx(ends[-2] - ends[-1], abs=1e-2)

# --- bad inputs

def told(match, f):
    with pytest.raises(BadInput, match=match) as e: f()
    assert '\n' not in str(e.value)

def test_what_cannot_be_used_is_told_in_a_sentence(toy, taught):
    pairs, X, model = toy_pairs(toy, range(20), 20), torch.randn(30, 32), toy
    bad, ask = torch.where(torch.arange(32) == 3, torch.nan, X), torch.tensor([[1, 192]])
    fit = lambda iv=None, **kw: fit_intervention(model, kw.pop('at', at_toy), iv or dbm(32), kw.pop('pairs', pairs), **(quick | kw))
    told("unknown module path 'sit'.*'site'", lambda: fit(at=Site('sit'))); told("unknown module path 'sit'", lambda: right(toy, Site('sit'), dbm(32), pairs)); told('has positions already', lambda: fit(at=at_toy.at(0)))
    for f in (lambda X, y=None: pca_subspace(X, 2), class_means, leace_subspace): told('or with NaN', lambda: f(bad, [0, 1]*15)); told('at least two', lambda: f(X[:1], [0]))
    told('29 labels were given for 30', lambda: class_means(X, [0]*29)); told('two at least make a difference', lambda: leace_subspace(X, ['a']*30)); told('choose from 1 to 1', lambda: class_means(X, [0, 1]*15, 2))
    told('choose from 1 to 30', lambda: pca_subspace(X, 31)); told('33 directions were asked for in width 32', lambda: Rotation(32, 33))
    told('no pairs were given', lambda: Pairs([[1]], [0], [], [], [], [])); told('no pairs were given', lambda: fit(das(32, 2), pairs=pairs[~pairs.cause])); told('no pairs', lambda: pairs[torch.zeros(20, dtype=torch.bool)])
    told('position 2 was given for prompt 1 of 2 tokens', lambda: Pairs([[1, 2], [1, 2]], [0, 2], [0], [1], [[1]], [True])); told('position -1', lambda: Pairs([[1, 2]], [-1], [0], [0], [[1]], [True]))
    told('among the 1', lambda: Pairs([[1, 2]], [0], [0], [1], [[1]], [True])); told('without tokens', lambda: Pairs([[1, 2]], [0], [0], [0], [[]], [True])); told('2 answers', lambda: Pairs([[1, 2]], [0], [0], [0], [[1], [2]], [True]))
    told('a mask of 31 was given for 32', lambda: Intervention(Neurons(32), FixedMask(31))); told('from 0 to 31', lambda: FixedMask(32, [32]))
    told('nothing to learn', lambda: fit(Intervention(Neurons(32)))); told('nothing to learn', lambda: fit(Intervention(SAEFeaturizer(SAE(32, 64)))))
    told('epochs=0', lambda: fit(epochs=0)); told('batch=0', lambda: fit(batch=0)); told('steps=0', lambda: attribution(toy, at_toy, dbm(32), pairs, 0))
    told("unknown kind of intervention 'swap'", lambda: Intervention(Neurons(32), kind='swap')); told(r'give features \[32\]', lambda: Intervention(Neurons(32), kind='mean', value=torch.ones(31)))
    told('features of width 16', lambda: right(toy, at_toy, Intervention(SAEFeaturizer(SAE(16, 32))), pairs)); told('features of width 16', lambda: interchange(toy, ask, ask, {at_toy: sae_mask(SAE(16, 32))}))
    told('without a source', lambda: intervene(toy, {at_toy: dbm(32)}).__enter__()); told('a str was given', lambda: intervene(toy, {at_toy: 'town'}).__enter__())
    told('gives no logits', lambda: right(taught[0].gpt_neox, Site('layers.1'), Intervention(Neurons(128)), Pairs([[1, 2]], [0], [0], [0], [[1]], [True])))

def test_an_interchange_tells_what_is_no_intervention_as_intervene_does(toy):
    ask = torch.tensor([[1, 192]])
    told('a str was given', lambda: interchange(toy, ask, ask, {at_toy: 'town'}))

def test_a_transcoder_for_another_width_of_output_is_told():
    lin, _ = linear_and_transcoder(d_out=3)
    told('width', lambda: interchange(nn.Sequential(nn.Identity(), lin), whole(1, 2, 4), whole(1, 2, 4), {Site('1'): Intervention(SAEFeaturizer(Transcoder(4, 8, 'relu', d_out=5)))}))

@pytest.mark.parametrize('misread', [lambda t, p: Rotation(32, 0), lambda t, p: FixedMask(5, torch.tensor([True, False, True])), lambda t, p: leace_subspace(torch.randn(30, 8), [0, 1, None]*10),
                                     lambda t, p: class_means(torch.randn(30, 8), [0, 1, None]*10), lambda t, p: right(t, at_toy, dbm(32), p, side='middle')], ids=['no_directions', 'bool_features', 'leace_none', 'means_none', 'side'])
def test_what_would_be_taken_for_something_else_is_told(toy, misread):
    "0 directions are not all of them, a bool mask of another size is none, a label that is missing is no class, and there are two sides."
    told(r'\w', lambda: misread(toy, toy_pairs(toy, range(20), 4)))

def test_a_bool_mask_is_a_mask(): assert FixedMask(5, torch.tensor([True, False, True, False, False])).chosen == [0, 2]

# --- files

@pytest.fixture
def saved(tmp_path): return save_intervention(sae_mask(SAE(16, 32, k=4)), tmp_path/'there')

def edit(path, f):
    cfg = json.loads((path/'intervention.json').read_text()); f(cfg); (path/'intervention.json').write_text(json.dumps(cfg))

def test_what_is_saved_is_no_pickle_and_names_no_place(saved):
    files = [p for p in saved.rglob('*') if p.is_file()]
    assert sorted(p.relative_to(saved).as_posix() for p in files) == ['intervention.json', 'intervention.safetensors', 'sae/sae.json', 'sae/sae.safetensors']
    for p in files: assert not p.read_bytes().startswith((b'\x80', b'PK')) and str(saved.parent).encode() not in p.read_bytes()

def test_a_folder_from_elsewhere_with_a_key_that_is_not_known_is_told(saved, tmp_path):
    other = Path(shutil.copytree(saved, tmp_path/'here'))
    assert load_intervention(other).mask.n == 32
    for part in ('mask', 'featurizer'):
        shutil.copytree(saved, other, dirs_exist_ok=True); edit(other, lambda c: c[part].update(fancy=1))
        told('fancy', lambda: load_intervention(other))

def test_a_folder_that_cannot_be_read_is_told(saved):
    told('has no intervention.json', lambda: load_intervention(saved/'nowhere'))
    for name, what in {'intervention.json': [b'', b'{', b'\xff\xfe', b'[]', b'{"format": "saebook-sae"}'], 'intervention.safetensors': [b'', b'\xff'*50], 'sae/sae.json': [b'', b'[]'], 'sae/sae.safetensors': [b'', b'\xff'*50]}.items():
        good = (saved/name).read_bytes()
        for w in [*what, good[:-9] if name.startswith('intervention') else b'\0']: (saved/name).write_bytes(w); told('again|wrote', lambda: load_intervention(saved))
        (saved/name).unlink(); told(f'has no {Path(name).name}', lambda: load_intervention(saved)); (saved/name).write_bytes(good)
    assert load_intervention(saved).mask.n == 32

@pytest.mark.parametrize('change, match', [(lambda c: c['featurizer'].update(kind='Neuron'), "unknown featurizer 'Neuron'.*did you mean 'Neurons'"), (lambda c: c['mask'].update(kind='Mask'), "unknown mask 'Mask'"), (lambda c: c.update(kind='swap'), "unknown kind of intervention 'swap'"),
                                           (lambda c: c.update(version=2), 'version 1'), (lambda c: c.pop('mask'), 'mask'), (lambda c: c.update(mask=3), 'do not fit'), (lambda c: c['mask'].update(n=31), 'mask of 31'), (lambda c: c['mask'].update(n='many'), 'do not fit'),
                                           (lambda c: c.update(kind='steer'), 'give features'), (lambda c: c['featurizer'].update(kind='Subspace'), 'do not fit'), (lambda c: c.pop('isolate'), 'isolate')])
def test_a_configuration_that_means_nothing_is_told(saved, change, match):
    edit(saved, change); told(match, lambda: load_intervention(saved))

def test_numbers_that_are_none_are_not_loaded(tmp_path):
    iv = dbm(8)
    with torch.no_grad(): iv.mask.w[3] = torch.nan
    told('finite', lambda: load_intervention(save_intervention(iv, tmp_path)))

@pytest.mark.parametrize('name', ['subspace', 'rotation', 'steer', 'sae'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_what_is_loaded_computes_the_same_bits(tmp_path, name, dtype):
    h, s = torch.randn(2, 9, 16, generator=gen(), dtype=dtype).unbind()
    iv = dict(subspace=lambda: Intervention(Subspace(torch.linalg.qr(torch.randn(16, 3, generator=gen(), dtype=dtype))[0]), FixedMask(3, [0, 2])), rotation=lambda: mdas(16, 2, seed=3),
              steer=lambda: Intervention(Neurons(16), FixedMask(16, [1]), 'steer', torch.ones(16)), sae=lambda: sae_mask(SAE(16, 32, 'jump_relu')))[name]().to(dtype).eval()
    back = load_intervention(save_intervention(iv, tmp_path))
    assert torch.equal(bits(back(h, s)), bits(iv(h, s))) and back.kind == iv.kind and back.mask.chosen == iv.mask.chosen
