"""Reading activations: how much of a model's forward pass a reader has to pay for, and what a cache on disk adds to it.
A GPT-NeoX with random weights and random ids, 8 texts of 128 tokens, a thread; a ratio above 1 is faster than the base."""
import tempfile
from pathlib import Path

import numpy as np, torch

from common import beside, tables
from saebook import cache, sites

def neox(hidden, layers=6, vocab=50304):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden//64, intermediate_size=4*hidden, vocab_size=vocab, max_position_embeddings=512)).eval()

# ---- reading

def _nnsight(model, path):
    "A reader of the same site by a trace that stops there, or None where nnsight is not installed."
    try: from nnsight import NNsight
    except ImportError: return None
    lm = NNsight(model)
    at = lm
    for p in path.split('.'): at = at[int(p)] if p.isdigit() else getattr(at, p)
    def read(ids):
        with torch.no_grad(), lm.trace(ids) as tracer:
            out = at.output.save()
            tracer.stop()
        return out[0] if isinstance(out, tuple) else out
    return read

def reading(quick=False):
    "A row for each width of the model and way of reading."
    out = []
    for hidden in ((128,) if quick else (256, 512)):
        model = neox(hidden, vocab=5000 if quick else 50304)
        ids = torch.randint(0, model.config.vocab_size, (8, 128), generator=torch.Generator().manual_seed(1))
        at = sites.site(model, 2)
        path = sites.blocks(model)
        many = [sites.site(model, l) for l in range(5)] + [sites.Site(f'{path}.{l}.mlp', s) for l in range(5) for s in ('input', 'output')]
        fs = {'whole forward pass, LM head': lambda: sites.forward(model, ids), 'read layer 2 of 0-5': lambda: sites.read(model, ids, at),
              'read layer 2, without leaving': lambda: sites.read(model, ids, at, stop=False), 'read layer 4 of 0-5': lambda: sites.read(model, ids, many[4]), 'read 15 sites of layers 0-4': lambda: sites.read(model, ids, many)}
        want = sites.read(model, ids, at)[at]
        if trace := _nnsight(model, at.path):
            assert torch.equal(trace(ids), want) # the same numbers, or the figure says nothing
            fs['nnsight, trace of layer 2 that stops there'] = lambda: trace(ids)
        else: print('nnsight is not installed, left out')
        rs = beside(fs, rounds=3 if quick else 9)
        deepest = rs['read layer 4 of 0-5']['ms']
        for k, r in rs.items():
            row = {'hidden': hidden, 'what': k, 'CPU ms': r['ms'], 'ratio': r['ratio'], 'low': r['low'], 'high': r['high']}
            if '15 sites' in k: row['times the deepest alone'] = r['ms']/deepest
            out.append(row)
    return out

# ---- caching

def _contexts(n, vocab, seq=128):
    ids = torch.randint(0, vocab, (n, seq), generator=torch.Generator().manual_seed(2))
    ones = torch.ones(n, seq, dtype=torch.long)
    return cache.Contexts(ids, ones, ones.bool(), np.arange(n))

class Peak:
    "How much the process grew inside the block, at its highest: `mib`, or None where the system does not tell."
    def _mib(self, key): return int(next(l for l in open('/proc/self/status') if l.startswith(key)).split()[1])/1024
    def __enter__(self):
        try: Path('/proc/self/clear_refs').write_text('5'); self.was = self._mib('VmRSS') # the mark is set anew
        except OSError: self.was = None
        return self
    def __exit__(self, *_): self.mib = None if self.was is None else self._mib('VmHWM') - self.was

def caching(quick=False):
    "Writing a cache beside the forward passes alone; a shuffled epoch beside reading the same bytes in order."
    model = neox(128 if quick else 256, vocab=5000 if quick else 50304)
    ctx, at = _contexts(128 if quick else 1024, model.config.vocab_size), sites.site(model, 2)
    tokens, out = int(ctx.use.sum()), []
    with tempfile.TemporaryDirectory() as d:
        made = []
        def forward():
            for _, b in cache.batches(ctx, 64, by_length=False): sites.read(model, b, at)
        def create(): made.append(cache.ActivationCache.create(f'{d}/{len(made)}', model, ctx, at, shard_mb=8, progress=False))
        rs = beside({'forward passes alone': forward, 'ActivationCache.create': create}, rounds=2 if quick else 5)
        with Peak() as alone: forward()
        with Peak() as peak: create()
        c = made[-1]
        size = tokens*c.width(at)*c.dtype.itemsize
        for (k, r), p in zip(rs.items(), (alone, peak)): out.append({'what': k, 'tokens/s': tokens/r['ms']*1e3, 'MB/s': size/r['ms']*1e-3 if 'create' in k else None, 'times the base': 1/r['ratio'], 'peak MiB more': p.mib})
    # the readers, on a cache of several windows: how it was filled does not matter
    with tempfile.TemporaryDirectory() as d:
        rows, width, mb = (20_000, 128, 2) if quick else (400_000, 256, 32)
        g = torch.Generator().manual_seed(3)
        c = cache.ActivationCache.write(f'{d}/c', (torch.randn(min(10_000, rows), width, generator=g) for _ in range(rows//min(10_000, rows))), shard_mb=mb/4, progress=False)
        view, size = c[c.sites[0]], len(c)*width*c.dtype.itemsize
        files = [c.path/f for f in c._files()]
        def plain(): # the bytes, as they lie
            for f in files:
                with open(f, 'rb') as h:
                    while h.read(1 << 20): pass
        def in_order():
            for _ in view: pass
        def epoch():
            order = view.shuffled(1024, 0, window_mb=mb)
            for i in range(len(order)): order.batch(i)
        rs = beside(fs := {'reading the bytes in order': plain, 'rows in order, as float32': in_order, f'a shuffled epoch, as float32, window of {mb} MiB': epoch}, rounds=2 if quick else 5)
        for k, r in rs.items():
            with Peak() as peak: fs[k]()
            out.append({'what': k, 'tokens/s': len(c)/r['ms']*1e3, 'MB/s': size/r['ms']*1e-3, 'times the base': 1/r['ratio'], 'peak MiB more': peak.mib})
    return out

def rows(quick=False): return dict(reading=reading(quick), caching=caching(quick))

if __name__ == '__main__': tables(rows, __doc__)
