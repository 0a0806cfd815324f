"""A sparse feed-forward block in training: forward, backward and the optimiser's step beside the dense block of as many parameters, and beside the narrow one that an ordinary model has.
Width 256, 8,192 units (8 times 1,024), k 32, a thread; a ratio above 1 is faster than the base. Every block has its model's GELU, GroupMax ReLU."""
import torch

from common import beside, tables
from saebook.feedforward import FeedForwardSpec, SparseFeedForward

def step(block, x, g, opt=None):
    "A step as a model makes it: the gradient of the block's input is asked for too."
    def f():
        y = block(x)
        torch.autograd.backward(y, g)
        if opt: opt.step()
        block.zero_grad(); x.grad = None
    return f

def rows(quick=False):
    "A row for each number of tokens and kind of block."
    d, narrow, n, k, out = (64, 256, 2048, 16, {}) if quick else (256, 1024, 8192, 32, {})
    for optimiser in (False, True):
        table = []
        for tokens in (256,) if quick else (1024, 4096):
            torch.manual_seed(0)
            x, g = torch.randn(tokens, d, requires_grad=True), torch.randn(tokens, d)/tokens
            specs = {f'dense, {n:,} units': (n, 'dense'), f'dense, {narrow:,} units': (narrow, 'dense')} | {f'{kind}, {n:,} units': (n, kind) for kind in ('topk', 'batch_topk', 'groupmax', 'low_rank', 'kron', 'product_key')}
            blocks = {name: SparseFeedForward(d, m, FeedForwardSpec(kind, k=k), activation='gelu') for name, (m, kind) in specs.items()}
            fs = {name: step(b, x, g, torch.optim.AdamW(b.parameters(), 1e-4, fused=True) if optimiser else None) for name, b in blocks.items()}
            rs = beside(fs, rounds=3 if quick else 7)
            wide, small = (blocks[name].flops(True) for name in list(specs)[:2])
            for name, r in rs.items():
                f = blocks[name].flops(True)
                table.append({'tokens': tokens, 'block': name, 'CPU ms': r['ms'], 'ratio': r['ratio'], 'low': r['low'], 'high': r['high'], 'time / wide': 1/r['ratio'], 'FLOP / wide': f/wide,
                              'time / narrow': r['ms']/rs[f'dense, {narrow:,} units']['ms'], 'FLOP / narrow': f/small})
        out['a training step with AdamW' if optimiser else 'forward and backward'] = table
    return out

if __name__ == '__main__': tables(rows, __doc__)
