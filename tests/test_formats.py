"""Formats: what the peers' own packages wrote is read, what saebook writes they read, each trap of the conventions, and files that mean harm."""
import io, json, os, pickle, resource, shutil, struct, subprocess, sys, zipfile
from pathlib import Path

import numpy as np, pytest, torch
from safetensors.torch import load_file, save_file

from saebook.core import BadInput
from saebook.formats import hook_site, load_sae, recognise, save_sae
from saebook.sae import ACTIVATIONS, SAE, Transcoder
from saebook.sites import Site

here = Path(__file__).parent/'peers'
fixtures = here/'fixtures'
sys.path.insert(0, str(here))
import make as peers

X = load_file(fixtures/'x.safetensors')['x'] # half of it real activations
close = lambda a, b, tol=1e-5: torch.testing.assert_close(a, b, atol=tol*max(1, b.abs().max().item()), rtol=0)

def shaken(sae, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for k, t in sae.state_dict().items(): t.add_(torch.randn(t.shape, generator=g)*(.3 if t.ndim < 2 else .1))
        if hasattr(sae, 'threshold'): sae.threshold.abs_()
    return sae.eval()

# --- what the peers wrote

@pytest.mark.parametrize('path', sorted(p.parent.relative_to(fixtures).as_posix() for p in fixtures.glob('*/*/expected.safetensors')))
def test_what_a_peer_wrote_computes_the_same(path, capsys):
    sae, want = load_sae(fixtures/path), load_file(fixtures/path/'expected.safetensors')
    assert sae.info['format'] == path.split('/')[0] and path.split('/')[0].lower() in capsys.readouterr().out.lower()
    close(sae.encode(X).to_dense(), want['code']); close(sae(X), want['y'])
    assert isinstance(sae, Transcoder) == ('transcoder' in path)

# --- what saebook writes

KINDS = {a: lambda a=a: SAE(128, 64, a, k=4) for a in ACTIVATIONS} | dict(
    matryoshka=lambda: SAE(128, 64, 'batch_topk', k=4, prefixes=(8, 24)), unsubtracted=lambda: SAE(128, 64, 'relu', apply_b_dec=False), unsubtracted_gated=lambda: SAE(128, 64, 'gated', apply_b_dec=False),
    unsubtracted_topk=lambda: SAE(128, 64, k=4, apply_b_dec=False), layer_norm=lambda: SAE(128, 64, 'relu', normalize='layer_norm'), unit_norm=lambda: SAE(128, 64, k=4, normalize='unit_norm'),
    transcoder=lambda: Transcoder(128, 64, 'relu', d_out=32), skip=lambda: Transcoder(128, 64, 'jump_relu', skip=True), transcoder_topk=lambda: Transcoder(128, 64, k=4, skip=True))
WRITE = dict(saelens={'topk', 'batch_topk', 'relu', 'jump_relu', 'gated', 'matryoshka', 'unsubtracted', 'unsubtracted_gated', 'unsubtracted_topk', 'layer_norm', 'unit_norm', 'transcoder', 'skip'},
             sparsify={'topk', 'group_max', 'unsubtracted_topk', 'transcoder_topk'},
             dictionary_learning={'topk', 'batch_topk', 'relu', 'jump_relu', 'gated', 'matryoshka', 'unsubtracted', 'unsubtracted_gated', 'unsubtracted_topk'})

@pytest.mark.parametrize('peer', WRITE)
def test_what_saebook_writes_computes_the_same(peer, tmp_path):
    """Read by saebook always, by the peer's package where there is one: in CI there must be."""
    for name, kind in KINDS.items():
        sae = shaken(kind())
        if name in WRITE[peer]:
            save_sae(sae, tmp_path/name, peer)
            back = load_sae(tmp_path/name, quiet=True)
            close(back.encode(X).to_dense(), sae.encode(X).to_dense()); close(back(X), sae(X))
        else:
            with pytest.raises(BadInput, match='has no such thing'): save_sae(sae, tmp_path/name, peer)
            assert not (tmp_path/name).exists() or not any((tmp_path/name).iterdir())
    if not peers.have(peer):
        why = f"no environment of {peer}: make it with benchmarks/peers.sh"
        if peer in os.environ.get('SAEBOOK_PEERS', '').split(): pytest.fail(why)
        pytest.skip(f'read back by saebook alone, {why}')
    for p in tmp_path.iterdir():
        if not any(p.iterdir()): p.rmdir()
    peers.peer(peer, 'read', fixtures/'x.safetensors', tmp_path)
    for name in WRITE[peer]:
        sae, got = shaken(KINDS[name]()), load_file(tmp_path/name/'got.safetensors')
        close(got['code'], sae.encode(X).to_dense()); close(got['y'], sae(X))

@pytest.mark.parametrize('peer', WRITE)
def test_the_fixtures_are_what_the_peers_write_today(peer, tmp_path):
    if not peers.have(peer): pytest.skip(f'no environment of {peer}: make it with benchmarks/peers.sh')
    peers.peer(peer, 'write', fixtures/'x.safetensors', tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in (fixtures/peer).iterdir()}
    for p in tmp_path.iterdir():
        for k, v in load_file(p/'expected.safetensors').items(): close(v, load_file(fixtures/peer/p.name/'expected.safetensors')[k])

# --- formats nobody writes any more, by their formulas

def openai_file(path, act='TopK', d=128, n=48, k=4):
    g = torch.Generator().manual_seed(3)
    t = dict(pre_bias=torch.randn(d, generator=g)*.3, latent_bias=torch.randn(n, generator=g)*.3, stats_last_nonzero=torch.zeros(n, dtype=torch.long))
    t |= {'encoder.weight': torch.randn(n, d, generator=g)*.1, 'decoder.weight': torch.randn(d, n, generator=g)*.1, 'activation': act, 'activation_state_dict': dict(k=k, postact_fn='ReLU') if act == 'TopK' else {}}
    path.parent.mkdir(parents=True, exist_ok=True); torch.save(t, path)
    return t

@pytest.mark.parametrize('act', ['TopK', 'ReLU'])
def test_openai(act, tmp_path):
    t = openai_file(tmp_path/'resid_post_mlp_v5_32k'/'autoencoders'/'8.pt', act)
    sae = load_sae(tmp_path/'resid_post_mlp_v5_32k'/'autoencoders'/'8.pt', quiet=True)
    x, mean, std = X, 0., 1.
    if act == 'TopK':
        mean = X.mean(-1, keepdim=True); std = (X - mean).std(-1, keepdim=True) # of d - 1 degrees of freedom
        x = (X - mean)/(std + 1e-5)
    pre = (x - t['pre_bias']) @ t['encoder.weight'].T + t['latent_bias']
    code = pre.relu()
    if act == 'TopK': code = torch.zeros_like(pre).scatter_(1, (top := pre.topk(4)).indices, top.values.relu())
    close(sae.encode(X).to_dense(), code); close(sae(X), (code @ t['decoder.weight'].T + t['pre_bias'])*std + mean)
    assert sae.site == Site('transformer.h.8') and sae.normalize == ('layer_norm' if act == 'TopK' else 'none')
    if act == 'TopK': # the trap: with n in place of n - 1 it is another code
        wrong = ((X - mean)/(X.std(-1, keepdim=True, unbiased=False) + 1e-5) - t['pre_bias']) @ t['encoder.weight'].T + t['latent_bias']
        assert (torch.zeros_like(pre).scatter_(1, (top := wrong.topk(4)).indices, top.values.relu()) - sae.encode(X).to_dense()).abs().max() > 1e-3

def e2e_file(path, places=('blocks-6-hook_resid_pre', 'blocks-10-hook_resid_pre'), d=128, n=48):
    g, t = torch.Generator().manual_seed(4), {}
    for p in places: t |= {f'{p}.encoder.0.weight': torch.randn(n, d, generator=g)*.1, f'{p}.encoder.0.bias': torch.randn(n, generator=g)*.1, f'{p}.decoder.weight': torch.randn(d, n, generator=g), f'{p}.decoder.bias': torch.randn(d, generator=g)}
    path.parent.mkdir(parents=True, exist_ok=True); torch.save(t, path)
    (path.parent/'final_config.yaml').write_text('tlens_model_name: gpt2-small\nwandb_key: abc\nsaes:\n  dict_size_to_input_ratio: 60.0\n')
    return t

def test_e2e_sae(tmp_path):
    t, p = e2e_file(tmp_path/'samples_400000.pt'), 'blocks-6-hook_resid_pre'
    with pytest.raises(BadInput, match='2 places'): load_sae(tmp_path, quiet=True)
    sae = load_sae(tmp_path/'samples_400000.pt', p, quiet=True)
    x = X - X.mean(-1, keepdim=True)
    W = t[f'{p}.decoder.weight']
    code = (x @ t[f'{p}.encoder.0.weight'].T + t[f'{p}.encoder.0.bias']).relu()
    y = code @ (W/W.norm(dim=0)).T + t[f'{p}.decoder.bias']
    close(sae.encode(X).to_dense(), code); close(sae(X), y + X.mean(-1, keepdim=True))
    assert sae.site == Site('transformer.h.5') and sae.info['config']['wandb_key'] == '(removed)'
    assert (code @ W.T + t[f'{p}.decoder.bias'] - y).abs().max() > 1e-2 # the trap: the decoder as it lies in the file

def scope_file(path, d=128, n=48):
    g = np.random.default_rng(5)
    t = dict(W_enc=g.normal(size=(d, n))*.1, b_enc=g.normal(size=n)*.1, W_dec=g.normal(size=(n, d))*.1, b_dec=g.normal(size=d), threshold=abs(g.normal(size=n)))
    path.parent.mkdir(parents=True, exist_ok=True); np.savez(path, **{k: v.astype(np.float32) for k, v in t.items()})
    return {k: torch.from_numpy(v.astype(np.float32)) for k, v in t.items()}

@pytest.mark.parametrize('place, hook, site', [('gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71', 'blocks.20.hook_resid_post', Site('model.layers.20')), ('gemma-scope-9b-it-att/layer_3/width_16k/average_l0_71', 'blocks.3.attn.hook_z', Site('model.layers.3.self_attn.o_proj', 'input')),
                                              ('gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_71', 'blocks.3.hook_mlp_out', Site('model.layers.3.post_feedforward_layernorm')), ('gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6', 'blocks.0.hook_resid_pre', Site('model.layers.0', 'input'))])
def test_gemma_scope(tmp_path, place, hook, site):
    t = scope_file(tmp_path/place/'params.npz')
    sae, by = load_sae(tmp_path/place, quiet=True), 128**.5 if 'embedding' in place else 1
    pre = X/by @ t['W_enc'] + t['b_enc']
    code = pre.relu()*(pre > t['threshold'])
    close(sae.encode(X).to_dense(), code); close(sae(X), (code @ t['W_dec'] + t['b_dec'])*by)
    assert sae.info['hook'] == hook and sae.site == site and not sae.apply_b_dec

# --- the traps

def test_above_a_threshold_means_above():
    sae = SAE(2, 2, 'jump_relu', apply_b_dec=False)
    with torch.no_grad(): sae.W_enc.copy_(torch.eye(2)); sae.threshold.fill_(.5)
    assert sae.encode(torch.tensor([[.5, .5000001]])).to_dense().gt(0).tolist() == [[False, True]]

def test_one_threshold_for_all_features(tmp_path):
    t = load_file(fixtures/'dictionary_learning'/'BatchTopKSAE'/'expected.safetensors')['code']
    sae = load_sae(fixtures/'dictionary_learning'/'BatchTopKSAE', quiet=True)
    assert sae.threshold.ndim == 0 and sae.threshold.item() == pytest.approx(.7) and not sae.training
    assert t[t > 0].min() > .7 and (sae.encode(X[:1]).to_dense() - t[:1]).abs().max() < 1e-5 # a row does not depend on its company

def test_sparsifys_decoder_is_not_transposed(tmp_path):
    "Square, so that a transpose would go unnoticed."
    sae = shaken(SAE(16, 16, k=4))
    save_sae(sae, tmp_path, 'sparsify')
    assert torch.equal(load_file(tmp_path/'sae.safetensors')['W_dec'], sae.W_dec) and torch.equal(load_file(tmp_path/'sae.safetensors')['encoder.weight'], sae.W_enc.T.contiguous())
    close(load_sae(tmp_path, quiet=True)(X[:, :16]), sae(X[:, :16]))

def old_config(path, **kw): # as SAELens wrote it before 6.0
    cfg = json.loads((path/'cfg.json').read_text())
    cfg = {k: v for k, v in cfg.items() if k not in ('metadata', 'architecture', 'apply_b_dec_to_input')} | dict(hook_point='blocks.6.hook_resid_pre', hook_point_layer=6, model_name='gpt2-small', activation_fn_str='relu', model_from_pretrained_kwargs=dict(center_writing_weights=True), lr=4e-4) | kw
    (path/'cfg.json').write_text(json.dumps({k: v for k, v in cfg.items() if v is not None}))

def test_an_old_configuration_of_saelens(tmp_path):
    sae = shaken(SAE(128, 64, 'relu', center_input=True))
    save_sae(sae, tmp_path, 'saelens'); old_config(tmp_path, normalize_activations=False)
    back = load_sae(tmp_path, quiet=True)
    close(back(X), sae(X))
    assert back.site == Site('transformer.h.5') and back.center_input and back.apply_b_dec
    old_config(tmp_path, normalize_activations=True)
    with pytest.raises(BadInput, match='average length'): load_sae(tmp_path, quiet=True)
    back = load_sae(tmp_path, scale=.25, quiet=True) # folded: the same as the SAE on activations of a quarter
    close(back(X), sae(X*.25)/.25); close(back.encode(X).to_dense(), sae.encode(X*.25).to_dense())
    sae = shaken(SAE(128, 64, k=4)); save_sae(sae, tmp_path, 'saelens')
    old_config(tmp_path, k=None, activation_fn_str='topk', activation_fn_kwargs=dict(k=4), model_from_pretrained_kwargs={})
    close(load_sae(tmp_path, quiet=True)(X), sae(X))

def test_centring_is_what_centred_weights_do():
    "A model whose writing weights are centred gives every token mean 0; an SAE trained there sees the same in the model as it is."
    sae = shaken(SAE(128, 64, 'relu', center_input=True))
    plain = SAE(128, 64, 'relu').eval(); plain.load_state_dict(sae.state_dict())
    W, read = torch.randn(40, 128), torch.randn(9, 40) # of one layer
    x, centred = read @ W, read @ (W - W.mean(1, keepdim=True))
    close(sae.encode(x).to_dense(), plain.encode(centred).to_dense(), 1e-6)
    close(sae(x) - x.mean(-1, keepdim=True), plain(centred), 1e-6)

def test_a_site_is_checked_against_the_model(lm_small):
    assert hook_site('blocks.2.hook_resid_pre', lm_small) == Site('model.layers.1') and hook_site('blocks.0.hook_resid_pre', lm_small) == Site('model.layers.0', 'input')
    assert hook_site('blocks.2.hook_mlp_out', lm_small) == Site('model.layers.2.mlp') and hook_site('blocks.2.ln2.hook_normalized', lm_small) is None
    with pytest.raises(BadInput, match='trained on another model'): hook_site('blocks.7.hook_resid_post', lm_small)

@pytest.fixture(scope='module')
def lm_small(shared):
    from saebook.sites import load_model
    return load_model(shared('models/stories260K'))[0]

def test_the_width_is_checked_against_the_model(tmp_path, lm_small):
    sae = SAE(128, 64, k=4, info=dict(hook='blocks.1.hook_resid_post')); save_sae(sae, tmp_path, 'saelens')
    with pytest.raises(BadInput, match='width 128 was given with a model whose model.layers.1 has width 64'): load_sae(tmp_path, model=lm_small, quiet=True)

@pytest.mark.parametrize('hook, model, centred', [('blocks.3.hook_resid_pre', 'gpt2-small', True), ('blocks.3.hook_mlp_out', 'gpt2-small', True), ('blocks.3.attn.hook_z', 'gpt2-small', False),
                                                  ('blocks.3.mlp.hook_post', 'gpt2-small', False), ('blocks.3.hook_resid_post', 'meta-llama/Llama-3.1-8B', False)])
def test_only_what_writes_into_the_stream_was_centred(tmp_path, hook, model, centred):
    save_sae(SAE(128, 64, 'relu', center_input=True, info=dict(hook=hook, model=model)), tmp_path, 'saelens')
    assert load_sae(tmp_path, quiet=True).center_input == centred

@pytest.mark.parametrize('into, out, site', [('blocks.3.mlp.hook_in', 'blocks.3.hook_mlp_out', Site('transformer.h.3.mlp', 'input')), ('blocks.3.mlp.hook_in', 'blocks.7.hook_mlp_out', None), ('blocks.3.hook_resid_mid', 'blocks.3.hook_mlp_out', None)])
def test_a_transcoders_target_is_the_output_of_its_module(tmp_path, into, out, site):
    save_sae(Transcoder(128, 64, 'relu'), tmp_path, 'saelens')
    cfg(tmp_path, metadata=dict(sae_lens_version='6.0.0', hook_name=into, hook_name_out=out, model_name='gpt2-small'))
    t = load_sae(tmp_path, quiet=True)
    assert t.site == site and (t.info['hook'], t.info['hook_out']) == (into, out)

def test_one_head_is_not_the_whole_layer(tmp_path):
    save_sae(SAE(128, 64, 'relu'), tmp_path, 'saelens')
    cfg(tmp_path, metadata=dict(sae_lens_version='6.0.0', hook_name='blocks.3.attn.hook_z', hook_head_index=3, model_name='gpt2-small'))
    assert load_sae(tmp_path, quiet=True).site is None

def test_a_site_survives(tmp_path):
    save_sae(SAE(128, 64, 'relu', site=Site('transformer.h.3')), tmp_path, 'saelens')
    assert load_sae(tmp_path, quiet=True).site == Site('transformer.h.3')

def test_folders_above_a_repository_mean_nothing(tmp_path):
    place = tmp_path/'embedding'/'layer_3_runs'/'gemma-scope-2b-pt-res'/'layer_20'/'width_16k'
    t = scope_file(place/'params.npz')
    sae = load_sae(place, quiet=True)
    assert sae.info['hook'] == 'blocks.20.hook_resid_post' and torch.equal(sae.W_enc, t['W_enc'])

def test_files_as_well_as_folders(tmp_path):
    sae = shaken(SAE(128, 64, k=4))
    for fmt, files in dict(saebook=('sae.json', 'sae.safetensors'), saelens=('cfg.json', 'sae_weights.safetensors'), sparsify=('cfg.json', 'sae.safetensors'), dictionary_learning=('config.json', 'ae.pt')).items():
        save_sae(sae, tmp_path/fmt, fmt)
        for f in files: close(load_sae(str(tmp_path/fmt/f), quiet=True)(X), sae(X))
    with pytest.raises(BadInput, match="holds one SAE, and 'more' was asked of it"): load_sae(tmp_path/'dictionary_learning'/'ae.pt', 'more/of/it')
    for odd in (None, 'a'*5000): 
        with pytest.raises(BadInput): load_sae(odd)

def test_a_configuration_with_a_date(tmp_path):
    e2e_file(tmp_path/'s.pt', ('blocks-0-hook_resid_pre',)); (tmp_path/'final_config.yaml').write_text('date: 2024-05-01\ntlens_model_name: gpt2-small\n')
    assert load_sae(tmp_path, quiet=True).info['config']['date'] == '2024-05-01'

# --- the hub

def hub(root, repo, make):
    "A repository in the layout of the hub's own cache."
    d = root/('models--' + repo.replace('/', '--'))
    (d/'refs').mkdir(parents=True); (d/'refs'/'main').write_text('a'*40); (d/'snapshots'/('a'*40)).mkdir(parents=True)
    make(d/'snapshots'/('a'*40))
    return root

def test_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    hub(tmp_path, 'some/saes', lambda d: [shutil.copytree(fixtures/'sparsify'/n, d/f'layers.{i}') for i, n in enumerate(('topk', 'transcoder'))])
    sae = load_sae('some/saes', 'layers.0', cache_dir=tmp_path, quiet=True)
    assert sae.info['hook'] == 'layers.0' and sae.info['source'] == 'some/saes'
    close(sae(X), load_file(fixtures/'sparsify'/'topk'/'expected.safetensors')['y'])
    with pytest.raises(BadInput, match="holds 2 SAEs: choose one with"): load_sae('some/saes', cache_dir=tmp_path)
    listed = lambda self, repo, revision=None: ['README.md', 'layers.0/cfg.json', 'layers.0/sae.safetensors', 'layers.5/cfg.json', 'layers.5/sae.safetensors']
    with monkeypatch.context() as m:
        m.setattr('huggingface_hub.HfApi.list_repo_files', listed) # where the hub answers, nothing is fetched to find out
        with pytest.raises(BadInput, match="'some/new' holds 2 SAEs: choose one with .*layers.0, layers.5"): load_sae('some/new', cache_dir=tmp_path)
    with pytest.raises(BadInput, match="has no 'layers.7': it has layers.0, layers.1"): load_sae('some/saes', 'layers.7', cache_dir=tmp_path)
    with pytest.raises(BadInput, match='could not be had from the hub') as e: load_sae('some/others', cache_dir=tmp_path)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('which', ['../x', '/etc', 'a/../../b', 'a\\..\\b', 'a\0b', 'C:/x', '', 'a//b', '.'])
def test_a_name_stays_in_its_folder(which, tmp_path):
    with pytest.raises(BadInput, match='give names of folders'): load_sae(tmp_path, which)

# --- files that mean harm

class Call: # a pickle with a call: it would make a file
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.mkdir, (self.path,))

def header(h, data=b''): b = json.dumps(h).encode(); return struct.pack('<Q', len(b)) + b + data

def npy(shape, data=b'', descr='<f4'):
    f = io.BytesIO(); np.lib.format.write_array_header_1_0(f, dict(descr=descr, fortran_order=False, shape=shape)); return f.getvalue() + data

def archive(path, packed=False, **parts):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as z:
        for k, v in parts.items(): z.writestr(f'{k}.npy', v)

def good(d, peer='saelens', arch='standard'): shutil.copytree(fixtures/peer/arch, d, dirs_exist_ok=True); (d/'expected.safetensors').unlink(); return d

def cfg(d, name='cfg.json', **kw): c = json.loads((d/name).read_text()); c.update(kw); (d/name).write_text(json.dumps(c))

def tensors(d, f='sae_weights.safetensors', **kw): t = load_file(d/f); t.update(kw); save_file({k: v for k, v in t.items() if v is not None}, d/f)

def torch_file(d, o): good(d, 'dictionary_learning', 'AutoEncoder'); torch.save(o, d/'ae.pt')

def expanded(d): # a tensor of 10^12 entries that are all the same one
    one = torch.zeros(1)
    torch_file(d, {'encoder.weight': one.expand(10**6, 10**6), 'encoder.bias': one.expand(10**6), 'decoder.weight': one.expand(10**6, 10**6), 'bias': one.expand(10**6)})

def bomb(d): # 1 GB of zeros in 1 MB
    with zipfile.ZipFile(d/'params.npz', 'w', zipfile.ZIP_DEFLATED) as z:
        with z.open('W_enc.npy', 'w', force_zip64=True) as f:
            f.write(npy((2**14, 2**14)))
            for _ in range(64): f.write(bytes(2**24))

def cut(d, name):
    b = (d/name).read_bytes(); (d/name).write_bytes(b[:len(b)//2])

def deep(d): good(d); (d/'cfg.json').write_text('['*100_000)

def grows(d): # torch allows bytearray in a pickle, which takes as much memory as the file says
    good(d, 'dictionary_learning', 'AutoEncoder')
    with zipfile.ZipFile(d/'ae.pt') as z: parts = {i.filename: z.read(i) for i in z.infolist()}
    with zipfile.ZipFile(d/'ae.pt', 'w') as z:
        for k, v in parts.items(): z.writestr(k, b'\x80\x02}X\x01\x00\x00\x00ac__builtin__\nbytearray\nJ\x00\x00\x00\x40\x85Rs.' if k.endswith('data.pkl') else v)

HARM = dict(
    pt_with_a_bytearray=grows,
    nested_10_12_entries=lambda d: (openai_file(d/'8.pt'), torch.save({**torch.load(d/'8.pt'), 'activation_state_dict': dict(k=None, x=torch.zeros(1).expand(10**6, 10**6))}, d/'8.pt')),
    state_of_another_type=lambda d: (openai_file(d/'8.pt'), torch.save({**torch.load(d/'8.pt'), 'activation_state_dict': [4]}, d/'8.pt')),
    three_dimensions=lambda d: (good(d), tensors(d, W_enc=torch.zeros(2, 128, 32))),
    a_flag_of_text=lambda d: (good(d), cfg(d, apply_b_dec_to_input='false')),
    an_architecture_of_another_type=lambda d: (good(d), cfg(d, architecture={})),
    nested_600_deep=lambda d: (good(d), (d/'cfg.json').write_text('{"a":'*600 + '1' + '}'*600)),
    a_factor_not_in_use=lambda d: (good(d), tensors(d, scaling_factor=torch.full((32,), 2.))),
    pickle_with_a_call=lambda d: torch_file(d, {'encoder.weight': torch.zeros(2, 2), 'x': Call(str(d/'harm'))}),
    plain_pickle_with_a_call=lambda d: (good(d, 'dictionary_learning', 'AutoEncoder'), (d/'ae.pt').write_bytes(pickle.dumps(Call(str(d/'harm'))))),
    safetensors_that_claims_10_12_rows=lambda d: (good(d), (d/'sae_weights.safetensors').write_bytes(header(dict(W_enc=dict(dtype='F32', shape=[10**12, 128], data_offsets=[0, 512*10**12]))))),
    safetensors_with_a_header_of_10_12_bytes=lambda d: (good(d), (d/'sae_weights.safetensors').write_bytes(struct.pack('<Q', 10**12) + b'{}')),
    npz_that_claims_10_12_rows=lambda d: archive(d/'params.npz', W_enc=npy((10**12, 128))),
    npz_with_objects=lambda d: archive(d/'params.npz', W_enc=npy((1,), pickle.dumps(Call(str(d/'harm'))), '|O')),
    npz_that_unpacks_to_1_gb=bomb,
    pt_that_claims_10_12_entries=expanded,
    packed_pt=lambda d: (good(d, 'dictionary_learning', 'AutoEncoder'), archive(d/'ae.pt', True, data=bytes(2**20))),
    names_with_dots=lambda d: (good(d), [tensors(d, **{'../../etc/x': torch.zeros(3)})]),
    archive_with_dots=lambda d: archive(d/'params.npz', **{'../../x': npy((1,), bytes(4))}),
    wrong_shapes=lambda d: (good(d), tensors(d, W_dec=torch.zeros(128, 32))),
    a_bias_too_short=lambda d: (good(d), tensors(d, b_enc=torch.zeros(31))),
    nan=lambda d: (good(d), tensors(d, W_enc=torch.full((128, 32), torch.nan))),
    truncated_safetensors=lambda d: (good(d), cut(d, 'sae_weights.safetensors')),
    truncated_pt=lambda d: (good(d, 'dictionary_learning', 'AutoEncoder'), cut(d, 'ae.pt')),
    truncated_configuration=lambda d: (good(d), cut(d, 'cfg.json')),
    whole_numbers=lambda d: (good(d), tensors(d, W_enc=torch.zeros(128, 32, dtype=torch.int32))),
    complex_numbers=lambda d: torch_file(d, {'encoder.weight': torch.zeros(2, 2, dtype=torch.complex64), 'encoder.bias': torch.zeros(2), 'decoder.weight': torch.zeros(2, 2), 'bias': torch.zeros(2)}),
    configuration_of_another_model=lambda d: (good(d), cfg(d, architecture='gated')),
    configuration_of_another_class=lambda d: (good(d, 'dictionary_learning', 'AutoEncoder'), cfg(d, 'config.json', trainer=dict(dict_class='GatedAutoEncoder'))),
    configuration_of_a_language_model=lambda d: (good(d), (d/'cfg.json').write_text(json.dumps(dict(architectures=['GPT2LMHeadModel'], architecture='gpt2')))),
    unknown_class=lambda d: (good(d, 'dictionary_learning', 'AutoEncoder'), cfg(d, 'config.json', trainer=dict(dict_class='os.system'))),
    k_below_zero=lambda d: (good(d, arch='topk'), cfg(d, k=-4)),
    k_above_the_features=lambda d: (good(d, arch='topk'), cfg(d, k=10**9)),
    k_of_text=lambda d: (good(d, 'sparsify', 'topk'), cfg(d, k='4; rm -rf /')),
    deep_configuration=deep,
    configuration_of_100_mb=lambda d: (good(d), (d/'cfg.json').write_text(' '*100_000_000)),
    yaml_that_grows=lambda d: (e2e_file(d/'s.pt', ('blocks-0-hook_resid_pre',)), (d/'final_config.yaml').write_text('a: &a [x, x]\n' + ''.join(f'{c}: &{c} [*{p}, *{p}]\n' for p, c in zip('abcdefghijklmnopqrstuvwxy', 'bcdefghijklmnopqrstuvwxyz')))),
    yaml_with_an_object=lambda d: (e2e_file(d/'s.pt', ('blocks-0-hook_resid_pre',)), (d/'final_config.yaml').write_text(f'a: !!python/object/apply:os.mkdir ["{d}/harm"]\n')),
    groups_that_do_not_add_up=lambda d: (good(d, 'dictionary_learning', 'MatryoshkaBatchTopKSAE'), torch.save({**torch.load(d/'ae.pt'), 'group_sizes': torch.tensor([4, 10**12])}, d/'ae.pt')),
    nothing=lambda d: None,
    an_empty_file=lambda d: (good(d), (d/'sae_weights.safetensors').write_bytes(b'')),
    a_folder_in_place_of_a_file=lambda d: (d/'params.npz').mkdir())

RUN = '''
import resource, sys, time
from saebook.core import BadInput
from saebook.formats import load_sae
import yaml, numpy, safetensors.torch, huggingface_hub, torch, pathlib
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for d in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    t = time.time()
    try: load_sae(d, quiet=True); said = 'READ'
    except BadInput as e: said = str(e)
    except BaseException as e: said = f'CRASH {type(e).__name__}: {e}'
    print(d.name, '|', (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)//1024, '|', repr(said))
'''

def test_hostile_files(tmp_path):
    "Each is told of in one sentence, with no more memory than the file has, and none of them leaves anything behind."
    for name, make in HARM.items(): (tmp_path/name).mkdir(); make(tmp_path/name)
    kept = {p.relative_to(tmp_path) for p in tmp_path.rglob('*')}
    r = subprocess.run([sys.executable, '-c', RUN, str(tmp_path)], capture_output=True, text=True, timeout=120, env=dict(os.environ, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1'), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30)))
    assert r.returncode == 0, r.stderr[-2000:]
    rows = [l.split(' | ', 2) for l in r.stdout.splitlines()]
    assert len(rows) == len(HARM) >= 20
    for name, mib, said in rows:
        assert not said.startswith(("'READ", "'CRASH", '"CRASH')) and '\\n' not in said and len(said) > 60, (name, said)
        assert int(mib) < 150, (name, mib)
    assert {p.relative_to(tmp_path) for p in tmp_path.rglob('*')} == kept
