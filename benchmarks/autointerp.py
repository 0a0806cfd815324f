"""Features explained and scored a minute, without any language model: what `interpret` does for each, its control included, at two sizes of a cache, and the memory it takes above the cache's contexts.
A GPT-NeoX of one layer with random weights and an SAE of 1,024 features with random weights, on documents of the small world; a thread. Aim: 50 features a minute on 2 cores."""
import resource, tempfile, time
import numpy as np

from common import tables
from harvest import neox
from saebook import sites
from saebook.autointerp import EmbeddingDetection, LexicalDetection, LexicalFuzzing, LogitEffect, Simulation, TokenStatistics, interpret, living
from saebook.cache import Contexts, FeatureCache, contexts
from saebook.sae import SAE
from saebook.world import World

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024 # MiB, the most there has been

def repeated(ctx, times): # the same contexts as other documents, for a cache of any size
    n = int(ctx.group.max()) + 1
    cat = lambda t: t.repeat(times, 1)
    return Contexts(cat(ctx.input_ids), cat(ctx.attention_mask), cat(ctx.use), np.concatenate([ctx.group + i*n for i in range(times)]))

def rows(quick=False):
    world = World(0); tok = world.tokenizer()
    base = contexts(tok, world.documents(500 if quick else 4000, seed=1).text.tolist(), 64)
    model = neox(64, 1, len(tok)); site = sites.site(model, 0)
    sae, out = SAE(64, 1024, k=32, site=site, seed=0).eval(), []
    for times in (1,) if quick else (1, 10):
        with tempfile.TemporaryDirectory() as d:
            c = FeatureCache.create(f'{d}/c', sae, (model, repeated(base, times)), progress=False)
            fs = living(c, 5 if quick else 40)
            every = [LexicalDetection(), LexicalFuzzing(), Simulation(), EmbeddingDetection()]
            for what, explainer, scorers, kw in (('tokens, detection', TokenStatistics(), LexicalDetection(), {}), ('pairs, detection', TokenStatistics(True), LexicalDetection(), {}), ('pairs, four scorers', TokenStatistics(True), every, {}),
                                                 ('tokens, detection, similar negatives', TokenStatistics(), LexicalDetection(), dict(negatives='similar')), ('tokens, detection, co-occurring negatives', TokenStatistics(), LexicalDetection(), dict(negatives='cooccurring')),
                                                 ('what is written, ablation', e := LogitEffect(model, sae), e, {})):
                m, t, s = peak(), time.process_time(), time.time()
                r = interpret(c, fs, explainer, scorers, tokenizer=tok, length=16, path=f'{d}/{what}.jsonl', progress=False, **kw)
                out.append({'tokens': len(c), 'what': what, 'features a minute of CPU': 60*len(fs)/(time.process_time() - t), 'a minute': 60*len(fs)/(time.time() - s), 'median': r.summary().score[0], 'control': r.summary().control[0], 'more MiB at the peak': peak() - m})
    return {'interpret': out}

if __name__ == '__main__': tables(rows, __doc__)
