"""All of it: python benchmarks/all.py [--quick]. Prints tables and writes results/<processor>-<cores>c.json, which README.md takes its figures from.
A peer without an environment (peers.sh) is left out, with a line saying so. --quick: small sizes and few rounds, to see that everything runs."""
import argparse, importlib, json, os, sys, time
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1') # before torch is imported

from common import THREADS, have, here, machine, short, table
from run import WORKS, compare

PARTS = 'works', 'scaling', 'converge', 'harvest', 'interchange', 'end_to_end', 'probe', 'feedforward', 'autointerp'
BESIDE = dict(W1=('sparsify', 'saelens', 'dl', 'overcomplete'), W1A=('sparsify',), W2=('dl', 'saelens'), W2L=('dl', 'saelens', 'overcomplete'), W3=('sparsify', 'dl', 'saelens'))

def works(quick=False):
    "run.py's works: a row for each adapter, the first the base of the ratios."
    out = []
    for work, peers in BESIDE.items():
        cfg = WORKS[work]
        small = dict(d_in=128, n_lat=1024, batch=256, **({'n_val': 256} if 'n_val' in cfg else {})) if quick else {}
        try: res, cfg = compare(work, [*have(*peers[:1] if quick else peers), 'saebook', 'saebook:fp32'], small, rounds=2 if quick else 6, threads=THREADS)
        except RuntimeError as e: print(f'{work}: {e}', flush=True); out.append({'work': work, 'side': str(e)}); continue # the other works are kept
        for name, q in res.items():
            row = {'work': work, 'side': name}
            if cfg['kind'] == 'train': row |= {'CPU ms': q['cpu_s']*1e3, 'ratio': q['cpu_ratio'], 'FVU at 0': q['fvu0'], 'FVU': q['fvu'], 'dead': q['dead'], 'counted as dead': q.get('counted'), 'AuxK': q.get('aux'), 'L0': q['l0']}
            else: row |= {'CPU ms': q['encode_s']*1e3, 'ratio': q['encode_ratio'], 'decode CPU ms': q['decode_s']*1e3, 'decode ratio': q['decode_ratio']}
            out.append(row | {'MiB': q['rss']})
    return out

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--quick', action='store_true'); ap.add_argument('--only', nargs='+', default=PARTS, choices=PARTS)
    ap.add_argument('--out', help="the results file, by default results/<processor>-<cores>c.json (with -quick)")
    a = ap.parse_args()
    import torch; torch.set_num_threads(THREADS)
    where = machine()
    print(f"{where['processor']}, {where['cores']} cores, {THREADS} thread(s), load {where['load']}; " + ', '.join(f'{k} {v}' for k, v in where['versions'].items()))
    if where['load'] > .3*where['cores']: print('The machine is not quiet: do not keep these figures.')
    results, t0 = {}, time.time()
    for part in a.only:
        mod = sys.modules[__name__] if part == 'works' else importlib.import_module(part)
        try: got = getattr(mod, 'works' if part == 'works' else 'rows')(a.quick)
        except Exception as e: print(f'\n{part}: {type(e).__name__}: {e}'); results[part] = dict(error=type(e).__name__); continue # the others still run
        for k, v in (got if isinstance(got, dict) else {part: got}).items(): results[k] = table(v, k)
        if part == 'converge': results['verdict'] = table(mod.verdict(got), 'converge, all seeds')
        sys.stdout.flush()
    out = Path(a.out or here/'results'/f"{short(where['processor'], where['cores'])}{'-quick' if a.quick else ''}.json")
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    rnd = lambda o: float(f'{o:.4g}') if isinstance(o, float) else [rnd(v) for v in o] if isinstance(o, list) else {k: rnd(v) for k, v in o.items()} if isinstance(o, dict) else o
    if set(a.only) < set(PARTS) and out.exists(): # of the parts not asked for the file keeps what it has, if it was made with the same versions
        old = json.loads(out.read_text(encoding='utf-8'))
        if old['versions'] == where['versions'] and old['quick'] == a.quick: results = old['results'] | results
    with open(out, 'w', encoding='utf-8') as f: json.dump(rnd(dict(where, quick=a.quick, minutes=(time.time() - t0)/60, results=results)), f, indent=1, ensure_ascii=False); f.write('\n')
    print(f'{(time.time() - t0)/60:.0f} minutes; written: {os.path.relpath(out)}')

if __name__ == '__main__': main()
