"""Do both reach the same? TopK with AuxK, constant learning rate, three seeds: saebook's step beside sparsify's on the same rows in the same order.
Each side has the learning rate of a few that left it the lowest FVU on its training data; figures are of rows held out."""
import argparse, tempfile
from pathlib import Path

from common import answer, have, shared, side, table

RATES = 3e-4, 1e-3, 3e-3, 1e-2

# ---- one side, in its own process

def run(name, job):
    import importlib, numpy as np, torch
    x, held = (torch.from_numpy(np.load(job[k])) for k in ('train', 'held'))
    cfg, g = job['cfg'], torch.Generator().manual_seed(1000 + job['cfg']['seed'])
    torch.manual_seed(cfg['seed'])
    ad = importlib.import_module('adapters.' + name).make(cfg, x)
    last, ask = [], job['steps'] - job['steps']//10
    for step in range(job['steps']):
        b = x[torch.randint(len(x), (cfg['batch'],), generator=g)]
        if step >= ask and step % 8 == 0:
            with torch.no_grad(): last.append(((b - ad.reconstruct(b)).square().sum()/(b - b.mean(0)).square().sum()).item()) # of rows as they come: what the rate is chosen by
        ad.step(b)
    with torch.no_grad():
        parts = held.split(4096)
        err = sum((p - ad.reconstruct(p)).double().square().sum().item() for p in parts)
        fired = torch.zeros(cfg['n_lat'], dtype=torch.bool)
        for p in parts:
            e = ad.encode(p)
            v, i = (e.top_acts, e.top_indices) if hasattr(e, 'top_acts') else (e.values, e.indices)
            fired[i[v > 0]] = True
    return dict(train=sum(last)/len(last), fvu=err/(held - held.mean(0)).double().square().sum().item(), dead=1 - fired.float().mean().item())

# ---- data

def planted(n_true=128, d=64, l0=4, tokens=60_000, seed=3):
    "Sums of 4 of 128 random directions, strengths from 1 to 2."
    from saebook.train import toy_activations
    return toy_activations(tokens, d, n_true, l0, seed)[0]

def real(model, text, layer=2, rows=None):
    "Activations of a model's residual stream after a layer: training and held-out documents."
    from saebook import cache, sites
    m, tok = sites.load_model(model)
    tr, te = cache.split(cache.contexts(tok, cache.read_documents(text), 128))
    return [cache.activations(m, c[:rows], sites.site(m, layer), progress=False) for c in (tr, te)]

# ---- both

def rows(quick=False, model=shared/'models/stories260K', text=shared/'data/tinystories/small.txt'):
    "A row for each data set, seed and side, and of each data set what all seeds together say."
    import numpy as np
    names, steps, seeds = ['saebook', *have('sparsify')], 100 if quick else 2000, range(1 if quick else 3)
    x = planted()
    data = {'stories260K, layer 2': (lambda: real(model, text, rows=64 if quick else None), dict(n_lat=512, k=16)), 'planted, 256 features': (lambda: (x[:50_000], x[50_000:]), dict(n_lat=256, k=4))}
    if not quick: data['planted, 128 features'] = data['planted, 256 features'][0], dict(n_lat=128, k=4)
    out = []
    for what, (make, size) in data.items():
        with tempfile.TemporaryDirectory() as d:
            files = {k: f'{d}/{k}.npy' for k in ('train', 'held')}
            for k, t in zip(files, make()): np.save(files[k], t.numpy())
            cfg = dict(d_in=t.shape[1], batch=512, act='topk', opt='', dead_after=20_000, **size)
            def go(name, lr, seed): return side(Path(__file__).resolve(), name, dict(files, steps=steps, cfg=dict(cfg, lr=lr, seed=seed)))
            for name in names:
                tried = {lr: go(name, lr, 0) for lr in (RATES[1:3] if quick else RATES)}
                lr = min(tried, key=lambda r: tried[r]['train'])
                for seed in seeds:
                    r = tried[lr] if seed == 0 else go(name, lr, seed)
                    out.append({'data': what, 'seed': seed, 'side': name, 'rate': f'{lr:g}', 'FVU': r['fvu'], 'dead': r['dead'], 'training FVU': r['train']})
    return out

def verdict(rows):
    "By data set: the ratio of the mean FVUs (below 1: saebook's is lower), the largest of a seed, the mean dead parts."
    out = []
    for what in dict.fromkeys(r['data'] for r in rows):
        by = {s: [r for r in rows if r['data'] == what and r['side'] == s] for s in ('saebook', 'sparsify')}
        if not by['sparsify']: continue
        mean = lambda s, k: sum(r[k] for r in by[s])/len(by[s])
        out.append({'data': what, 'FVU saebook / sparsify': mean('saebook', 'FVU')/mean('sparsify', 'FVU'), 'worst seed': max(a['FVU']/b['FVU'] for a, b in zip(by['saebook'], by['sparsify'])),
                    'dead saebook': mean('saebook', 'dead'), 'dead sparsify': mean('sparsify', 'dead')})
    return out

if __name__ == '__main__' and not answer(run):
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--quick', action='store_true'); ap.add_argument('--model', default=shared/'models/stories260K'); ap.add_argument('--text', default=shared/'data/tinystories/small.txt')
    a = ap.parse_args()
    rs = rows(a.quick, a.model, a.text)
    table(rs, 'Held-out FVU at equal steps'); table(verdict(rs))
