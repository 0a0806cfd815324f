"How the cost of a TopK training step grows with the number of features and with k: saebook, its exact mode, and sparsify."
import argparse

from common import THREADS, have, table
from run import compare

NAMES = 'sparsify', 'saebook', 'saebook:fp32' # the first is the base of the ratios

def rows(quick=False):
    "A row for each size and side: CPU milliseconds of a step, and how many times faster it is than sparsify's."
    names, out = [*have('sparsify'), *NAMES[1:]], []
    for n in ((1024, 2048) if quick else (2048, 8192, 32768)):
        for k in ((16,) if quick else (16, 32, 64)):
            res, cfg = compare('W1', names, dict(n_lat=n, k=k, batch=256 if quick else 1024), rounds=2 if quick else 5, threads=THREADS)
            for name, q in res.items():
                out.append({'features': n, 'k': k, 'side': name, 'CPU ms': q['cpu_s']*1e3, 'ratio': q['cpu_ratio'], 'FVU': q['fvu'], 'GFLOP/s of the encoder alone': 2e-9*cfg['batch']*cfg['d_in']*n/q['cpu_s'], 'MiB': q['rss']})
    return out

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('--quick', action='store_true')
    table(rows(ap.parse_args().quick), f'TopK step, d 512, {THREADS} thread(s)')
