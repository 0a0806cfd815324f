"""Merging two real fine-tunes: every method of `compare_merges` on held-out text, with what it costs; or, with --curve, what the base as a third teacher gives and takes.
Files: a base and two fine-tunes of it, a text of each fine-tune's kind, and one of neither. The last tenth of each text judges. The whole table takes about an hour of CPU time, the curve as long."""
import argparse
from pathlib import Path

import pandas as pd

from saebook import sites
from saebook.merge import METHODS, compare_merges, distil, merge_weights, text_loss

def cut(path): # its first nine tenths, its last
    t = Path(path).read_text(encoding='utf-8')
    return t[:int(len(t)*.9)], t[int(len(t)*.9):]

def curve(base, a, b, tok, texts, held, weights, seeds, steps):
    "A row a weight of the base and seed: losses of the distilled model on each domain and on neutral text."
    start, teachers, rows = merge_weights([a, b]), dict(a=a, b=b, neutral=base), []
    for seed in seeds:
        for w in weights:
            m, _ = distil(start, tok, texts, teachers, dict(neutral=w), steps, batch=12 if w else 8, seed=seed)
            t = {d: text_loss(m, tok, h) for d, h in held.items()}
            rows.append(dict(weight=w, seed=seed, **{d: x.loss for d, x in t.items()}, low=t['neutral'].low, high=t['neutral'].high))
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    for k in ('base', 'a', 'b', 'text-a', 'text-b', 'neutral'): ap.add_argument(f'--{k}', required=True)
    ap.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2]); ap.add_argument('--steps', type=int, default=300)
    ap.add_argument('--methods', nargs='+', choices=METHODS); ap.add_argument('--out', help='a folder: the same call goes on where it was stopped')
    ap.add_argument('--curve', action='store_true'); ap.add_argument('--weights', type=float, nargs='+', default=[0, .1, .5, 1.])
    x = ap.parse_args()
    (base, tok), (a, _), (b, _) = map(sites.load_model, (x.base, x.a, x.b))
    texts, held = ({d: t[i] for d, t in dict(a=cut(x.text_a), b=cut(x.text_b), neutral=cut(x.neutral)).items()} for i in (0, 1))
    if x.curve: f = curve(base, a, b, tok, texts, held, x.weights, x.seeds, x.steps)
    else: f = compare_merges(dict(a=a, b=b), base, tok, {d: texts[d] for d in 'ab'}, held, x.methods, x.seeds, distil_steps=x.steps, path=x.out)
    print(f.round(3).to_string(index=False))
