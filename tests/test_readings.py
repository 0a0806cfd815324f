"Readings: pooling by hand, padding on either side, the right layer, one forward pass, and what is kept on disk."
import os, signal, subprocess, sys, textwrap
from pathlib import Path

import numpy as np, pytest, torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from saebook import readings, sites
from saebook.codes import SparseCode
from saebook.core import BadInput
from saebook.readings import CODE_POOLS, POOLS, Reading, collect, pool, pooled
from saebook.sae import ACTIVATIONS, SAE
from saebook.sites import Site
from saebook.world import World, load_planted, load_taught

@pytest.fixture(scope='module')
def lm():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)).eval()

@pytest.fixture(scope='module')
def taught(): return load_taught('base')

@pytest.fixture(scope='module')
def texts(): return World(0).biographies(40, seed=2).text.tolist()

def test_pooling_does_not_see_padding():
    g = torch.Generator().manual_seed(0)
    h, use = torch.randn(3, 7, 5, generator=g), torch.zeros(3, 7, dtype=torch.bool)
    use[0, 2:5] = use[1, :1] = use[2] = True
    for how in POOLS:
        got = pool(h, use, how)
        alone = torch.cat([pool(h[i:i+1, u], torch.ones(1, int(u.sum()), dtype=torch.bool), how) for i, u in enumerate(use)])
        assert torch.allclose(got, alone, atol=1e-6), how
        spoilt = pool(torch.where(use[..., None], h, torch.tensor(float('nan'))), use, how)
        assert torch.allclose(got, spoilt, atol=1e-6), how
    for says, args in (('unknown pooling', (h, use, 'median')), ('tokens in use were given as int64', (h, use.long())), (r'activations of shape \[7, 5\]', (h[0], use)), (r'of shape \[3, 6\] for activations', (h, use[:, :6]))):
        with pytest.raises(BadInput, match=says): pool(*args)
    for r in (Reading(Site('h')), Reading(Site('h'), SAE(5, 8, 'relu'))): # an array will do, and what does not fit is told with features too
        a, b = (r.of(h, u) for u in (use, use.numpy()))
        assert (a != b).sum() == 0
        for says, args in (('tokens in use were given as int64', (h, use.long())), (r'activations of shape \[7, 5\]', (h[0],)), (r'of shape \[3, 6\] for activations', (h, use[:, :6].numpy()))):
            with pytest.raises(BadInput, match=says): r.of(*args)

@pytest.mark.parametrize('how', ['mean', 'last', 'max'])
def test_pooled_is_the_same_in_any_batch(how, taught):
    world, at = World(0), load_planted().site
    texts = world.biographies(20).text.tolist() + ['a nurse']
    whole, one = (pooled(*taught, texts, at, how, batch=b, progress=False) for b in (64, 1))
    assert (whole - one).abs().max() < 1e-4 and whole.shape == (21, 128)
    two = pooled(*taught, texts, [at], how, progress=False)
    assert torch.equal(two[at], whole)

@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_sparse_pooling_is_dense_pooling(activation):
    "Of every kind of SAE, with more tokens than are encoded at once, and texts of which one token counts."
    g = torch.Generator().manual_seed(1)
    h, use = torch.randn(70, 80, 6, generator=g), torch.rand(70, 80, generator=g) < .9
    use[0] = False; use[0, 3] = True
    sae = SAE(6, 24, activation, k=4, seed=1).eval()
    dense = sae.encode(h).to_dense().detach()
    for how in POOLS: assert np.abs(Reading(Site('h'), sae, how).of(h, use).toarray() - pool(dense, use, how).numpy()).max() < 1e-4, how
    assert (Reading(Site('h'), sae, 'count').of(h, use).toarray() == ((dense > 0) & use[..., None]).sum(1).numpy()).all()
    for n in (1, 3, 24):
        top = (dense >= dense.topk(n, dim=-1).values[..., -1:]) & (dense > 0)
        assert (Reading(Site('h'), sae, 'count_topn', n).of(h, use).toarray() == (top & use[..., None]).sum(1).numpy()).all(), n

def test_the_largest_of_a_token_are_only_those_that_are_active():
    class One: # one active feature, number 6
        n = 9
        def encode(self, x): return SparseCode(torch.tensor([2., 0., 0.]).repeat(len(x), 1), torch.tensor([6, 0, 0]).repeat(len(x), 1), 9)
    assert Reading(Site('h'), One(), 'count_topn', 5).of(torch.zeros(1, 2, 3)).toarray()[0].tolist() == [0]*6 + [2, 0, 0]

@pytest.mark.parametrize('how, n', [(p, 2 if p == 'count_topn' else None) for p in CODE_POOLS])
def test_a_text_alone_and_in_a_padded_batch_left_or_right_has_the_same_features(how, n, lm):
    at = sites.site(lm, 1)
    sae = SAE(16, 64, 'relu', site=at)
    ids = [torch.randint(1, 50, (m,), generator=torch.Generator().manual_seed(m)).tolist() for m in (3, 9, 17, 1)]
    def read(rows, side):
        x = dict(input_ids=sites.padded(rows, side), attention_mask=sites.padded([[1]*len(r) for r in rows], side))
        return sites.read(lm, x, at)[at], x['attention_mask'] > 0
    for sae, r in ((None, None), (sae, Reading(at, sae, how, n))):
        r = r or Reading(at, pool=how if how in POOLS else 'mean')
        dense = lambda x: x if sae is None else x.toarray()
        alone = np.concatenate([dense(r.of(*read([i], 'right'))) for i in ids])
        for side in ('left', 'right'): assert np.abs(dense(r.of(*read(ids, side))) - alone).max() < 1e-5, side

def test_features_of_a_layer_are_the_sae_of_its_output_and_not_of_the_layer_before(taught, texts):
    model, tok = taught
    at = [sites.site(model, l) for l in range(sites.n_layers(model))]
    got = collect(model, tok, texts, {l: Reading(s, SAE(128, 256, k=8, site=s)) for l, s in enumerate(at)}, progress=False)
    hidden = {}
    for l, s in enumerate(at): # by transformers' own account, not by our hooks
        sae, means = SAE(128, 256, k=8, site=s), []
        for t in texts:
            x = sites.tokenize(tok, [t]); use = ~torch.isin(x['input_ids'][0], sites.special_ids(tok))
            if t not in hidden: hidden[t] = model(**x, output_hidden_states=True).hidden_states
            if l + 1 < len(at): means.append([sae.encode(hidden[t][j][0, use]).to_dense().mean(0).detach().numpy() for j in (l + 1, l)])
        if means: # the last of transformers' states has gone through the final norm
            right, before = (np.array(m) for m in zip(*means))
            assert np.abs(got[l].toarray() - right).max() < 1e-5 < .05 < np.abs(got[l].toarray() - before).max()

def test_one_forward_pass_for_all_readings_that_ends_at_the_deepest(taught, texts):
    model, tok = taught
    at, ran = [sites.site(model, l) for l in range(2)], []
    hooks = [sites.module_at(model, f'{sites.blocks(model)}.{l}').register_forward_hook(lambda *_, l=l: ran.append(l)) for l in range(sites.n_layers(model))]
    try: collect(model, tok, texts, {(l, p): Reading(s, pool=p) for l, s in enumerate(at) for p in POOLS}, batch=20, progress=False)
    finally: [h.remove() for h in hooks]
    assert ran.count(0) == 2 and set(ran) <= {0, 1} # two batches of twenty

def test_the_order_of_the_texts_changes_nothing_to_the_bit(taught, texts):
    at = load_planted().site
    many = texts*8 # more than one shard
    r = dict(h=Reading(at), f=Reading(at, SAE(128, 512, k=8, site=at), 'max'))
    mix = np.random.default_rng(0).permutation(len(many))
    a, b = collect(*taught, many, r, progress=False), collect(*taught, [many[i] for i in mix], r, progress=False)
    assert (a['h'][mix] == b['h']).all() and (a['f'][mix] != b['f']).nnz == 0

def test_other_weights_texts_lengths_and_pools_are_other_readings(taught, texts, tmp_path):
    model, tok = taught
    at = load_planted().site
    sae = SAE(128, 64, k=4, site=at)
    read = lambda r=Reading(at, sae), t=texts, **kw: collect(model, tok, t, dict(x=r), tmp_path, progress=False, **kw)['x']
    seen = lambda: len(list(tmp_path.iterdir()))
    read(); assert seen() == 1
    read(Reading(at, SAE(128, 64, k=4, site=at))); assert seen() == 1 # the same weights
    read(Reading(at, SAE(128, 64, k=4, site=at, seed=1))); read(Reading(at)); read(Reading(at, sae, 'sum')); read(Reading(at, sae, 'count_topn', 2)); read(Reading(at, sae, 'count_topn', 3)); assert seen() == 6
    read(t=texts[1:]); read(length=5); assert seen() == 8
    assert read(length=5).shape == (40, 64)
    read(length=256); read(length=10**6); assert seen() == 8 # the model has no more positions than 256

def test_an_sae_of_other_settings_is_another_one_though_its_weights_are_the_same(taught, texts, tmp_path):
    at, seen = load_planted().site, []
    for kw in ({}, dict(normalize='unit_norm'), dict(center_input=True), dict(apply_b_dec=False)):
        sae = SAE(128, 64, k=4, site=at, **kw).eval()
        with torch.no_grad(): sae.b_dec.fill_(.5)
        ask = lambda path: collect(*taught, texts, dict(x=Reading(at, sae)), path, progress=False)['x']
        seen.append(ask(tmp_path)); assert (seen[-1] != ask(None)).nnz == 0, kw
    assert len(list(tmp_path.iterdir())) == 4 and all((a != b).nnz for i, a in enumerate(seen) for b in seen[:i])

def test_an_encoder_that_cannot_be_told_from_another_is_not_kept(taught, texts, tmp_path):
    class Bare:
        n = 64
        def __init__(self, seed): self.sae = SAE(128, 64, k=4, seed=seed)
        def encode(self, x): return self.sae.encode(x)
    at = load_planted().site
    with pytest.raises(BadInput, match="encoder of reading 'x' is a Bare"): collect(*taught, texts, dict(x=Reading(at, Bare(0))), tmp_path, progress=False)
    assert not list(tmp_path.iterdir()) and collect(*taught, texts, dict(x=Reading(at, Bare(0))), progress=False)['x'].shape == (40, 64)

def test_two_writers_of_one_reading_keep_each_others_shards(tmp_path):
    config, x = dict(a=1), np.ones((2, 3), np.float32)
    a, b = (readings._Store(tmp_path, config) for _ in range(2))
    a.put(0, x); b.put(1, 2*x); a.put(2, 3*x)
    again = readings._Store(tmp_path, config)
    assert [again.get(i)[0, 0] for i in range(3)] == [1, 2, 3]

def test_a_text_is_cut_where_the_model_has_no_more_positions():
    "RoBERTa begins to count behind the number of its padding token, and so has two positions less than its configuration says."
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel
    tok, text = load_taught('base')[1], ' '.join(World(0).biographies(9).text)[:900]
    small = dict(vocab_size=len(tok), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40, pad_token_id=1)
    for model, most in ((RobertaModel(RobertaConfig(**small)).eval(), 38), (BertModel(BertConfig(**small)).eval(), 40)):
        at = sites.site(model, 0)
        long, cut = (collect(model, tok, [text], dict(x=Reading(at)), length=n, progress=False)['x'] for n in (256, most))
        assert (long == cut).all() and (pooled(model, tok, [text], at, progress=False).numpy() == cut).all()
        assert (collect(model, tok, [text], dict(x=Reading(at)), length=most - 1, progress=False)['x'] != cut).any()

def test_what_is_no_sae_and_what_an_sae_makes_nan_of_is_told(taught, texts):
    at, sae = load_planted().site, SAE(128, 64, 'relu', site=load_planted().site)
    with pytest.raises(BadInput, match="'abc' was given as an SAE"): Reading(at, 'abc')
    with torch.no_grad(): sae.W_enc[3, 5] = float('nan')
    for how in ('mean', 'count'):
        with pytest.raises(BadInput, match='all of them finite, were encoded to NaN or infinity'): collect(*taught, texts, dict(x=Reading(at, sae, how)), progress=False)

def test_a_run_that_was_killed_goes_on_and_repeats_no_forward_pass(tmp_path):
    "Killed for good in the third of four shards; the next call makes two, and all is as if nothing had happened."
    code = textwrap.dedent('''
        import os, signal, sys, numpy as np
        from saebook.readings import Reading, collect
        from saebook.sae import SAE
        from saebook.world import World, load_planted, load_taught
        model, tok = load_taught('base')
        at, calls, path, most = load_planted().site, [], sys.argv[1], int(sys.argv[2])
        def count(*_):
            calls.append(1)
            if len(calls) > most: os.kill(os.getpid(), signal.SIGKILL)
        model.register_forward_pre_hook(count)
        texts = World(0).biographies(900, seed=3).text.tolist()
        got = collect(model, tok, texts, dict(h=Reading(at), f=Reading(at, SAE(128, 256, k=8, site=at), 'max')), path or None, progress=False)
        np.savez(sys.argv[3], h=got['h'], f=got['f'].toarray(), calls=len(calls))
        ''')
    run = lambda path, most, out: subprocess.run([sys.executable, '-c', code, str(path), str(most), str(out)], capture_output=True, text=True)
    assert run(tmp_path/'kept', 9, tmp_path/'no.npz').returncode == -signal.SIGKILL and not (tmp_path/'no.npz').exists()
    for path, out in ((tmp_path/'kept', 'on'), ('', 'whole')): assert (r := run(path, 99, tmp_path/f'{out}.npz')).returncode == 0, r.stderr
    on, whole = (np.load(tmp_path/f'{k}.npz') for k in ('on', 'whole'))
    assert whole['calls'] == 15 and on['calls'] == 7 # 4 + 4 + 4 + 3; the first eight are kept
    assert (on['h'] == whole['h']).all() and (on['f'] == whole['f']).all()

def test_a_damaged_shard_or_manifest_is_told_and_not_used(taught, texts, tmp_path):
    read = lambda: collect(*taught, texts, dict(h=Reading(load_planted().site)), tmp_path, progress=False)
    read()
    shard, = tmp_path.glob('*/*.safetensors')
    for spoil in (lambda b: b[:-3], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b''):
        whole = shard.read_bytes(); shard.write_bytes(spoil(whole))
        with pytest.raises(BadInput, match=r'00000\.safetensors.* is damaged.*delete it'): read()
        shard.write_bytes(whole)
    manifest = shard.parent/'manifest.json'
    manifest.write_text('{"shards": 3}')
    with pytest.raises(BadInput, match='manifest.json.* is damaged'): read()

def test_what_cannot_be_read_is_told_before_the_model_is_asked(taught, monkeypatch):
    model, tok = taught
    monkeypatch.setattr(readings, '_gather', lambda *a: pytest.fail('the model was asked'))
    at = load_planted().site
    for says, texts, given in (('text 1 has no token in use', ['a', ''], dict(x=Reading(at))), ('text 0 is 3', [3], dict(x=Reading(at))), ('0 texts and 1 readings', [], dict(x=Reading(at))), ("'x' is a str", ['a'], dict(x='layer 1'))):
        with pytest.raises(BadInput, match=says): collect(model, tok, texts, given)
    monkeypatch.undo()
    with pytest.raises(BadInput, match='no texts were given'): pooled(model, tok, [], at)
    model.train()
    try:
        with pytest.raises(BadInput, match='model is in training mode'): collect(model, tok, ['a'], dict(x=Reading(at)))
    finally: model.eval()

def test_nan_is_told_and_not_kept(lm, taught, texts, tmp_path):
    import copy
    model, tok = copy.deepcopy(taught[0]), taught[1]
    at = sites.site(model, 1)
    with torch.no_grad(): next(p for n, p in model.named_parameters() if '.0.' in n and p.ndim == 2).fill_(float('nan'))
    for r in (Reading(at), Reading(at, SAE(128, 64, 'relu', site=at)), Reading(at, SAE(128, 64, k=4, site=at), 'count')):
        with pytest.raises(BadInput, match='NaN or infinity'): collect(model, tok, texts, dict(x=r), tmp_path, progress=False)
    assert not list(tmp_path.glob('*/*.safetensors'))
