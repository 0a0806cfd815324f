"Sparse feed-forward blocks: four families of models and all kinds of blocks, with random weights."
import copy, json, pickle, subprocess, sys

import pytest, torch, torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import (AutoModelForCausalLM, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXModel, LlamaConfig, LlamaForCausalLM,
                          OPTConfig, OPTForCausalLM)

from saebook import cache, metrics, sites
from saebook.core import BadInput
from saebook.feedforward import KINDS, FeedForwardSpec, SparseFeedForward, feedforwards, flops, sparsify_feedforward
from saebook.intervene import FixedMask, Intervention, SAEFeaturizer, intervene, load_intervention, save_intervention
from saebook.readings import Reading
from saebook.sae import Transcoder
from saebook.sites import Site
from saebook.world import World

VOCABULARY, D, LAYERS = 50, 32, 2
FAMILIES = {
    'neox, parallel': lambda: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCABULARY, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64, use_parallel_residual=True)),
    'neox, sequential': lambda: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=VOCABULARY, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64, use_parallel_residual=False)),
    'neo': lambda: GPTNeoForCausalLM(GPTNeoConfig(vocab_size=VOCABULARY, hidden_size=D, num_layers=LAYERS, num_heads=4, attention_types=[[['global', 'local'], 1]], window_size=8, intermediate_size=64, max_position_embeddings=64, bos_token_id=0, eos_token_id=0)),
    'gpt2': lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=D, n_layer=LAYERS, n_head=4, n_positions=64, n_inner=64, resid_pdrop=0., embd_pdrop=0., attn_pdrop=0., bos_token_id=0, eos_token_id=0)),
    'llama': lambda: LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=64))}
families, kinds = pytest.mark.parametrize('family', FAMILIES), pytest.mark.parametrize('kind', KINDS)
SPARSE = [k for k in KINDS if k != 'dense']

def made(family, seed=0):
    torch.manual_seed(seed)
    return FAMILIES[family]().eval()

def ids(rows=3, seq=20, seed=0): return torch.randint(2, VOCABULARY, (rows, seq), generator=torch.Generator().manual_seed(seed))
def spec(kind, **kw): return FeedForwardSpec(kind, **dict(dict(expansion=4, k=8), **kw))

# ---- in a model

@families
@kinds
def test_a_sparse_model_learns_generates_and_is_the_same_after_loading(family, kind, tmp_path):
    model, x = sparsify_feedforward(made(family), spec(kind)), ids()
    torch.autograd.backward(model.train()(x, labels=x).loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    said = lambda use_cache: model.eval().generate(x, attention_mask=torch.ones_like(x), pad_token_id=0, max_new_tokens=8, do_sample=False, use_cache=use_cache)
    assert torch.equal(said(True), said(False))
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys'] and type(again) is type(model)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values())) # the counts of silence too
    assert type(model)(model.config)(x).logits.isfinite().all() # a new one of the same form
    x = ids(seed=1) # of those that it was trained on one entry stands on BatchTopK's threshold to the bit
    with torch.no_grad(): torch.testing.assert_close(again(x).logits, model(x).logits, rtol=0, atol=1e-6)

@families
@kinds
def test_no_token_hears_more_than_k_units(family, kind):
    model, x = sparsify_feedforward(made(family), spec(kind)), ids()
    for block in feedforwards(model).values():
        h = sites.read(model, x, block.site)[block.site]
        with torch.no_grad():
            if kind == 'batch_topk': assert block.train().encode(h).l0().sum() <= block.k*x.numel() # on the average; one token may have more
            elif kind != 'dense': assert (block.encode(h).l0() <= block.k).all() and (block.train().encode(h).l0() <= block.k).all()
        block.eval()

@families
def test_everything_but_the_blocks_is_the_model_s_own_and_the_model_stays_as_it_is(family):
    dense, x = made(family), ids()
    before = {k: v.clone() for k, v in dense.state_dict().items()}
    sparse = sparsify_feedforward(dense, spec('topk'), layers=[-1])
    assert list(feedforwards(sparse)) == [LAYERS - 1] and not feedforwards(dense) and dense.config.model_type == sparse.config.model_type.removeprefix('sparse_')
    assert all(torch.equal(v, before[k]) for k, v in dense.state_dict().items())
    mine = {k: v for k, v in sparse.state_dict().items() if not k.startswith(f'{sites.blocks(sparse)}.{LAYERS - 1}.mlp')}
    assert all(torch.equal(v, before[k]) for k, v in mine.items()) and len(mine) < len(before)
    at = sites.site(dense, 0)
    assert torch.equal(sites.read(dense, x, at)[at], sites.read(sparse, x, at)[at]) # before the layer nothing is another
    with torch.no_grad(): sparse.get_input_embeddings().weight.zero_()
    assert dense.get_input_embeddings().weight.abs().sum() > 0
    assert (sparse.get_output_embeddings().weight is sparse.get_input_embeddings().weight) == (dense.get_output_embeddings().weight is dense.get_input_embeddings().weight) # tied ones stay tied

@families
def test_a_wide_dense_block_of_the_model_s_own_weights_is_its_mlp(family):
    dense, x = made(family), ids()
    twin = sparsify_feedforward(dense, spec('dense', expansion=1))
    for l, block in feedforwards(twin).items():
        mlp = sites.module_at(dense, sites.blocks(dense))[l].mlp
        own = dict(mlp.named_parameters())
        flat = lambda w, n: w if len(w) == n else w.T # GPT-2 has its matrices the other way round
        get = lambda *names: next((own[n] for n in names if n in own), None)
        with torch.no_grad():
            block.encoder.weight.copy_(flat(get('dense_h_to_4h.weight', 'c_fc.weight', 'gate_proj.weight'), 64)); block.decoder.weight.copy_(flat(get('dense_4h_to_h.weight', 'c_proj.weight', 'down_proj.weight').T, 64))
            if block.up is not None: block.up.weight.copy_(own['up_proj.weight'])
    with torch.no_grad(): torch.testing.assert_close(twin(x).logits, dense(x).logits, rtol=1e-5, atol=1e-6)

def test_layers_may_differ_and_other_heads_work(tmp_path):
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=VOCABULARY, n_embd=D, n_layer=LAYERS, n_head=4, n_positions=64, pad_token_id=0)).eval()
    model = sparsify_feedforward(sparsify_feedforward(model, spec('topk'), 0), spec('groupmax', k=4), [1])
    assert {l: b.spec.kind for l, b in feedforwards(model).items()} == {0: 'topk', 1: 'groupmax'}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad(): torch.testing.assert_close(again(ids()).logits, model(ids()).logits, rtol=0, atol=1e-6)
    torch.manual_seed(0)
    bare = sparsify_feedforward(GPTNeoXModel(GPTNeoXConfig(vocab_size=VOCABULARY, hidden_size=D, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)).eval(), spec('topk'))
    assert [*feedforwards(bare)] == [0] and feedforwards(bare)[0].site == Site('layers.0.mlp', 'input')

FRESH = """
import sys, torch
from saebook import sites
assert 'saebook.feedforward' not in sys.modules
model, tok = sites.load_model(sys.argv[1], causal=None)
with torch.no_grad(): torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
print(type(model).__name__, len(tok))
"""

def test_a_model_that_was_loaded_is_saved_whole_with_its_head(tmp_path): # transformers keeps how the file of the dense model was read, and would write by it
    from saebook.world import load_taught
    from saebook.sites import load_model
    model, tok = load_taught('base')
    sparse = sparsify_feedforward(model, FeedForwardSpec('topk', 2, 4), [1])
    sparse.save_pretrained(tmp_path); tok.save_pretrained(tmp_path)
    again, _ = load_model(tmp_path)
    ids = torch.arange(8)[None]
    assert torch.equal(again(ids).logits, sparse.eval()(ids).logits)

@pytest.mark.parametrize('family, kind', [('neox, sequential', 'topk'), ('llama', 'groupmax')])
def test_a_fresh_process_opens_it_like_any_model_and_says_the_same(family, kind, tmp_path):
    tok = World(0).tokenizer()
    dense = made(family); dense.resize_token_embeddings(len(tok))
    model = sparsify_feedforward(dense, spec(kind))
    model.save_pretrained(tmp_path/'model'); tok.save_pretrained(tmp_path/'model')
    torch.save(ids(), tmp_path/'ids.pt')
    r = subprocess.run([sys.executable, '-c', FRESH, *map(str, (tmp_path/'model', tmp_path/'ids.pt', tmp_path/'out.pt'))], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert r.stdout.split() == [type(model).__name__, str(len(tok))]
    with torch.no_grad(): torch.testing.assert_close(torch.load(tmp_path/'out.pt'), model(ids()).logits, rtol=0, atol=1e-6)

def test_without_saebook_it_is_no_dense_model_with_new_weights(tmp_path):
    sparsify_feedforward(made('gpt2'), spec('topk')).save_pretrained(tmp_path)
    r = subprocess.run([sys.executable, '-c', 'import sys, transformers; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])', str(tmp_path)], capture_output=True, text=True)
    assert r.returncode and 'sparse_gpt2' in r.stderr

# ---- a block

def scattered(block, x): # the same by a dense code, and all gradients by autograd
    with torch.no_grad(): chosen = block.encode(x).to_dense() != 0
    said = block.act(F.relu(block.encoder.pre(block.encoder.see(x))))*chosen
    if block.up is not None: said = said*block.up.pre(block.up.see(x))
    y = said @ block.W_dec
    return y if block.b_dec is None else y + block.b_dec

@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('kind', SPARSE)
@pytest.mark.parametrize('activation', ['relu', 'gelu_new'])
def test_the_sparse_path_and_a_dense_scatter_agree(kind, gated, activation):
    torch.manual_seed(0)
    block, x, g = SparseFeedForward(24, 96, spec(kind, output_bias=not gated, activation=activation), gated=gated, std=.2).train(), torch.randn(40, 24, requires_grad=True), torch.randn(40, 24)
    with torch.no_grad():
        for p in block.parameters(): p.add_(torch.randn_like(p)*.05) # biases too
    params = [x, *block.parameters()]
    a, b = block(x), scattered(block, x)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for p, q in zip(torch.autograd.grad((a*g).sum(), params), torch.autograd.grad((b*g).sum(), params)): torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)

@kinds
def test_half_precision_and_autocast(kind):
    model, x = sparsify_feedforward(made('neox, sequential'), spec(kind)), ids()
    with torch.no_grad(): want = model(x).logits
    with torch.autocast('cpu', torch.bfloat16):
        loss = model.train()(x, labels=x).loss
    torch.autograd.backward(loss)
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in model.parameters())
    model.zero_grad()
    half = copy.deepcopy(model).bfloat16()
    loss = half(x, labels=x).loss
    torch.autograd.backward(loss)
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.bfloat16 for p in half.parameters())
    assert all(b.since.dtype == torch.long for b in feedforwards(half).values() if kind != 'dense')
    with torch.no_grad(): out = copy.deepcopy(model).eval().double()(x).logits
    if kind != 'batch_topk': torch.testing.assert_close(out.float(), want, rtol=1e-4, atol=1e-4) # whose threshold has moved in training

def test_silence_is_counted_in_training_alone_and_revival_leaves_the_output_alone():
    torch.manual_seed(0)
    block = SparseFeedForward(16, 64, spec('topk', k=4, revive=.5, dead_after=100))
    with torch.no_grad(): block.encoder.bias[:32] = -9.
    block.eval()(torch.randn(200, 16))
    assert not block.since.any()
    for _ in range(2): block.train()(torch.randn(4, 25, 16))
    assert block.dead()[:32].all() and block.since.max() == 200 and not block.dead().all()
    x, plain = torch.randn(50, 16), copy.deepcopy(block); plain.spec = spec('topk', k=4)
    with torch.no_grad(): assert torch.equal(plain(x), block(x))
    torch.autograd.backward(block(x).square().sum()); torch.autograd.backward(plain(x).square().sum())
    live = ~block.dead()
    assert torch.equal(block.encoder.weight.grad[live], plain.encoder.weight.grad[live]) and block.encoder.weight.grad[:32].any() and not plain.encoder.weight.grad[:32].any()

@pytest.mark.parametrize('kind', SPARSE)
@pytest.mark.parametrize('gated', [False, True])
def test_every_kind_can_be_revived(kind, gated):
    torch.manual_seed(0)
    block = SparseFeedForward(16, 64, spec(kind, k=4, revive=.5, dead_after=10), gated=gated)
    block.since[:] = 1000
    x = torch.randn(50, 16)
    torch.autograd.backward(block.train()(x).square().sum())
    assert all(torch.isfinite(p.grad).all() for p in block.parameters())

def test_batch_topk_has_a_threshold_for_single_tokens():
    torch.manual_seed(0)
    block = SparseFeedForward(32, 256, spec('batch_topk', k=8)).train()
    for _ in range(60): block(torch.randn(512, 32))
    l0 = block.eval().encode(x := torch.randn(4096, 32)).l0().float()
    assert abs(l0.mean() - 8) < 1 and l0.std() > .5
    torch.testing.assert_close(block.encode(x[:1]).to_dense(), block.encode(x).to_dense()[:1], rtol=1e-5, atol=1e-6) # a token is heard for itself

def test_gradient_checkpoints_change_no_gradient_and_count_no_token_twice():
    model, x = sparsify_feedforward(made('gpt2'), spec('topk', revive=.1, dead_after=30)), ids()
    twin = pickle.loads(pickle.dumps(model)); twin.gradient_checkpointing_enable() # the classes are found by their names
    for m in (model, twin):
        m.train()
        for _ in range(2): m.zero_grad(); torch.autograd.backward(m(x, labels=x, use_cache=False).loss)
    assert all(torch.equal(a.since, b.since) and a.since.any() for a, b in zip(feedforwards(model).values(), feedforwards(twin).values()))
    for a, b in zip(model.parameters(), twin.parameters()): torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)

# ---- as a featurizer

@families
def test_its_code_is_read_kept_and_changed_like_an_sae_s(family, tmp_path):
    tok = World(0).tokenizer()
    dense = made(family); dense.resize_token_embeddings(len(tok))
    model = sparsify_feedforward(dense, spec('topk', activation='relu'))
    ctx = cache.contexts(tok, World(0).documents(40, 'test').text.tolist(), 32)
    block = feedforwards(model)[1]
    kept = cache.FeatureCache.create(tmp_path/'features', block, (model, ctx), progress=False, dtype=torch.float32)
    rows, batch = next(cache.batches(ctx, 8, by_length=False))
    h = sites.read(model, batch, block.site)[block.site]
    code = block.encode(h[ctx.use[rows, :h.shape[1]]]).to_dense()
    torch.testing.assert_close(kept[:len(code)].to_dense(), code.detach(), rtol=1e-5, atol=1e-6)
    assert Reading(block.site, block, 'max').of(h, ctx.use[rows, :h.shape[1]]).shape == (8, block.n)
    read, unit = block.coder(), int(code.sum(0).argmax())
    assert read.encoder.weight.data_ptr() == block.encoder.weight.data_ptr() and all(p.requires_grad for p in model.parameters())
    off = Intervention(SAEFeaturizer(read), FixedMask(block.n, [unit]), 'zero')
    at = Site(block.site.path)
    with intervene(model, {at: off}), torch.no_grad(): out = model(**batch).logits
    maimed = copy.deepcopy(model); feedforwards(maimed)[1].decoder.weight.data[unit] = 0
    with torch.no_grad():
        torch.testing.assert_close(out, maimed(**batch).logits, rtol=1e-4, atol=1e-5)
        with intervene(model, {at: Intervention(SAEFeaturizer(read), FixedMask(block.n, []), 'zero')}): assert torch.equal(model(**batch).logits, model(**batch).logits)
        empty = Intervention(SAEFeaturizer(read), FixedMask(block.n, []), 'zero')
        plain = model(**batch).logits
        with intervene(model, {at: empty}): assert torch.equal(model(**batch).logits, plain) # an empty mask changes no bit
    if block.up is not None:
        with pytest.raises(BadInput, match='gates'): block.to_transcoder()
        return
    save_intervention(off, tmp_path/'off')
    with intervene(model, {at: load_intervention(tmp_path/'off')}), torch.no_grad(): torch.testing.assert_close(model(**batch).logits, out, rtol=1e-4, atol=1e-5)

@kinds
def test_an_equal_transcoder(kind, tmp_path):
    torch.manual_seed(0)
    block, x = SparseFeedForward(16, 64, spec(kind, k=4, activation='relu'), Site('mlp', 'input')).train(), torch.randn(50, 16)
    block(x); block.eval()
    t = block.to_transcoder()
    with torch.no_grad(): torch.testing.assert_close(t(x), block(x), rtol=1e-5, atol=1e-6)
    block.save_pretrained(tmp_path)
    with torch.no_grad(): torch.testing.assert_close(Transcoder.from_pretrained(tmp_path)(x), block(x), rtol=1e-5, atol=1e-6)

# ---- what it costs

ops = torch.ops.aten
OPS = { # what torch's counter does not know: attention on a processor, and sums of rows
    ops._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *a, **kw: 4*q[0]*q[1]*q[2]*k[2]*q[3],
    ops._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, *a, **kw: 10*q[0]*q[1]*q[2]*k[2]*q[3],
    ops._embedding_bag_forward_only: lambda W, i, *a, **kw: 2*i.numel()*W[1], ops._embedding_bag: lambda W, i, *a, **kw: 2*i.numel()*W[1],
    ops._embedding_bag_per_sample_weights_backward: lambda g, W, i, *a, **kw: 2*i.numel()*W[1]}

def counted(model, x, backward, known):
    with FlopCounterMode(display=False, custom_mapping=known) as c:
        loss = model.train()(x, labels=x).loss
        if backward: torch.autograd.backward(loss)
    model.zero_grad()
    return c.get_total_flops()

@families
@pytest.mark.parametrize('kind', [None, *KINDS])
@pytest.mark.parametrize('how', ['eager', 'sdpa'])
def test_flops_are_those_that_torch_counts(family, kind, how):
    model, x = made(family), ids(2, 48)
    model.set_attn_implementation(how)
    if kind: model = sparsify_feedforward(model, spec(kind, expansion=16, k=8))
    known = {k: (lambda f: lambda *a, out_shape=None, **kw: f(*[torch.Size(s) if isinstance(s, (list, tuple, torch.Size)) else s for s in a], **kw))(v) for k, v in OPS.items()}
    for backward in (False, True): assert abs(flops(model, 48, 2, backward)/counted(model, x, backward, known) - 1) < (.06 if kind == 'batch_topk' else .02)

# ---- what can be wrong

@pytest.mark.parametrize('make, why', [
    (lambda: FeedForwardSpec('sparse'), "unknown kind of feed-forward block 'sparse'"), (lambda: FeedForwardSpec(k=0), 'whole number from 1'), (lambda: FeedForwardSpec(expansion=0), 'above 0'), (lambda: FeedForwardSpec(expansion=float('nan')), 'above 0'),
    (lambda: FeedForwardSpec(activation='swosh'), "unknown activation 'swosh'"), (lambda: FeedForwardSpec(activation='prelu'), 'has weights of its own'), (lambda: FeedForwardSpec(rank=4), "which has none"), (lambda: FeedForwardSpec('dense', revive=1), 'every unit speaks'), (lambda: FeedForwardSpec(output_bias=1), 'True or False'),
    (lambda: sparsify_feedforward(made('neo'), spec('topk', k=257)), 'k=257 was given for 256 units'), (lambda: sparsify_feedforward(made('neo'), spec('groupmax', k=48)), 'divisors of 256'), (lambda: sparsify_feedforward(made('neo'), spec('topk'), [0, 2]), 'unknown layer 2'),
    (lambda: sparsify_feedforward(made('neo'), spec('topk'), ['0']), "unknown layer '0'"), (lambda: sparsify_feedforward(made('neo'), spec('topk'), []), 'no layer'), (lambda: sparsify_feedforward(made('neo'), 'topk'), 'give a FeedForwardSpec'),
    (lambda: sparsify_feedforward(sparsify_feedforward(made('neo'), spec('topk'), 1), spec('topk')), 'layer 1 of this model has a sparse block already'),
    (lambda: sparsify_feedforward(OPTForCausalLM(OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16)), spec('topk')), "type 'opt'"), (lambda: flops(torch.nn.Linear(2, 2), 8), "type 'Linear'"),
    (lambda: sparsify_feedforward(made('neo'), spec('topk'), 1.), 'unknown layer 1.0'), (lambda: flops(made('neo'), 0), 'whole numbers from 1'), (lambda: SparseFeedForward(16, 64, spec('low_rank', rank=17)), 'at most that'), (lambda: SparseFeedForward(16, 64).fold_norms(), 'norms'),
    (lambda: SparseFeedForward(16, 64, spec('topk', k=65)), 'k=65'), (lambda: SparseFeedForward(16, 64).rescale_(2.), 'train the model'),
    (lambda: SparseFeedForward(16, 64)(torch.zeros(2, 8)), 'width 8'), (lambda: SparseFeedForward(18, 64, spec('kron')), 'that 4 divides'), (lambda: SparseFeedForward(16, 64, activation='gelu').to_transcoder(), "activation 'gelu'")])
def test_mistakes_are_told_in_a_sentence(make, why):
    with pytest.raises(BadInput) as e: make()
    assert why in str(e.value) and '\n' not in str(e.value)

def test_a_spec_with_unknown_keys_is_told(tmp_path):
    sparsify_feedforward(made('gpt2'), spec('topk')).save_pretrained(tmp_path)
    cfg = json.loads((tmp_path/'config.json').read_text()); cfg['feedforward']['0']['sparsity'] = 3
    (tmp_path/'config.json').write_text(json.dumps(cfg))
    with pytest.raises(BadInput, match="unknown key of FeedForwardSpec 'sparsity'"): AutoModelForCausalLM.from_pretrained(tmp_path)

# ---- what it is for

def student(kind, seed, sparse=True, steps=1500, d=32, n=64, k=4):
    "A block that learns what a sparse one says: mean max cosine of its decoder with the teacher's."
    torch.manual_seed(seed)
    teacher = SparseFeedForward(d, n, FeedForwardSpec('topk', k=k, output_bias=False)).eval()
    with torch.no_grad():
        for m in (teacher.encoder, teacher.decoder): m.weight.copy_(F.normalize(torch.randn(n, d), dim=1))
    def inputs(rows): return torch.zeros(rows, n).scatter(1, torch.rand(rows, n).topk(k, dim=1).indices, 1 + torch.rand(rows, k)) @ teacher.encoder.weight.detach()
    block = SparseFeedForward(d, n, FeedForwardSpec(kind, k=k), std=d**-.5).train()
    opt = torch.optim.Adam(block.parameters(), lr=3e-3)
    for step in range(steps):
        for g in opt.param_groups: g['lr'] = 3e-3*min(1, (steps - step)/(.3*steps))
        x = inputs(512)
        with torch.no_grad(): y = teacher(x)
        opt.zero_grad(); torch.autograd.backward((block(x) - y).square().sum(1).mean()); opt.step()
    return metrics.max_cosines(teacher.W_dec, block.W_dec).mean().item()

@pytest.mark.slow
def test_a_sparse_teacher_is_recovered_by_a_sparse_student_and_less_by_a_dense_one():
    for seed in range(3):
        sparse, dense = student('topk', seed), student('dense', seed)
        assert sparse > .9 > .85 > dense, (seed, sparse, dense)
