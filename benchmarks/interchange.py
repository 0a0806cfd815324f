"""What an interchange costs: a source is read, a base runs with the change, against two bare forward passes of the same model on the same ids.
A GPT-NeoX with random weights and random ids, 8 texts of 128 tokens, a thread. cost: 1 is as much as the two passes; the source stops at its site, so it may be less."""
import argparse

import torch

from common import THREADS, beside, table
from harvest import neox
from saebook import sites
from saebook.intervene import FixedMask, Intervention, Neurons, SAEFeaturizer, das, interchange, mdas, random_subspace
from saebook.sae import SAE

def rows(quick=False):
    "A row for each width of the model, layer and featurizer."
    out = []
    for hidden in ((128,) if quick else (256, 512)):
        model = neox(hidden, vocab=5000 if quick else 50304)
        g = torch.Generator().manual_seed(1)
        base, source = (torch.randint(0, model.config.vocab_size, (8, 128), generator=g) for _ in range(2))
        where = torch.randint(1, 100, (8,), generator=g)
        def bare(): sites.forward(model, source); sites.forward(model, base)
        ways = {'all neurons': Intervention(Neurons(hidden)), '64 directions': das(hidden, 64).eval(), 'full rotation, mask': mdas(hidden).eval(), 'random 64': Intervention(random_subspace(hidden, 64)),
                'SAE, 8 times as wide': Intervention(SAEFeaturizer(SAE(hidden, 8*hidden, k=32)), FixedMask(8*hidden, range(100)))}
        for layer in (2, 5):
            at = sites.site(model, layer)
            def run(iv, grad=False): return interchange(model, base, source, {at: iv}, {at: where}, {at: where}, grad)
            with torch.no_grad():
                rs = beside({'two bare passes': bare} | {k: lambda iv=iv: run(iv) for k, iv in ways.items()}, rounds=3 if quick else 9)
            out += [{'width': hidden, 'layer': f'{layer} of 0-5', 'featurizer': k, 'CPU ms': r['ms'], 'cost': 1/r['ratio'], 'lowest': 1/r['high'], 'highest': 1/r['low']} for k, r in rs.items()]
    return out

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__); ap.add_argument('--quick', action='store_true')
    torch.set_num_threads(THREADS)
    table(rows(ap.parse_args().quick), 'interchange')
