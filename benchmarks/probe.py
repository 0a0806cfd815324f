"""Reading texts for classifiers, and fitting them: six layers in one forward pass beside the deepest alone and beside a whole pass a layer; a logistic regression of sparse features beside the same numbers made dense.
A GPT-NeoX of 7 layers with random weights, biographies of the small world, a thread; a ratio above 1 is faster than the base."""
import numpy as np, torch

from common import beside, tables
from harvest import neox
from saebook import sites
from saebook.readings import Reading, collect, pool
from saebook.sae import SAE
from saebook.world import World

LAYERS = range(6)

def extraction(quick=False):
    "A row for each size of vocabulary and way of reading; a small vocabulary makes the LM head, which nobody needs here, cheap for those who run it."
    world, out = World(0), []
    tok, texts = world.tokenizer(), world.biographies(64 if quick else 128).text.tolist()
    special = sites.special_ids(tok)
    for vocab in ((len(tok),) if quick else (len(tok), 50304)):
        model = neox(128 if quick else 256, 7, vocab)
        at = [sites.site(model, l) for l in LAYERS]
        read = lambda rs: collect(model, tok, texts, dict(enumerate(rs)), progress=False)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        def whole(layers): # hidden states as transformers gives them, a pass for each layer: batches of one length here too, so that padding is not what is compared
            got = {l: [] for l in layers}
            for l in layers:
                for i in range(0, len(order), 64):
                    x = sites.tokenize(tok, [texts[j] for j in order[i:i + 64]], side='right', max_length=256)
                    with torch.no_grad(): h = model(**x, output_hidden_states=True).hidden_states[l + 1] # the block's output; [l] is its input
                    got[l].append(pool(h, x['attention_mask'].bool() & ~torch.isin(x['input_ids'], special)))
            return {l: torch.cat(g)[np.argsort(order)].numpy() for l, g in got.items()}
        deepest, six = [Reading(at[-1])], [Reading(s) for s in at]
        saes = [Reading(s, SAE(model.config.hidden_size, 512 if quick else 4096, k=32, site=s).eval()) for s in at]
        a, b = read(six), whole(LAYERS)
        assert all(np.abs(a[l] - b[l]).max() < 1e-4 for l in LAYERS) # the same numbers, or the figure says nothing
        fs = {'six whole forward passes': lambda: whole(LAYERS), 'six layers, one pass': lambda: read(six), 'the deepest of them alone': lambda: read(deepest), 'six layers and an SAE at each, one pass': lambda: read(six + saes)}
        rs = beside(fs, rounds=2 if quick else 5)
        alone = rs['the deepest of them alone']['ms']
        for k, r in rs.items(): out.append({'vocabulary': vocab, 'what': k, 'CPU ms': r['ms'], 'ratio': r['ratio'], 'low': r['low'], 'high': r['high'], 'times the deepest alone': r['ms']/alone})
    return out

def fitting(quick=False):
    "A row for each width and way: the same rows, features at 2 % density, balanced logistic regression with L2."
    from scipy import sparse
    from saebook.estimators import TopFeatures, make_probe
    out = []
    for rows, n in (((400, 1024),) if quick else ((1600, 4096), (1600, 16384))):
        g = np.random.default_rng(0)
        y = np.arange(rows) % 2
        X = sparse.random(rows, n, .02, 'csr', np.float32, rng=g)
        X = (X + sparse.random(rows, n, .02, 'csr', np.float32, rng=g).multiply((np.arange(n) < 20) & (y[:, None] == 1))).tocsr().astype(np.float32)
        D = X.toarray()
        a, b = (make_probe().fit(x, y)[-1].coef_ for x in (X, D))
        assert np.abs(a - b).max() < .05*np.abs(a).max() # both stop where the solver's tolerance lets them
        for what, f in (('logistic regression', lambda x: make_probe().fit(x, y)), ('choosing 20 by mean difference', lambda x: TopFeatures(20).fit(x, y))):
            rs = beside({'dense': lambda: f(D), 'sparse': lambda: f(X)}, rounds=2 if quick else 7)
            out += [{'rows': rows, 'features': n, 'what': f'{what}, {k}', 'CPU ms': r['ms'], 'ratio': r['ratio'], 'low': r['low'], 'high': r['high']} for k, r in rs.items()]
    return out

def rows(quick=False): return dict(extraction=extraction(quick), fitting=fitting(quick))

if __name__ == '__main__': tables(rows, __doc__)
