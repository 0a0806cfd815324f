"""Runs in a peer's own environment, without saebook: writes SAEs as that library writes them and says what they compute, or reads what saebook wrote.

    python peer.py write sparsify X.safetensors OUT    # OUT/<architecture>/..., with expected.safetensors: the dense code and the output for x
    python peer.py read sparsify X.safetensors FOLDER  # for each of its folders got.safetensors
"""
import json, sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

N, K = 32, 4

def shaken(m, seed=0): # every parameter away from where it starts
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in m.named_parameters():
            p.add_(torch.randn(p.shape, generator=g)*(.3 if p.ndim < 2 else .1))
            if name == 'threshold': p.abs_()
    return m.eval()

class sparsify:
    def archs(d):
        from sparsify import SparseCoder, SparseCoderConfig
        for name, kw in dict(topk={}, groupmax=dict(activation='groupmax'), transcoder=dict(transcode=True), skip_transcoder=dict(transcode=True, skip_connection=True), unnormalised=dict(normalize_decoder=False)).items():
            yield name, shaken(SparseCoder(d, SparseCoderConfig(num_latents=N, k=K, **kw)))
    def save(m, path): m.save_to_disk(path)
    def load(path):
        from sparsify import SparseCoder
        return SparseCoder.load_from_disk(path)
    def run(m, x):
        e = m.encode(x)
        return torch.zeros(len(x), m.num_latents).scatter_(1, e.top_indices, e.top_acts), m(x).sae_out

class saelens:
    def archs(d):
        import sae_lens.saes as s
        both = dict(d_in=d, d_sae=N)
        for name, cls, cfg in [('standard', s.StandardSAE, s.StandardSAEConfig(**both)), ('unsubtracted', s.StandardSAE, s.StandardSAEConfig(apply_b_dec_to_input=False, **both)),
                               ('layer_norm', s.StandardSAE, s.StandardSAEConfig(normalize_activations='layer_norm', **both)), ('constant_norm', s.TopKSAE, s.TopKSAEConfig(k=K, normalize_activations='constant_norm_rescale', **both)),
                               ('topk', s.TopKSAE, s.TopKSAEConfig(k=K, **both)), ('topk_by_norm', s.TopKSAE, s.TopKSAEConfig(k=K, rescale_acts_by_decoder_norm=True, **both)),
                               ('jumprelu', s.JumpReLUSAE, s.JumpReLUSAEConfig(**both)), ('gated', s.GatedSAE, s.GatedSAEConfig(**both))]:
            yield name, shaken(cls(cfg))
        for name, cls in [('transcoder', s.Transcoder), ('skip_transcoder', s.SkipTranscoder), ('jumprelu_transcoder', s.JumpReLUTranscoder), ('jumprelu_skip_transcoder', getattr(s, 'JumpReLUSkipTranscoder', None))]:
            if cls: yield name, shaken(cls(getattr(s, cls.__name__ + 'Config')(apply_b_dec_to_input=False, d_out=d//2, **both)))
        t = shaken(s.BatchTopKTrainingSAE(s.BatchTopKTrainingSAEConfig(k=K, **both)))
        t.topk_threshold.fill_(.7)
        yield 'batchtopk', t
    def save(m, path): (getattr(m, 'save_inference_model', None) or m.save_model)(path)
    def load(path):
        from sae_lens import SAE
        return SAE.load_from_disk(str(path))
    def run(m, x):
        f = m.encode(x)
        return f, m(x)

class dictionary_learning:
    def archs(d):
        from dictionary_learning import dictionary as c
        from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k
        made = [c.AutoEncoder(d, N), c.AutoEncoderNew(d, N), c.GatedAutoEncoder(d, N), c.JumpReluAutoEncoder(d, N), top_k.AutoEncoderTopK(d, N, K), batch_top_k.BatchTopKSAE(d, N, K), matryoshka_batch_top_k.MatryoshkaBatchTopKSAE(d, N, K, [4, 12, 16])]
        for m in made:
            shaken(m)
            if 'Batch' in type(m).__name__: m.threshold.fill_(.7)
            yield type(m).__name__, m
    def save(m, path):
        path.mkdir(parents=True)
        torch.save({k: v.cpu() for k, v in m.state_dict().items()}, path/'ae.pt')
        k = dict(k=m.k.item()) if hasattr(m, 'k') else {}
        (path/'config.json').write_text(json.dumps(dict(trainer=dict(dict_class=type(m).__name__, activation_dim=m.activation_dim, dict_size=m.dict_size, lm_name='EleutherAI/pythia-70m-deduped', layer=2, submodule_name='resid_post_layer_2', **k), buffer={})))
    def load(path):
        if json.loads((path/'config.json').read_text())['trainer']['dict_class'] == 'AutoEncoder': # its loader brings the decoder to unit length, which changes the code
            from dictionary_learning.dictionary import AutoEncoder
            return AutoEncoder.from_pretrained(path/'ae.pt', normalize_decoder=False)
        from dictionary_learning.utils import load_dictionary
        return load_dictionary(str(path), 'cpu')[0]
    def run(m, x): return m.encode(x), m(x)

def main(what, peer, x, folder):
    peer, x, folder = globals()[peer], load_file(x)['x'], Path(folder)
    torch.manual_seed(0) # of the weights they begin with
    with torch.no_grad():
        if what == 'write':
            for name, m in peer.archs(x.shape[1]):
                peer.save(m, folder/name)
                m = peer.load(folder/name) # as its users meet it
                code, y = peer.run(m, x)
                save_file(dict(code=code.contiguous(), y=y.contiguous()), folder/name/'expected.safetensors')
        else:
            for d in sorted(p for p in folder.iterdir() if p.is_dir()):
                code, y = peer.run(peer.load(d).eval(), x)
                save_file(dict(code=code.contiguous(), y=y.contiguous()), d/'got.safetensors')

main(*sys.argv[1:])
