"""From a text to a trained SAE: documents, tokens, activations, training. saebook (contexts, a cache on disk, train_sae) beside sparsify (its own
chunk_and_tokenize and Trainer). As many steps, of as many tokens, on both sides, Adam with a linear decay, AuxK 1/32. CPU seconds of the process
and its children, the model loaded, to the trained SAE; the FVU of both is that of the same activations of documents that neither has seen."""
import argparse, os, tempfile, time
from pathlib import Path

from common import answer, have, shared, side, table

SIZES = dict(n=512, k=16, seq=128, rows=8, layer=2) # rows · seq tokens a step
RATES = 1e-3, 3e-3

def spent(): t = os.times(); return t.user + t.system + t.children_user + t.children_system

def _saebook(job):
    import torch
    from saebook import cache, sites
    from saebook.sae import SAE
    from saebook.train import TrainConfig, train_sae
    model, tok = sites.load_model(job['model'])
    c0, t0 = spent(), time.time()
    ctx, at = cache.contexts(tok, job['documents'], job['seq']), sites.site(model, job['layer'])
    acts = cache.ActivationCache.create(job['folder'], model, ctx, at, dtype=torch.float32, batch=job['rows'], progress=False)
    c1 = spent()
    sae = SAE(acts.width(at), job['n'], k=job['k'])
    r = train_sae(sae, acts[at], TrainConfig(steps=job['steps'], batch=job['rows']*job['seq'], lr=job['lr'], warmup=job['warmup'], decay=1.), progress=False)
    return dict(cpu=spent() - c0, reading=c1 - c0, wall=time.time() - t0, tokens=len(acts), train=float(r.history.fvu[-8:].mean()), **_judge(job, lambda x: sae.encode(x), sae.decode))

def _sparsify(job):
    from datasets import Dataset, concatenate_datasets, disable_progress_bars
    from sparsify import SaeConfig, TrainConfig, Trainer
    from sparsify.data import chunk_and_tokenize
    from transformers import AutoModelForCausalLM, AutoTokenizer
    disable_progress_bars()
    model, tok = AutoModelForCausalLM.from_pretrained(job['model']), AutoTokenizer.from_pretrained(job['model'])
    c0, t0 = spent(), time.time()
    ds = chunk_and_tokenize(Dataset.from_dict(dict(text=job['documents'])), tok, max_seq_len=job['seq'], num_proc=None, load_from_cache_file=False)
    need, have = job['steps']*job['rows'], len(ds) # its Trainer goes once through what it is given, in order
    ds = concatenate_datasets([ds.shuffle(seed=i) for i in range(-(-need//have))]).select(range(need))
    special = sorted({tok.bos_token_id, tok.eos_token_id} - {None}) # the first token of a text is unlike all others: saebook leaves it out as well
    cfg = TrainConfig(SaeConfig(num_latents=job['n'], k=job['k']), batch_size=job['rows'], optimizer='adam', lr=job['lr'], lr_warmup_steps=job['warmup'], auxk_alpha=1/32, dead_feature_threshold=20_000,
                      exclude_tokens=special, layers=[job['layer']], log_to_wandb=False, save_every=10**9, save_dir=job['folder'], run_name='run')
    t = Trainer(cfg, ds, model)
    t.fit()
    sae = next(iter(t.saes.values()))
    cpu, wall = spent() - c0, time.time() - t0
    return dict(cpu=cpu, wall=wall, tokens=have*job['seq'], **_judge(job, sae.encode, lambda e: sae.decode(e.top_acts, e.top_indices)))

def _judge(job, encode, decode):
    "FVU and dead part on the held-out activations."
    import numpy as np, torch
    x = torch.from_numpy(np.load(job['held']))
    fired, err = torch.zeros(job['n'], dtype=torch.bool), 0.
    with torch.no_grad():
        for p in x.split(4096):
            e = encode(p); err += (p - decode(e)).double().square().sum().item()
            v, i = (e.top_acts, e.top_indices) if hasattr(e, 'top_acts') else (e.values, e.indices)
            fired[i[v > 0]] = True
    return dict(fvu=err/(x - x.mean(0)).double().square().sum().item(), dead=1 - fired.float().mean().item())

def run(name, job): return dict(saebook=_saebook, sparsify=_sparsify)[name](job)

def rows(quick=False, model=shared/'models/stories260K', text=shared/'data/tinystories/small.txt', more=shared/'data/tinystories/train.txt'):
    "Two rows for each text: a small one several times over, and a larger one once."
    import numpy as np
    from saebook import cache, sites
    names, out = ['saebook', *have('sparsify')], []
    docs = cache.read_documents(text)
    todo = {'small.txt, 8 times': (docs, 8)} if not quick else {'a part of small.txt': (docs[:80], 2)}
    if not quick and Path(more).exists(): todo['train.txt, once'] = cache.read_documents(more), 1
    m, tok = sites.load_model(model)
    for what, (docs, epochs) in todo.items():
        cut = max(1, len(docs)//10)
        held, train = docs[:cut], docs[cut:]
        ctx = cache.contexts(tok, train, SIZES['seq'])
        steps = max(1, epochs*int(ctx.use.sum())//(SIZES['rows']*SIZES['seq']))
        with tempfile.TemporaryDirectory() as d:
            np.save(f'{d}/held.npy', cache.activations(m, cache.contexts(tok, held, SIZES['seq'])[:2000], sites.site(m, SIZES['layer']), progress=False).numpy())
            def go(name, lr, rep): return side(Path(__file__).resolve(), name, dict(SIZES, model=str(model), documents=train, held=f'{d}/held.npy', folder=f'{d}/{name}{lr}{rep}', steps=steps, warmup=steps//10, lr=lr))
            for lr in RATES[1:] if quick else RATES: # both rates are shown, for both
                got = {n: [] for n in names}
                for rep in range(1 if quick else 3):
                    for n in names if rep % 2 == 0 else names[::-1]: got[n].append(go(n, lr, rep))
                for n in names:
                    r, ratios = got[n][0], sorted(a['cpu']/b['cpu'] for a, b in zip(got[names[-1]], got[n]))
                    out.append({'text': what, 'steps': steps, 'tokens': r['tokens'], 'rate': f'{lr:g}', 'side': n, 'CPU s': sorted(x['cpu'] for x in got[n])[len(got[n])//2], 'ratio': ratios[len(ratios)//2],
                                'of it reading': r.get('reading'), 'FVU': r['fvu'], 'dead': r['dead']})
    return out

if __name__ == '__main__' and not answer(run):
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--quick', action='store_true'); ap.add_argument('--model', default=shared/'models/stories260K'); ap.add_argument('--text', default=shared/'data/tinystories/small.txt')
    ap.add_argument('--more', default=shared/'data/tinystories/train.txt')
    a = ap.parse_args()
    table(rows(a.quick, a.model, a.text, a.more), 'Text to trained SAE')
