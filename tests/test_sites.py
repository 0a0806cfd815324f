"Sites on every supported family, and on models that are awkward on purpose. Small random models; no network."
import copy, gc, hashlib, json, weakref

import pytest, torch, transformers as tf
from torch import nn

from saebook.core import BadInput
from saebook.sites import (Site, blocks, forward, n_layers, patch, prepare, put, read, site, take, tokenize, unwrap, width)

D, V, L = 16, 48, 3
std = dict(vocab_size=V, hidden_size=D, intermediate_size=32, num_hidden_layers=L, num_attention_heads=2, max_position_embeddings=64,
           bos_token_id=1, eos_token_id=1, pad_token_id=0)
kv = dict(std, num_key_value_heads=1, head_dim=8)
gpt = dict(vocab_size=V, n_embd=D, n_layer=L, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1)
neo = dict(vocab_size=V, hidden_size=D, num_layers=L, num_heads=2, max_position_embeddings=64, window_size=4, intermediate_size=32,
           attention_types=[[['global', 'local', 'global'], 1]], bos_token_id=1, eos_token_id=1)
distil = dict(vocab_size=V, dim=D, hidden_dim=32, n_layers=L, n_heads=2, max_position_embeddings=64, pad_token_id=0)

causal = dict(gpt2=('GPT2LMHeadModel', 'GPT2Config', gpt), gpt_neo=('GPTNeoForCausalLM', 'GPTNeoConfig', neo),
    neox_parallel=('GPTNeoXForCausalLM', 'GPTNeoXConfig', dict(std, use_parallel_residual=True)),
    neox_sequential=('GPTNeoXForCausalLM', 'GPTNeoXConfig', dict(std, use_parallel_residual=False)),
    llama=('LlamaForCausalLM', 'LlamaConfig', kv), gemma=('GemmaForCausalLM', 'GemmaConfig', kv),
    gemma2=('Gemma2ForCausalLM', 'Gemma2Config', dict(kv, sliding_window=4)),
    gemma3=('Gemma3ForCausalLM', 'Gemma3TextConfig', dict(kv, sliding_window=4)),
    mistral=('MistralForCausalLM', 'MistralConfig', dict(kv, sliding_window=None)),
    qwen2=('Qwen2ForCausalLM', 'Qwen2Config', kv), qwen3=('Qwen3ForCausalLM', 'Qwen3Config', kv))
masked = dict(bert=('BertForMaskedLM', 'BertConfig', std), roberta=('RobertaForMaskedLM', 'RobertaConfig', std),
    distilbert=('DistilBertForMaskedLM', 'DistilBertConfig', distil))
families = {**causal, **masked}
sandwich = {'gemma2', 'gemma3'} # normalise again before they add

def make(name):
    cls, cfg, kw = families[name]
    torch.manual_seed(0)
    m = getattr(tf, cls)(getattr(tf, cfg)(**kw)).eval().requires_grad_(True)
    for n, p in m.named_parameters(): # weights large enough for every part to matter
        if p.dim() > 1: nn.init.normal_(p, std=.3 if p.shape[0] != V else .6)
    return m

@pytest.fixture(scope='module', params=families)
def family(request): return request.param, make(request.param)
@pytest.fixture(scope='module', params=causal)
def decoder(request): return request.param, make(request.param)
@pytest.fixture(scope='module')
def neox(): return make('neox_parallel')

ids = torch.randint(2, V, (3, 6), generator=torch.Generator().manual_seed(1))
def n_hooks(m): return sum(len(c._forward_hooks) + len(c._forward_pre_hooks) for c in m.modules())
def print_of(m): return hashlib.sha256(b''.join(v.contiguous().view(torch.uint8).numpy().tobytes() for v in m.state_dict().values())).hexdigest()
def get(m, x, s, **kw): return read(m, x, s, **kw)[s]
def checkpointing(m): getattr(m, 'activation_checkpointing_enable', m.gradient_checkpointing_enable)()
def zero(h): return torch.zeros_like(h)
def sentence(f):
    with pytest.raises(BadInput) as e: f()
    assert '\n' not in str(e.value)
    return str(e.value)

# every family

def test_resid_post_is_what_the_model_itself_reports(family):
    name, m = family
    hidden = forward(m, dict(input_ids=ids, output_hidden_states=True)).hidden_states
    assert len(hidden) == L + 1
    acts = read(m, ids, [site(m, i) for i in range(L)])
    for i in range(L - (name not in masked)): # a decoder's last one is reported after the final norm
        assert torch.equal(acts[site(m, i)], hidden[i+1])
    assert torch.equal(get(m, ids, site(m, 0, 'resid_pre')), hidden[0])

def test_the_final_norm_of_the_last_resid_post_is_the_last_hidden_state(decoder):
    _, m = decoder
    norm = [c for n, c in m.base_model.named_children() if 'norm' in n or n == 'ln_f'][-1]
    assert torch.equal(norm(get(m, ids, site(m, -1))), m.base_model(ids).last_hidden_state)

def test_a_block_begins_where_the_one_before_ended(family):
    _, m = family
    for i in range(L-1):
        a, b = site(m, i), site(m, i+1, 'resid_pre')
        acts = read(m, ids, [b, a], stop=False)
        assert list(acts) == [b, a] and torch.equal(acts[a], acts[b])

def test_the_parts_of_a_block_add_up(family):
    name, m = family
    for i in range(L):
        pre, attn, mlp, post = S = [site(m, i, k) for k in ('resid_pre', 'attn', 'mlp', 'resid_post')]
        a = read(m, ids, S)
        assert all(v.shape == (3, 6, D) for v in a.values())
        block = m.get_submodule(post.path)
        if name in masked:
            norms = [block.attention.output.LayerNorm, block.output.LayerNorm] if name != 'distilbert' else [block.sa_layer_norm, block.output_layer_norm]
            total = norms[1](norms[0](a[pre] + a[attn]) + a[mlp])
        elif name in sandwich: total = a[pre] + block.post_attention_layernorm(a[attn]) + block.post_feedforward_layernorm(a[mlp])
        else: total = a[pre] + a[attn] + a[mlp]
        torch.testing.assert_close(total, a[post], atol=1e-5, rtol=1e-5)

def test_layers_are_found_with_and_without_a_head(family):
    _, m = family
    assert n_layers(m) == n_layers(m.base_model) == L
    assert unwrap(m).get_submodule(site(m, -1).path) is m.base_model.get_submodule(site(m.base_model, L-1).path)
    assert torch.equal(get(m, ids, site(m, 1)), get(m.base_model, ids, site(m.base_model, 1)))

def test_a_patch_that_gives_back_what_it_got_changes_no_bit(family):
    _, m = family
    base = forward(m, ids).logits
    for p in (None, 'last', (0, 2), '1:'):
        for kind in ('resid_post', 'resid_pre', 'mlp', 'attn'):
            with patch(m, {site(m, i, kind, p): lambda h: h.clone() for i in range(L)}): assert torch.equal(forward(m, ids).logits, base), (p, kind)

def test_zeroing_a_part_equals_a_model_whose_weights_there_are_zero(family):
    name, m = family
    for kind in ('attn', 'mlp'):
        s = site(m, 1, kind)
        lame = copy.deepcopy(m)
        last = [c for c in lame.get_submodule(s.path).modules() if isinstance(c, (nn.Linear, tf.pytorch_utils.Conv1D))]
        last = next((c for n, c in lame.get_submodule(s.path).named_modules() if n.rsplit('.')[-1] in ('c_proj', 'out_proj', 'o_proj', 'down_proj', 'out_lin', 'lin2', 'dense_4h_to_h', 'dense')), last[-1])
        for p in last.parameters(): nn.init.zeros_(p)
        with patch(m, {s: zero}): ours = forward(m, ids).logits
        torch.testing.assert_close(ours, forward(lame, ids).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(ours, forward(m, ids).logits, atol=1e-3)

def test_a_swap_of_the_last_residual_swaps_the_logits(family):
    _, m = family
    other, s = ids.flip(0), site(m, -1)
    swap = get(m, other, s)
    with patch(m, {s: lambda h: swap}): assert torch.equal(forward(m, ids).logits, forward(m, other).logits)

def test_the_input_side_can_be_patched_in_every_family(family):
    _, m = family
    for kind in ('attn', 'mlp'):
        s = site(m, 1, kind); s = Site(s.path, 'input')
        with patch(m, {s: zero}):
            assert not get(m, ids, s).any()
        with patch(m, {s: zero}): changed = forward(m, ids).logits
        assert not torch.equal(changed, forward(m, ids).logits)

def test_stopping_early_gives_the_same_and_calls_nothing_after(family):
    _, m = family
    calls = []
    h = m.get_submodule(site(m, 2).path).register_forward_hook(lambda *_: calls.append(1))
    try:
        S = [site(m, 1), site(m, 0, 'attn'), site(m, 1, 'mlp')]
        early = read(m, ids, S)
        assert not calls
        late = read(m, ids, S, stop=False)
        assert calls and all(torch.equal(early[s], late[s]) for s in S)
    finally: h.remove()

def test_the_model_is_left_as_it_was(family):
    _, m = family
    flags = [p.requires_grad for p in m.parameters()]
    was, hooks, mode = print_of(m), n_hooks(m), m.training
    read(m, ids, [site(m, 0), site(m, 1, 'attn', 'last')], grad=True)
    with patch(m, {site(m, 0): zero}): read(m, ids, site(m, 1))
    with pytest.raises(ZeroDivisionError):
        with patch(m, {site(m, 0): zero, site(m, 1, positions=-1): lambda h: 1/0}): forward(m, ids)
    with pytest.raises(KeyboardInterrupt):
        def interrupt(h): raise KeyboardInterrupt
        with patch(m, {site(m, 0): interrupt}): read(m, ids, site(m, 1))
    assert (print_of(m), n_hooks(m), m.training) == (was, hooks, mode)
    assert [p.requires_grad for p in m.parameters()] == flags and all(p.grad is None for p in m.parameters())

def test_a_wrong_layer_kind_or_path_is_told_with_the_choices(family):
    _, m = family
    for bad in (L, -L-1, '1', True, 1.0): assert f'layers 0 to {L-1}' in sentence(lambda: site(m, bad))
    assert "'resid_pre'" in sentence(lambda: site(m, 0, 'resid'))
    path = site(m, 0).path
    tail = path.split('.', 1)[1]
    assert f"did you mean '{path}'" in sentence(lambda: read(m, ids, Site(tail)))
    assert path in sentence(lambda: read(m, ids, Site(path.replace('.0', '.9'))))

def test_bfloat16_stays_bfloat16(family):
    m = copy.deepcopy(family[1]).bfloat16()
    s = site(m, 1)
    assert get(m, ids, s).dtype == torch.bfloat16
    base = forward(m, ids).logits
    with patch(m, {s: lambda h: h, site(m, 0, positions=(0, -1)): lambda h: h.clone()}): assert torch.equal(forward(m, ids).logits, base)
    with patch(m, {s: lambda h: h.float()}): assert 'bfloat16' in sentence(lambda: forward(m, ids))

def test_in_training_mode_with_checkpointing_reading_and_gradients_work(family):
    m = copy.deepcopy(family[1]).train()
    checkpointing(m)
    s = site(m, 1)
    torch.manual_seed(0); a = get(m, ids, s)
    torch.manual_seed(0); b = get(m, ids, s, grad=True)
    assert a.shape == (3, 6, D) and m.training
    b.sum().backward()
    assert all(p.grad is not None for p in m.get_submodule(s.path).parameters() if p.dim() > 1)

def test_a_backward_pass_inside_a_patch_recomputes_under_it(family):
    m, ck = copy.deepcopy(family[1]).eval(), copy.deepcopy(family[1]).train()
    for c in ck.modules():
        if isinstance(c, nn.Dropout): c.p = 0.
    for c in [ck] + list(ck.modules()):
        for k in ('attention_dropout', 'dropout_prob', 'p'):
            if isinstance(getattr(c, k, None), float): setattr(c, k, 0.)
        if isinstance(getattr(c, 'dropout', None), float): c.dropout = 0.
    checkpointing(ck)
    grads = []
    for x in (m, ck):
        with patch(x, {site(x, 0, 'mlp', 'last'): lambda h: 3 * h}): forward(x, ids, grad=True).logits.square().mean().backward()
        grads.append(x.get_submodule(site(x, 0, 'mlp').path))
    for a, b in zip(*(g.parameters() for g in grads)): torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)

# padding

words = [f'w{i:02}' for i in range(V)] # of one length, so that no special token is the beginning of another word
def tokenizer(**kw):
    from tokenizers import Tokenizer, models, pre_tokenizers
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token='w02')); t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(tokenizer_object=t, **kw)
texts = ['w05 w06 w07 w08 w09 w10', 'w11', 'w12 w13 w14']

def test_padding_left_or_right_makes_no_difference_to_the_real_tokens(family):
    name, m = family
    tok = tokenizer(pad_token='w00')
    left, right = tokenize(tok, texts, 'left'), tokenize(tok, texts, 'right')
    for i in range(L):
        s = site(m, i)
        l, r = get(m, left, s), get(m, right, s)
        for row, t in enumerate(texts):
            n = len(t.split())
            alone = get(m, tokenize(tok, t), s)[0]
            torch.testing.assert_close(r[row, :n], alone, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(l[row, -n:], alone, atol=1e-5, rtol=1e-5)
        for p in (0, 'last', '-1:', (-1, 0)[:1]):
            torch.testing.assert_close(get(m, left, s.at(p)), get(m, right, s.at(p)), atol=1e-5, rtol=1e-5)

def test_a_patch_at_the_last_token_does_the_same_on_either_side(family):
    _, m = family
    tok = tokenizer(pad_token='w00')
    out = []
    for side in ('left', 'right'):
        b = tokenize(tok, texts, side)
        with patch(m, {site(m, 0, positions='last'): lambda h: h + 1}): logits = forward(m, b).logits
        out.append([logits[i][k.bool()] for i, k in enumerate(b['attention_mask'])])
    for l, r in zip(*out): torch.testing.assert_close(l, r, atol=1e-4, rtol=1e-4)

def test_a_tokenizer_without_a_padding_token_is_padded_with_its_end_token_and_not_changed():
    tok = tokenizer(eos_token='w01')
    was = (tok.padding_side, tok.pad_token, len(tok), tok.special_tokens_map)
    b = tokenize(tok, texts, 'left', max_length=4)
    assert b['input_ids'].tolist() == [[5, 6, 7, 8], [1, 1, 1, 11], [1, 12, 13, 14]]
    assert b['attention_mask'].tolist() == [[1]*4, [0, 0, 0, 1], [0, 1, 1, 1]]
    assert (tok.padding_side, tok.pad_token, len(tok), tok.special_tokens_map) == was
    assert len(tok('w05 w06 w07 w08 w09 w10')['input_ids']) == 6 # the cut was ours alone

def test_what_cannot_be_tokenised_is_told():
    tok = tokenizer()
    assert 'neither a padding nor an end token' in sentence(lambda: tokenize(tok, texts))
    assert tokenize(tok, ['w03 w04', 'w05 w06'])['input_ids'].tolist() == [[3, 4], [5, 6]]
    assert 'text 1 has no tokens' in sentence(lambda: tokenize(tok, ['w03', ' ']))
    assert 'no texts' in sentence(lambda: tokenize(tok, []))
    assert 'text 0 is a int' in sentence(lambda: tokenize(tok, [3]))

def test_roberta_numbers_its_positions_itself():
    b = tokenize(tokenizer(pad_token='w00'), texts, 'left')
    assert 'position_ids' not in prepare(make('roberta'), b)[1]
    assert prepare(make('bert'), b)[1]['position_ids'].tolist()[2] == [0, 0, 0, 0, 1, 2]
    assert 'position_ids' not in b

# generation

def generate(m, x, **kw):
    return m.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0, **kw)

def recompute(m, x, n=6):
    for _ in range(n):
        logits = forward(m, dict(input_ids=x, use_cache=False)).logits[:, -1]
        logits[:, 1] = -float('inf') # generate's min_new_tokens forbids the end token
        x = torch.cat([x, logits.argmax(-1, keepdim=True)], 1)
    return x

@pytest.mark.parametrize('positions', [None, 0, (1, 3), '1:', '2:4'])
def test_generation_with_a_cache_equals_recomputation_under_the_same_patch(decoder, positions):
    _, m = decoder
    s, v = site(m, 1, positions=positions), 3 * torch.randn(D, generator=torch.Generator().manual_seed(3))
    with patch(m, {s: lambda h: h + v}): fast, slow = generate(m, ids), recompute(m, ids)
    assert torch.equal(fast, slow)

def test_a_patch_changes_what_is_generated(decoder):
    _, m = decoder
    v = 20 * torch.randn(D, generator=torch.Generator().manual_seed(3))
    with patch(m, {site(m, 1): lambda h: h + v}): steered = generate(m, ids)
    assert not torch.equal(steered, generate(m, ids)) and torch.equal(generate(m, ids), recompute(m, ids))

def test_a_patch_at_the_last_token_of_the_prompt_is_applied_once(decoder):
    _, m = decoder
    b, seen = tokenize(tokenizer(pad_token='w00'), texts, 'left'), []
    def note(h): seen.append(h.clone()); return h
    s = site(m, 1, positions='last')
    with patch(m, {s: note}): m.generate(**b, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], get(m, b, s), atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('positions', ['-2:', ':-1', (0, -1)])
def test_positions_from_the_end_are_counted_in_the_prompt_only(neox, positions):
    seen = []
    with patch(neox, {site(neox, 1, positions=positions): lambda h: seen.append(h.shape[1]) or h}): generate(neox, ids)
    assert seen == [len(range(*slice(*map(lambda v: int(v) if v else None, positions.split(':'))).indices(6))) if isinstance(positions, str) else 2]

def test_left_padded_generation_under_a_patch_equals_each_prompt_alone(decoder):
    _, m = decoder
    tok = tokenizer(pad_token='w00')
    with patch(m, {site(m, 0, positions=0): lambda h: h * 2, site(m, 1): lambda h: h + .5}):
        kw = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
        many = m.generate(**tokenize(tok, texts, 'left'), **kw)[:, -3:]
        for row, t in zip(many, texts): assert torch.equal(m.generate(**tokenize(tok, t), **kw)[0, -3:], row)

def test_a_prompt_that_is_read_in_two_parts_has_its_positions_counted_over_both(neox):
    whole, cache, got = [], tf.DynamicCache(config=neox.config), []
    s = site(neox, 0, positions=4)
    with patch(neox, {s: lambda h: h + 1}): full = forward(neox, ids).logits
    with patch(neox, {s.at((4,)): lambda h: got.append(h.shape[1]) or h + 1}), torch.no_grad():
        with pytest.raises(BadInput, match='outside a text of 3 tokens'): neox(ids[:, :3])
        neox(ids[:, :5], past_key_values=cache); part = neox(ids[:, 5:], past_key_values=cache).logits
    assert got == [1]
    torch.testing.assert_close(part, full[:, 5:], atol=1e-5, rtol=1e-5)

def test_beam_search_and_sampling_run_under_a_patch(neox):
    b = tokenize(tokenizer(pad_token='w00'), texts, 'left')
    with patch(neox, {site(neox, 1, positions='last'): lambda h: h + 1, site(neox, 0): lambda h: h * 2}):
        assert len(neox.generate(**b, num_beams=3, max_new_tokens=4, pad_token_id=0)) == 3
        assert len(neox.generate(**b, do_sample=True, num_return_sequences=2, max_new_tokens=4, pad_token_id=0)) == 6

def test_a_static_cache_gives_the_same_under_a_patch(neox):
    with patch(neox, {site(neox, 1, positions='1:'): lambda h: h * 1.5}):
        assert torch.equal(generate(neox, ids), generate(neox, ids, cache_implementation='static', disable_compile=True))

# positions

def test_positions_select_what_slicing_the_whole_selects(neox):
    s = site(neox, 1)
    whole = get(neox, ids, s)
    for p, want in [(0, slice(0, 1)), (-1, slice(-1, None)), ('last', slice(-1, None)), ((0, 2), [0, 2]), ((-1, 1), [-1, 1]), ('1:', slice(1, None)),
                    (slice(1, -1), slice(1, -1)), ('::2', slice(None, None, 2)), (range(1, 3), [1, 2])]:
        assert torch.equal(get(neox, ids, s.at(p)), whole[:, want]), p

def test_one_position_is_edited_and_no_other(neox):
    s = site(neox, 1)
    whole = get(neox, ids, s)
    for p, i in [((1, -1), [1, 5]), (':2', [0, 1]), (3, [3])]:
        with patch(neox, {s.at(p): zero}): h = get(neox, ids, s)
        keep = [j for j in range(6) if j not in i]
        assert not h[:, i].any() and torch.equal(h[:, keep], whole[:, keep])

def test_positions_that_do_not_exist_are_told(neox):
    s = site(neox, 1)
    assert 'position 6 is outside a text of 6 tokens' in sentence(lambda: get(neox, ids, s.at(6)))
    b = tokenize(tokenizer(pad_token='w00'), texts)
    assert 'position 3 is outside a text of' in sentence(lambda: get(neox, b, s.at(3)))
    assert 'depending on the row' in sentence(lambda: get(neox, b, s.at('1:')))
    assert 'names no token of these texts' in sentence(lambda: get(neox, ids, s.at('9:')))
    for bad in ('end', (), (1, 1), 1.5, True, '::0', object(), ('a',)): assert 'positions' in sentence(lambda: s.at(bad))
    assert 'has no positions' in sentence(lambda: get(nn.Sequential(nn.Linear(3, 3)), torch.randn(4, 3), Site('0', positions=0)))

def test_positions_ask_for_the_module_that_is_called_to_be_patched(neox):
    with patch(neox, {site(neox, 0, positions=-1): zero}), torch.no_grad():
        assert 'patch the very module that is called' in sentence(lambda: neox.gpt_neox(ids))

def test_a_site_survives_json_and_is_a_key():
    for s in (Site('a.b', 'input', (1, -2)), Site('a', positions='1:'), Site('a', positions=range(3)), Site('')):
        assert {s: 1}[Site.from_dict(json.loads(json.dumps(s.to_dict())))] == 1 and Site(**json.loads(json.dumps(s.to_dict()))) == s
    assert str(Site('a', 'input', [0, 1])) == 'a:input[0, 1]' and str(Site('')) == '(model)'
    assert "unknown key of a site 'sides'" in sentence(lambda: Site.from_dict(dict(path='a', sides='output')))
    assert 'site(model, layer)' in sentence(lambda: Site(3))

def test_take_and_put_are_differentiable_and_inverse():
    h = torch.randn(3, 5, 4, dtype=torch.double, requires_grad=True)
    i = torch.tensor([[0, 4], [-1, 1], [2, 3]])
    assert torch.equal(take(h, i)[1], h[1, [-1, 1]]) and torch.equal(put(h, i, take(h, i)), h)
    assert torch.autograd.gradcheck(lambda h: put(h, i, take(h, i) ** 2), h)
    heads = torch.randn(3, 2, 5, 4)
    assert torch.equal(take(heads, i)[1, 1], heads[1, 1, [-1, 1]])
    assert 'columns' in sentence(lambda: take(h, [0, 5, 0])) and 'columns' in sentence(lambda: take(h, [0, 1]))

# awkward modules

def test_a_plain_sequential_is_a_model_too():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    assert torch.equal(get(net, x, Site('1')), torch.tanh(net[0](x)).detach())
    with patch(net, {Site('1'): zero}): assert torch.equal(forward(net, x), net[2].bias.detach().expand(5, 2))
    assert torch.equal(get(net, x, Site('', 'input')), x) and torch.equal(get(net, x, Site('')), net(x).detach())
    assert width(net, Site('0'), x) == 4
    assert 'no list of transformer blocks' in sentence(lambda: site(net, 0))

def test_torchs_own_transformer_is_found_by_its_shape():
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x = torch.randn(2, 3, 8)
    assert blocks(net) == 'layers' and torch.equal(get(net, x, site(net, 0)), get(net, x, site(net, 1, 'resid_pre')))
    base = forward(net, x)
    with patch(net, {site(net, 0): lambda h: h.clone()}): torch.testing.assert_close(forward(net, x), base)
    assert "layers.0 has no module of a known name that is its mlp alone" in sentence(lambda: site(net, 0, 'mlp'))

def test_a_model_with_two_stacks_is_not_guessed():
    bart = tf.BartModel(tf.BartConfig(vocab_size=V, d_model=D, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=1))
    msg = sentence(lambda: site(bart, 0))
    assert 'encoder.layers' in msg and 'decoder.layers' in msg
    assert get(bart.eval(), ids, Site('decoder.layers.0')).shape == (3, 6, D)

def test_a_model_that_reads_and_sees_is_taken_at_its_language_model():
    m = tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=tf.Gemma3TextConfig(**kv).to_dict(), mm_tokens_per_image=1,
        vision_config=dict(hidden_size=D, intermediate_size=D, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14))).eval()
    assert blocks(m).endswith('language_model.layers') and n_layers(m) == L and get(m, ids, site(m, 1, 'mlp')).shape == (3, 6, D)

def test_modules_that_add_the_residual_themselves_are_not_called_attn_or_mlp():
    bloom = tf.BloomModel(tf.BloomConfig(vocab_size=V, hidden_size=D, n_layer=2, n_head=2)).eval()
    mpnet = tf.MPNetModel(tf.MPNetConfig(**std)).eval()
    opt = tf.OPTModel(tf.OPTConfig(vocab_size=V, hidden_size=D, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, word_embed_proj_dim=D)).eval()
    for m, kind in ((bloom, 'attn'), (bloom, 'mlp'), (mpnet, 'attn'), (opt, 'mlp')): assert f'is its {kind} alone' in sentence(lambda: site(m, 0, kind))
    for m in (bloom, mpnet, opt): assert torch.equal(get(m, ids, site(m, 0)), get(m, ids, site(m, 1, 'resid_pre')))
    albert = tf.AlbertModel(tf.AlbertConfig(**std, embedding_size=D)).eval()
    assert 'no list of transformer blocks' in sentence(lambda: site(albert, 0))
    assert get(albert, ids, Site('encoder.albert_layer_groups.0')).shape == (3, 6, D)

class Odd(nn.Module):
    "Every kind of output and of call: keyword, tuple, dict, twice, never, in place, a view."
    def __init__(self):
        super().__init__()
        self.kw, self.pair, self.table, self.twice, self.never, self.same, self.loss = Kw(), Out(lambda x: (x + 1, None)), Out(lambda x: dict(logits=x * 2, n=1)), nn.Linear(4, 4), nn.Linear(4, 4), nn.Identity(), Out(lambda x: dict(loss=x.sum()))
        self.named = Out(lambda x: torch.max(x, -1))
    def forward(self, x):
        self.loss(x); self.named(x)
        h = self.kw(scale=2., z=x)
        h = self.pair(h)[0]
        h = self.table(h)['logits']
        h = self.same(h)
        h += 100
        return self.twice(self.twice(h))
class Kw(nn.Module):
    def forward(self, z, scale): return z * scale
class Out(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)

def test_odd_modules_are_read_right():
    m, x = Odd(), torch.randn(2, 3, 4)
    S = {k: Site(k) for k in ('kw', 'pair', 'table', 'same', 'twice', 'named')}
    for kw in (dict(stop=False), dict(), dict(stop=False, grad=True)):
        a = read(m, x, [*S.values(), Site('kw', 'input')], **kw)
        h = (2 * x + 1) * 2
        for k, want in dict(kw=2 * x, pair=2 * x + 1, table=h, same=h, named=x.max(-1).values).items(): assert torch.equal(a[S[k]], want), (k, kw)
        torch.testing.assert_close(a[S['twice']], m.twice(h + 100)) # its first call
        assert torch.equal(a[Site('kw', 'input')], x)
    with patch(m, {Site('kw', 'input'): lambda h: h + 1, S['pair']: lambda h: h * 3, S['table']: lambda h: h - 1}): b = read(m, x, list(S.values()))
    assert torch.equal(b[S['table']], (2 * (x + 1) + 1) * 3 * 2 - 1)
    n = []
    with patch(m, {S['twice']: lambda h: n.append(1) or h}): forward(m, x)
    assert len(n) == 2 # but edited at each
    assert 'never did not run' in sentence(lambda: get(m, x, Site('never')))
    assert 'is a dict with loss' in sentence(lambda: get(m, x, Site('loss')))
    assert n_hooks(m) == 0

def test_the_output_of_a_whole_hugging_face_model_can_be_read_and_patched(neox):
    assert torch.equal(get(neox, ids, Site('')), neox(ids).logits.detach())
    assert torch.equal(get(neox, ids, Site('gpt_neox')), neox.gpt_neox(ids).last_hidden_state.detach())
    with patch(neox, {Site('gpt_neox'): zero}): out = forward(neox, ids)
    assert not out.logits.any() and out.past_key_values is not None

def test_the_ids_themselves_can_be_patched(neox):
    with patch(neox, {Site('', 'input'): lambda i: i.flip(0)}): out = forward(neox, ids).logits
    assert torch.equal(out, forward(neox, ids.flip(0)).logits)

def test_one_site_several_none_or_the_same_twice(neox):
    s, t = site(neox, 1), site(neox, 0)
    assert list(read(neox, ids, s)) == [s] and read(neox, ids, []) == {} and list(read(neox, ids, [s, t, s])) == [s, t]
    assert torch.equal(read(neox, ids, (x for x in [s, t]))[t], get(neox, ids, t))
    with patch(neox, {}): assert torch.equal(get(neox, ids, s), get(neox, ids, s))
    assert 'is not a site' in sentence(lambda: read(neox, ids, [s, 'gpt_neox']))
    assert 'is not a site' in sentence(lambda: patch(neox, {2: zero}).__enter__())
    assert 'not a function' in sentence(lambda: patch(neox, {s: 0}).__enter__())
    assert 'a dict of functions' in sentence(lambda: patch(neox, [s]).__enter__())

def test_inputs_come_in_every_form(neox):
    s, want = site(neox, 1), get(neox, ids, site(neox, 1))
    for x in (dict(input_ids=ids), tf.BatchEncoding(dict(input_ids=ids)), (ids,), (ids, torch.ones_like(ids))): assert torch.equal(get(neox, x, s), want)
    right = torch.tensor([[1]*6, [1]*4 + [0]*2, [1]*6])
    assert torch.equal(get(neox, (ids, right), s.at('last'))[1, 0], get(neox, dict(input_ids=ids, attention_mask=right), s)[1, 3]) # a mask by place is seen
    assert 'use tokenize' in sentence(lambda: get(neox, 'a text', s)) and 'use tokenize' in sentence(lambda: get(neox, [[1, 2]], s))
    assert 'give ids[None]' in sentence(lambda: get(neox, ids[0], s))
    assert 'NoneType is not a model' in sentence(lambda: get(None, ids, s))

def test_several_positions_of_one_module_are_read_in_one_pass(neox):
    s = site(neox, 1)
    a = read(neox, ids, [s, s.at(0), s.at('last'), Site(s.path, 'input', 0)])
    assert torch.equal(a[s][:, :1], a[s.at(0)]) and torch.equal(a[s][:, -1:], a[s.at('last')])

def test_gradients_flow_from_a_later_site_to_an_earlier_and_through_a_patch(neox):
    s, t = site(neox, 0, positions='last'), site(neox, 2)
    a = read(neox, ids, [s, t], grad=True)
    g, = torch.autograd.grad(a[t].sum(), a[s])
    assert g.shape == (3, 1, D) and g.abs().sum() > 0
    v = torch.zeros(D, requires_grad=True)
    with patch(neox, {s: lambda h: h + v}): forward(neox, ids, grad=True).logits[:, -1].square().sum().backward()
    assert v.grad.abs().sum() > 0
    neox.zero_grad()
    assert not get(neox, ids, s).requires_grad

def test_gradients_agree_with_finite_differences():
    m = make('gpt2').double() # rotary models go through float32
    s, t = site(m, 0, positions=2), site(m, 2)
    a = read(m, ids, [s, t], grad=True)
    w = torch.randn(a[t].shape, dtype=torch.double)
    g, = torch.autograd.grad((a[t] * w).sum(), a[s])
    e = torch.randn(3, 1, D, dtype=torch.double); up = []
    for sign in (1, -1):
        with patch(m, {s: lambda h: h + sign * 1e-5 * e}): up.append((get(m, ids, t) * w).sum())
    assert abs(float((up[0] - up[1]) / 2e-5 - (g * e).sum())) < 1e-5 * float((g * e).abs().sum())

def test_reading_inside_a_function_of_a_patch_and_inside_another_read(neox):
    other, s = copy.deepcopy(neox), site(neox, 1)
    with patch(neox, {s: lambda h: get(other, ids.flip(0), s)}): out = forward(neox, ids).logits
    assert torch.equal(out, forward(neox, ids.flip(0)).logits)

def test_a_module_that_reads_for_itself_does_not_swallow_the_readers_stop():
    class Reader(nn.Module):
        def __init__(self): super().__init__(); self.net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)); self.after = nn.Identity()
        def forward(self, x): return self.after(read(self.net, x, Site('1'))[Site('1')])
    m, x = Reader(), torch.randn(2, 3)
    assert torch.equal(get(m, x, Site('net.0')), m.net[0](x).detach()) and torch.equal(get(m, x, Site('after')), m.net(x).detach())

def test_leaving_early_keeps_no_activation_alive(neox):
    alive = []
    h = neox.gpt_neox.layers[0].register_forward_hook(lambda m, a, o: alive.append(weakref.ref(o)) or None)
    gc.collect(); gc.disable()
    try:
        a = read(neox, ids, site(neox, 1)); assert len(alive) == 1 and alive[0]() is None
    finally: gc.enable(); h.remove()

def test_what_was_read_does_not_change_when_it_is_written_to(neox):
    s = site(neox, 1); want = get(neox, ids, s)
    for grad in (False, True):
        a = get(neox, ids, s, grad=grad).detach(); a.zero_()
        assert torch.equal(get(neox, ids, s), want)

def test_hidden_states_reported_by_transformers_do_not_see_a_patch_on_that_block(neox):
    "If this fails, transformers has changed for the better: take the warning out of the chapter."
    neox(ids, output_hidden_states=True) # its hooks are set at the first such call, and stay
    with patch(neox, {site(neox, 1): zero}):
        assert neox(ids, output_hidden_states=True).hidden_states[2].any() and not get(neox, ids, site(neox, 1)).any()

def test_a_compiled_or_deep_copied_model_is_read_as_the_plain_one(neox):
    s = site(neox, 1)
    assert torch.equal(get(torch.compile(neox), ids, s), get(neox, ids, s)) and torch.equal(get(copy.deepcopy(neox), ids, s), get(neox, ids, s))

def test_inference_mode_and_no_grad_of_the_caller_are_no_hindrance(neox):
    s, want = site(neox, 1), get(neox, ids, site(neox, 1))
    with torch.inference_mode(): assert torch.equal(get(neox, ids, s), want)
    with torch.no_grad(): assert get(neox, ids, s, grad=True).requires_grad and not torch.is_grad_enabled()

# nnsight

@pytest.mark.filterwarnings('ignore')
def test_nnsight_models_are_accepted_and_agree():
    import nnsight
    m = make('neox_parallel')
    base = forward(m, ids).logits
    for lm in (nnsight.NNsight(m), nnsight.LanguageModel(m, tokenizer=tokenizer(pad_token='w00', eos_token='w01'))):
        assert unwrap(lm) is m and site(lm, -1) == site(m, 2)
        s = site(lm, 1)
        with lm.trace(ids):
            h = lm.gpt_neox.layers[1].output.detach().save()
            lm.gpt_neox.layers[1].output = lm.gpt_neox.layers[1].output * 2
            theirs = lm.output.logits.detach().save()
        assert torch.equal(get(lm, ids, s), h)
        with patch(lm, {s: lambda h: h * 2}): ours = forward(lm, ids).logits
        assert torch.equal(ours, theirs) and torch.equal(forward(lm, ids).logits, base)
        with patch(lm, {s.at('last'): lambda h: h * 2}):
            with lm.trace(ids):
                there = lm.output.logits.detach().save()
            here = forward(lm, ids).logits
        assert torch.equal(here, there)
        assert torch.equal(get(lm, ids, Site(site(lm, 1, 'attn').path, 'input')), get(copy.deepcopy(make('neox_parallel')), ids, Site('gpt_neox.layers.1.attention', 'input')))

@pytest.mark.filterwarnings('ignore')
def test_an_nnsight_model_that_has_not_loaded_its_weights_is_loaded(shared):
    import nnsight
    path = str(shared('models/stories260K'))
    lm, m = nnsight.LanguageModel(path, tokenizer=tf.AutoTokenizer.from_pretrained(path)), tf.AutoModelForCausalLM.from_pretrained(path)
    assert not lm.dispatched
    assert torch.equal(get(lm, ids, site(lm, 2)), get(m, ids, site(m, 2)))

# a model that was trained

def test_a_trained_model_from_disk_reads_and_steers(shared):
    path = shared('models/stories260K')
    tok, m = tf.AutoTokenizer.from_pretrained(path), tf.AutoModelForCausalLM.from_pretrained(path)
    texts = ['Once upon a time', 'Lily and Tom went to the park to', 'The dog']
    left, right = tokenize(tok, texts, 'left'), tokenize(tok, texts, 'right')
    assert left['attention_mask'].sum(1).tolist() == right['attention_mask'].sum(1).tolist()
    s = site(m, 2, positions='last')
    torch.testing.assert_close(get(m, left, s), get(m, right, s), atol=1e-4, rtol=1e-4)
    kw = dict(max_new_tokens=12, do_sample=False, pad_token_id=0)
    plain = m.generate(**left, **kw)
    with patch(m, {site(m, 2): lambda h: h}): assert torch.equal(m.generate(**left, **kw), plain)
    with patch(m, {site(m, 2, 'mlp'): zero}): assert not torch.equal(m.generate(**left, **kw), plain)
    for row, t in zip(plain, texts): # the batch says what each text says alone
        one = m.generate(**tokenize(tok, t), **kw)[0]
        assert tok.decode(one, skip_special_tokens=True) == tok.decode(row[-len(one):], skip_special_tokens=True)

@pytest.mark.parametrize('kind,causal', [('bert', False), ('gpt2', True)])
def test_a_model_is_loaded_as_it_was_saved(shared, tmp_path, kind, causal):
    from saebook.sites import load_model
    tf.AutoTokenizer.from_pretrained(shared('models/stories260K')).save_pretrained(tmp_path)
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=512)
    (tf.BertModel(tf.BertConfig(**small)) if kind == 'bert' else tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=512))).save_pretrained(tmp_path)
    assert hasattr(load_model(tmp_path, causal=None)[0], 'lm_head') == causal

def test_a_model_that_lacks_weights_is_refused(tmp_path): # transformers would make them up, with a warning
    from safetensors.torch import load_file, save_file
    from saebook.world import load_taught
    model, tok = load_taught('base')
    model.save_pretrained(tmp_path); tok.save_pretrained(tmp_path)
    f = tmp_path/'model.safetensors'; w = load_file(f)
    save_file({k: v for k, v in w.items() if 'embed_out' not in k and 'lm_head' not in k}, f, dict(format='pt'))
    with pytest.raises(BadInput, match='has no weights .*which would be random'): sites.load_model(tmp_path)
    sites.load_model(tmp_path, causal=False) # the bare model needs none
