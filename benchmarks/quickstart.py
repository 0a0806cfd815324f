"Where a quickstart spends its time: ratios to a floor, CPU seconds of the process, medians of alternating rounds."
import statistics, time

import torch

from saebook import cache, codes, sites
from saebook.sae import SAE
from saebook.train import TrainConfig, Trainer
from saebook.world import World, load_taught

def cpu(f, n):
    t = time.process_time()
    for _ in range(n): f()
    return (time.process_time() - t)/n

def ratio(a, b, n, rounds=7): # median over rounds of a's time over b's; the order changes each round
    a(); b(); rs, ts = [], []
    for r in range(rounds):
        if r % 2: tb, ta = cpu(b, n), cpu(a, n)
        else:     ta, tb = cpu(a, n), cpu(b, n)
        rs.append(ta/tb); ts.append((ta, tb))
    return statistics.median(rs), min(rs), max(rs), statistics.median(t[0] for t in ts)*1e3, statistics.median(t[1] for t in ts)*1e3

def training_step(d=128, n=1024, k=16, batch=1024):
    x, sae = torch.randn(batch, d), SAE(d, n, k=k)
    trainer = Trainer(sae, TrainConfig(lr=1e-3), x.mean(0), (1., 1.))
    def step(): trainer.step(x)
    W = sae.W_enc.detach()
    def floor(): (x @ W).topk(k, sorted=False) # pre-activations and the selection: everything else is k/n of that
    return ratio(step, floor, 5)

def reading():
    model, tok = load_taught()
    world = World(0)
    ctx = cache.contexts(tok, world.documents(256).text.tolist(), 128)
    s, bs = sites.site(model, 1), [b for _, b in cache.batches(ctx)]
    def read(stop):
        for b in bs: sites.read(model, b, s, stop=stop)
    return ratio(lambda: read(False), lambda: read(True), 1)

if __name__ == '__main__':
    print(f'{torch.get_num_threads()} thread(s), torch {torch.__version__}')
    for name, f, flops in (('training step / floor (128 → 1,024, k 16, batch 1,024)', training_step, 2*1024*128*1024), ('reading to the end / stopping after layer 1 of 0-3', reading, None)):
        m, lo, hi, a, b = f()
        print(f'{name}: {m:.2f} ({lo:.2f} – {hi:.2f}); {a:.1f} ms against {b:.1f} ms' + (f', the floor makes {flops/b*1e-6:.1f} GFLOP/s' if flops else ''))
