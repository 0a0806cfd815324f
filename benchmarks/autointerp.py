"""Features explained and scored a minute, without any language model: what `interpret` does for each, its control included, at two sizes of a cache, and the memory it takes above the cache's contexts.
A GPT-NeoX of one layer with random weights and an SAE of 1,024 features with random weights, on documents of the small world; a thread. Aim: 50 features a minute on 2 cores."""
import re, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from common import tables
from harvest import neox
from saebook import sites
from saebook.autointerp import EmbeddingDetection, LexicalDetection, LexicalFuzzing, LogitEffect, Simulation, TokenStatistics, interpret, living
from saebook.cache import Contexts, FeatureCache, contexts
from saebook.sae import SAE
from saebook.world import World

def peak(): return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])/1024 # MiB, the most this process has had; getrusage would begin at the parent's

def repeated(ctx, times): # the same contexts as other documents, for a cache of any size
    n = int(ctx.group.max()) + 1
    cat = lambda t: t.repeat(times, 1)
    return Contexts(cat(ctx.input_ids), cat(ctx.attention_mask), cat(ctx.use), np.concatenate([ctx.group + i*n for i in range(times)]))

WORKS = {'tokens, detection': (TokenStatistics(), LexicalDetection(), {}), 'pairs, detection': (TokenStatistics(True), LexicalDetection(), {}),
         'pairs, four scorers': (TokenStatistics(True), [LexicalDetection(), LexicalFuzzing(), Simulation(), EmbeddingDetection()], {}),
         'tokens, detection, similar negatives': (TokenStatistics(), LexicalDetection(), dict(negatives='similar')), 'tokens, detection, co-occurring negatives': (TokenStatistics(), LexicalDetection(), dict(negatives='cooccurring')),
         'what is written, ablation': (None, None, {})}

def one(what, path, n, model, sae): # in a process of its own, whose memory nobody else has used
    tok, (explainer, scorers, kw) = World(0).tokenizer(), WORKS[what]
    if explainer is None: explainer = scorers = LogitEffect(model, sae)
    before, c = peak(), FeatureCache.open(path)
    ctx = c.contexts(); contexts_mib = sum(t.nbytes for t in (ctx.input_ids, ctx.attention_mask, ctx.use))/2**20; del ctx
    fs = living(c, n)
    cpu, t = time.process_time(), time.time()
    r = interpret(c, fs, explainer, scorers, tokenizer=tok, length=16, path=f'{path}-{what}.jsonl', progress=False, **kw)
    s = r.summary().iloc[0]
    return {'tokens': len(c), 'what': what, 'features a minute of CPU': 60*len(fs)/(time.process_time() - cpu), 'a minute': 60*len(fs)/(time.time() - t), 'median': s.score, 'control': s.control, 'contexts, MiB': contexts_mib, 'more at the peak, MiB': peak() - before}

def rows(quick=False):
    world = World(0); tok = world.tokenizer()
    base = contexts(tok, world.documents(500 if quick else 4000, seed=1).text.tolist(), 64)
    model = neox(64, 1, len(tok)); site = sites.site(model, 0)
    sae, out = SAE(64, 1024, k=32, site=site, seed=0).eval(), []
    for times in (1,) if quick else (1, 10):
        with tempfile.TemporaryDirectory() as d, ProcessPoolExecutor(1, get_context('spawn'), max_tasks_per_child=1) as alone:
            FeatureCache.create(f'{d}/c', sae, (model, repeated(base, times)), progress=False)
            out += [alone.submit(one, w, f'{d}/c', 5 if quick else 40, model, sae).result() for w in WORKS]
    return {'interpret': out}

if __name__ == '__main__': tables(rows, __doc__)
