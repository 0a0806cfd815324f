"Caches on disk: killed and resumed, larger than memory, damaged, foreign, and against the dense computation."
import errno, hashlib, json, math, os, subprocess, sys

import numpy as np, pytest, torch
from safetensors.numpy import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from saebook import cache, sites
from saebook.cache import ActivationCache, Contexts, FeatureCache, activations
from saebook.codes import SparseCode
from saebook.core import BadInput, read_json, write_json
from saebook.sae import SAE
from saebook.sites import Site

X = Site('x')

def make_ctx(rows=40, seq=12, vocab=50, seed=0):
    "Rows of different lengths, some tokens of which are not in use."
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(seq) < torch.randint(2, seq + 1, (rows, 1), generator=g)).long()
    use = (mask > 0) & (torch.rand(rows, seq, generator=g) < .8)
    use[:, 0] = False; use[5] = False # a whole row without a token in use
    return Contexts(torch.randint(0, vocab, (rows, seq), generator=g), mask, use, np.arange(rows)//2)

@pytest.fixture(scope='module')
def lm():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)).eval()

@pytest.fixture(scope='module')
def at(lm): return [sites.site(lm, 0), sites.site(lm, 1, 'mlp')]

def tensors(n=10, d=6, rows=50): return [torch.randn(rows, d, generator=torch.Generator().manual_seed(i)) for i in range(n)]
def write(path, x=None, **kw): return ActivationCache.write(path, tensors() if x is None else x, **{**dict(at=X, dtype=torch.float32, shard_mb=.002, progress=False), **kw})
def hashes(path): return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in path.iterdir()}

def says(words, fn, *args, **kw):
    "The call is refused in one sentence with these words in it."
    with pytest.raises(BadInput) as e: fn(*args, **kw)
    assert words in str(e.value) and '\n' not in str(e.value), str(e.value)

# ---- killed at any moment

KILLED = '''
import hashlib, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from saebook.cache import ActivationCache, FeatureCache
from saebook.sae import SAE
from saebook.sites import Site
sys.path.insert(0, sys.argv[2])
from test_cache import make_ctx
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
root, rng = Path(sys.argv[1]), random.Random(0)

def make(name): # two caches from a model, and one of features from the first
    torch.manual_seed(0)
    lm = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)).eval()
    site = Site('gpt_neox.layers.0')
    acts = ActivationCache.create(root/name/'acts', lm, make_ctx(120), site, shard_mb=.001, batch=8, progress=False)
    FeatureCache.create(root/name/'feats', SAE(16, 64, k=4, site=site), acts, batch=16, shard_batches=2, index_mb=.001, progress=False)

def child(name, doom=None): # forked before torch has started a thread
    pid = os.fork()
    if pid == 0:
        if doom is not None: # killed just before or just after the doom-th renaming
            replace, n = os.replace, [0]
            def dying(*a):
                n[0] += 1
                if n[0] == doom[0] and doom[1]: replace(*a)
                if n[0] == doom[0]: os.kill(os.getpid(), signal.SIGKILL)
                replace(*a)
            os.replace = dying
        try: make(name)
        except BaseException as e: print(repr(e), flush=True); os._exit(1)
        os._exit(0)
    return pid

def end(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def hashes(name): return {str(f.relative_to(root/name)): hashlib.sha256(f.read_bytes()).hexdigest() for f in (root/name).rglob('*') if f.is_file()}

t = time.monotonic(); assert end(child('whole')) == 0; t = time.monotonic() - t
want, killed = hashes('whole'), 0
for doom in [(1, False), (1, True), (2, True), (3, False), (4, True), (7, False), (8, True), (30, False)]: # by renaming
    rc = end(child('renaming', doom)); assert rc in (0, -9), rc
    killed += rc == -9
assert end(child('renaming')) == 0 and hashes('renaming') == want, 'renaming'
for trial in range(2): # by the clock
    for _ in range(4):
        pid = child(f'clock{trial}'); time.sleep(rng.uniform(.1, .9)*t); os.kill(pid, signal.SIGKILL)
        killed += end(pid) == -9
    assert end(child(f'clock{trial}')) == 0 and hashes(f'clock{trial}') == want, trial
print('killed', killed, 'files', len(want))
'''

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_run_that_was_killed_ends_with_the_same_bytes(tmp_path):
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', KILLED, str(tmp_path), os.path.dirname(__file__)], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    assert int(r.stdout.split()[1]) >= 8 and int(r.stdout.split()[3]) > 20, r.stdout

# ---- larger than memory

LARGE = '''
import re, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from saebook.cache import ActivationCache, FeatureCache
from saebook.codes import SparseCode
from saebook.sae import SAE
from saebook.sites import Site
from saebook.train import TrainConfig, train_sae
anonymous = lambda: int(re.search(r'^Anonymous:\\s+(\\d+)', Path('/proc/self/smaps_rollup').read_text(), re.M)[1])/1024
data = lambda: int(re.search(r'^VmData:\\s+(\\d+)', Path('/proc/self/status').read_text(), re.M)[1])/1024
root, d, rows, n, allowed = Path(sys.argv[1]), 512, 1024, 320, 16 # 320 tensors of 1 MiB in bfloat16, 16 MiB of memory

def made(n):
    base, x = torch.arange(d, dtype=torch.float32)/d, torch.empty(rows, d)
    for i in range(n): x[:] = base; x[:, 0] = (torch.arange(rows) + rows*i)//256; yield x

class Coder: # the first dimensions tell the token
    n = 16
    def encode(self, x): i = x[:, :1].long() % 16; return SparseCode(torch.ones(len(x), 1), i, 16)

def work(name, n):
    c = ActivationCache.write(root/name, made(n), Site('x'), shard_mb=4, progress=False)
    data, seen, most = c['x'].shuffled(1024, window_mb=4), torch.zeros(len(c), dtype=torch.bool), 0
    for s in range(len(data)):
        x, r = data.batch(s), data.rows(s); seen[r] = True
        assert torch.equal(x[:, 0], (r//256).bfloat16().float()) and x[0, 1] == torch.tensor(1/d).bfloat16()
        if s % 16 == 0: most = max(most, anonymous())
    assert seen.all()
    c.verify(progress=False)
    del data, x, r
    h = train_sae(SAE(d, 16, k=2), c, TrainConfig(steps=len(c)//512, batch=128, window_mb=2, log_every=50), progress=False, path=root/(name + 't')).history
    assert h.fvu.notna().all() and h.fvu.iloc[-1] < h.fvu.iloc[0]
    most = max(most, anonymous())
    f = FeatureCache.create(root/(name + 'f'), Coder(), c, index_mb=1, batch=1024, progress=False)
    assert int(f.firing_counts().sum()) == len(c)
    return sum(p.stat().st_size for p in (root/name).iterdir())/2**20, max(most, anonymous())

work('warm', 4)
before, limit = anonymous(), data() + allowed
resource.setrlimit(resource.RLIMIT_DATA, (int(limit*2**20), int(limit*2**20)))
try: torch.empty(allowed + 64, 2**20, dtype=torch.uint8).fill_(1); sys.exit('the limit does not bind')
except RuntimeError: pass
size, most = work('large', n)
print(f'{size:.0f} MiB on disk, {most - before:.1f} MiB more of anonymous memory than a cache of 4 MiB')
assert size >= 20*allowed and most - before < allowed
'''

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='RLIMIT_DATA and smaps_rollup are of Linux')
def test_a_cache_twenty_times_larger_than_memory(tmp_path):
    r = subprocess.run([sys.executable, '-W', 'ignore', '-c', LARGE, str(tmp_path)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'MALLOC_ARENA_MAX': '1', 'MALLOC_MMAP_THRESHOLD_': '65536'}) # what is freed is given back
    print(r.stdout)
    assert r.returncode == 0, r.stdout + r.stderr

# ---- activations

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize('batch', [1, 7, 64])
def test_the_cache_is_what_activations_gives(tmp_path, lm, at, dtype, batch):
    ctx = make_ctx()
    c, want = ActivationCache.create(tmp_path/'c', lm, ctx, at, dtype, shard_mb=.003, batch=batch, progress=False), activations(lm, ctx, at, progress=False)
    assert c.sites == at and len(c) == int(ctx.use.sum()) and c.width(at[0]) == 16 and len(c.manifest['shards']) > 3
    for s in at: torch.testing.assert_close(c[s][:], want[s].to(dtype).float(), atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=2e-2)
    back = ActivationCache.open(tmp_path/'c').contexts()
    for k in ('input_ids', 'attention_mask', 'use'): assert torch.equal(getattr(back, k), getattr(ctx, k)) and getattr(back, k).dtype == getattr(ctx, k).dtype
    assert (back.group == ctx.group).all()

def test_rows_are_asked_for_as_of_a_tensor(tmp_path):
    c, x = write(tmp_path/'c'), torch.cat(tensors())
    v = c[X]
    assert v.shape == x.shape and len(v) == len(x) == 500 and v.dtype == torch.float32 and c['x'].site == X
    for i in (slice(None), slice(90, 310, 7), slice(-5, None), [3, 499, 3, -1], torch.tensor([400, 2]), np.array([7, 8]), x[:, 0] > 1, list(range(5)), []): assert torch.equal(v[i], x[i]), i
    assert torch.equal(v[7], x[[7]]) and torch.equal(torch.cat(list(v)), x)
    says('rows from 3 to 500 were asked of a cache of 500', lambda: v[[3, 500]])
    says('give whole numbers', lambda: v[[.5]])
    says('give whole numbers', lambda: v[torch.ones(3, dtype=torch.bool)])
    says("unknown site of the cache 'y'", lambda: c['y'])

@pytest.mark.parametrize('cut', [1, 13, 50, 499, 1000])
def test_how_the_rows_come_does_not_matter(tmp_path, cut):
    write(tmp_path/'a'); write(tmp_path/'b', torch.cat(tensors()).split(cut))
    assert hashes(tmp_path/'a') == hashes(tmp_path/'b')

def test_one_buffer_that_is_used_again(tmp_path):
    def reused(buf=torch.empty(50, 6)):
        for x in tensors(): buf.copy_(x); yield buf
    assert torch.equal(write(tmp_path/'c', reused(), shard_mb=.003)[X][:], torch.cat(tensors()))

def test_a_changed_configuration_is_refused(tmp_path, lm, at):
    ctx, path = make_ctx(), tmp_path/'c'
    make = lambda model=lm, ctx=ctx, at=at, **kw: ActivationCache.create(path, model, ctx, at, **{**dict(shard_mb=.003, batch=8, progress=False), **kw})
    make(); before = hashes(path)
    other = GPTNeoXForCausalLM(lm.config).eval(); other.load_state_dict(lm.state_dict()); make(other)
    with torch.no_grad(): next(other.parameters())[0, 0] += 1
    for what, fn in dict(model=lambda: make(other), tokens=lambda: make(ctx=make_ctx(seed=1)), sites=lambda: make(at=at[:1]), dtype=lambda: make(dtype=torch.float32),
                         shard_mb=lambda: make(shard_mb=.004), batch=lambda: make(batch=9), info=lambda: make(info=dict(a=1))).items(): says(f'holds a cache with {what}=', fn)
    assert hashes(path) == before

def test_refused_before_any_work(tmp_path, lm, at):
    ctx, make = make_ctx(), lambda *a, **kw: ActivationCache.create(tmp_path/'c', *a, progress=False, **kw)
    says('has positions', make, lm, ctx, at[0].at('last'))
    says('or one of them twice', make, lm, ctx, [at[0], at[0]])
    says('unknown module path', make, lm, ctx, Site('nope'))
    says('no token of the contexts is in use', make, lm, Contexts(ctx.input_ids, ctx.attention_mask, ctx.use & False, ctx.group), at)
    says('torch.int8 was given', make, lm, ctx, at, dtype=torch.int8)
    says('shard_mb=0 was given', make, lm, ctx, at, shard_mb=0)
    lm.train()
    try: says('call model.eval()', make, lm, ctx, at)
    finally: lm.eval()
    says('there is not one activation', write, tmp_path/'c', [])
    says('is not a tensor [rows, d]', write, tmp_path/'c', [torch.zeros(3)])
    says('is not a tensor [rows, d]', write, tmp_path/'c', [{X: torch.zeros(3, 2), Site('y'): torch.zeros(4, 2)}])
    assert not (tmp_path/'c').exists()
    (tmp_path/'f').write_text('a file'); says('cannot write to the output folder', write, tmp_path/'f')
    (tmp_path/'g').mkdir(); (tmp_path/'g'/'thesis.tex').write_text('mine'); says("holds other files ('thesis.tex', …)", write, tmp_path/'g')
    assert [f.name for f in (tmp_path/'g').iterdir()] == ['thesis.tex']

def test_refused_on_the_way_and_what_is_finished_stays(tmp_path):
    says('item 4 has the widths', write, tmp_path/'c', [*tensors(4), torch.zeros(3, 7)])
    assert 0 < len(read_json(tmp_path/'c/manifest.json')['shards']) < 6
    write(tmp_path/'c'); write(tmp_path/'d')
    assert hashes(tmp_path/'c') == hashes(tmp_path/'d')
    says('3 activations were given for contexts with', write, tmp_path/'e', [torch.zeros(3, 2)], ctx=make_ctx())
    says('hold NaN or infinity, the first at token 1, in shard 0', write, tmp_path/'h', [torch.tensor([[1.], [7e4]])], dtype=torch.float16)

def test_nan_in_a_model_names_the_site(tmp_path, lm, at):
    ctx, n = make_ctx(), [0]
    def poison(h): n[0] += 1; return h if n[0] < 6 else h*math.nan
    with sites.patch(lm, {at[1]: poison}): says(f'activations at {at[1]} hold NaN or infinity', ActivationCache.create, tmp_path/'c', lm, ctx, at, shard_mb=.003, batch=4, progress=False)
    kept = len(read_json(tmp_path/'c/manifest.json')['shards'])
    c = ActivationCache.create(tmp_path/'c', lm, ctx, at, shard_mb=.003, batch=4, progress=False)
    assert 0 < kept < len(c.manifest['shards']) and torch.isfinite(c[at[1]][:]).all()

class Full:
    "A disk with room for so many bytes."
    def __init__(self, room): self.room = room
    def open(self, *a, **kw):
        f = open(*a, **kw)
        if 'w' not in str(a[1:]): return f
        write, disk = f.write, self
        class File:
            def __enter__(self): return self
            def __exit__(self, *a): f.close()
            def __getattr__(self, k): return getattr(f, k)
            def write(self, b):
                disk.room -= len(memoryview(b).cast('B')) if len(b) else 0
                if disk.room < 0: raise OSError(errno.ENOSPC, 'No space left on device')
                return write(b)
        return File()

def test_a_full_disk(tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(cache, 'open', Full(7000).open, raising=False)
        says('the disk is full while', write, tmp_path/'c')
    assert len(read_json(tmp_path/'c/manifest.json')['shards']) == 3 and not list(tmp_path.glob('c/.*'))
    write(tmp_path/'c'); write(tmp_path/'d')
    assert hashes(tmp_path/'c') == hashes(tmp_path/'d')

# ---- shuffled

@pytest.mark.parametrize('batch,window', [(1, .001), (7, .003), (64, .003), (64, .0005), (500, 1), (501, .003), (1200, .003)])
def test_each_epoch_visits_each_row_once_and_a_batch_depends_on_its_step_only(tmp_path, batch, window):
    c = write(tmp_path/'c', shard_mb=.005)
    x, data = torch.cat(tensors()), c[X].shuffled(batch, seed=3, window_mb=window)
    n = 3*len(data)
    rows = [data.rows(s) for s in range(n)]
    flat = torch.cat(rows)
    assert all(len(r) == batch for r in rows) and len(data) == math.ceil(500/batch)
    for e in range(len(flat)//500): assert torch.equal(flat[500*e:500*e + 500].sort().values, torch.arange(500))
    assert batch > 500 or not torch.equal(flat[:500], flat[500:1000])
    fresh = c[X].shuffled(batch, seed=3, window_mb=window)
    for s in np.random.default_rng(0).permutation(n)[:60].tolist(): assert torch.equal(fresh.batch(s), x[rows[s]])
    assert not torch.equal(c[X].shuffled(batch, seed=4, window_mb=window).rows(0), rows[0]) or batch < 3

def test_two_sites_give_the_same_tokens_whatever_their_widths(tmp_path):
    number = torch.arange(300.)[:, None]
    c = write(tmp_path/'c', [{X: number, Site('wide'): number.expand(300, 33)}], shard_mb=.01)
    a, b, both = c[X].shuffled(32, window_mb=.005), c['wide'].shuffled(32, window_mb=.005), c.shuffled(32, window_mb=.005)
    for s in (0, 9, 3, 20):
        assert torch.equal(a.batch(s)[:, 0], b.batch(s)[:, 32])
        x = both.batch(s)
        assert torch.equal(x[X], a.batch(s)) and torch.equal(x[Site('wide')], b.batch(s)) and torch.equal(a.batch(s)[:, 0].long(), both.rows(s))

def test_a_window_is_read_once(tmp_path, monkeypatch):
    c, n = write(tmp_path/'c'), []
    stored = ActivationCache._stored
    monkeypatch.setattr(ActivationCache, '_stored', lambda self, site, rows: n.append(len(rows)) or stored(self, site, rows))
    data = c[X].shuffled(64, window_mb=.003)
    for s in range(7): data.batch(s)
    assert n == [131, 131, 131, 107]
    says('step -1 was asked for', data.batch, -1); says('batch=0', c[X].shuffled, 0)

# ---- features

def coder(activation, site=None):
    sae = SAE(16, 48, activation, k=5, site=site)
    with torch.no_grad(): sae.b_enc.copy_(torch.linspace(-3, .2, 48)) # some never fire, some nearly always
    return sae

@pytest.mark.parametrize('activation', ['topk', 'relu'])
@pytest.mark.parametrize('index_mb', [1, 1e-3, 1e-5])
def test_a_feature_is_its_column(tmp_path, lm, at, activation, index_mb):
    ctx, sae = make_ctx(), coder(activation, at[0])
    acts = ActivationCache.create(tmp_path/'a', lm, ctx, at, torch.float32, progress=False)
    f = FeatureCache.create(tmp_path/'f', sae, acts, dtype=torch.float32, batch=16, shard_batches=3, index_mb=index_mb, progress=False)
    dense, (row, pos) = sae.encode(acts[at[0]][:]).to_dense().detach(), ctx.where()
    for i in range(48):
        r, p, v = f.feature(i)
        on = dense[:, i] > 0
        assert torch.equal(r, row[on]) and torch.equal(p, pos[on]); torch.testing.assert_close(v, dense[on, i])
    assert torch.equal(f.firing_counts(), (dense > 0).sum(0)) and int(f.firing_counts().min()) == 0
    some = torch.tensor([99, 0, 3, -1, 99])
    torch.testing.assert_close(f[some].to_dense(), dense[some]); torch.testing.assert_close(f[:].to_dense(), dense)
    assert len(f) == len(acts) and f[[]].shape == (0, 48) and f[0].shape == (1, 48)
    f.verify(progress=False); says('rows from 48 to 48 were asked', f.feature, 48)

def test_from_a_model_and_from_a_cache(tmp_path, lm, at):
    ctx, sae = make_ctx(), coder('topk', at[1].at('1:'))
    a = FeatureCache.create(tmp_path/'a', sae, (lm, ctx), batch=16, model_batch=4, progress=False)
    acts = ActivationCache.create(tmp_path/'acts', lm, ctx, at, torch.float32, batch=4, progress=False)
    b = FeatureCache.create(tmp_path/'b', sae, acts, batch=16, progress=False)
    assert a.site == b.site == at[1] and len(a) == len(b)
    for i in range(48):
        for x, y in zip(a.feature(i), b.feature(i)): assert torch.equal(x, y)

def test_features_of_tensors_without_contexts(tmp_path):
    f = FeatureCache.create(tmp_path/'f', SAE(6, 8, k=2), write(tmp_path/'c'), progress=False)
    r, p, v = f.feature(3)
    assert len(r) and not p.any() and torch.equal(f[r].column(3), v)
    says('it has no contexts', f.contexts)

def test_a_coder_gets_its_own_site_only(tmp_path, lm, at):
    ctx = make_ctx()
    acts = ActivationCache.create(tmp_path/'a', lm, ctx, at, progress=False)
    make = lambda sae, source=acts, **kw: FeatureCache.create(tmp_path/'f', sae, source, progress=False, **kw)
    into = Site(at[1].path, 'input')
    says(f'the coder reads {into}, and {at[1]} was given', make, coder('topk', into), site=at[1])
    says(f'unknown site of the cache {str(into)!r}', make, coder('topk', into))
    says(f'the coder reads {into}, and {at[1]} was given', make, coder('topk', into), (lm, ctx), site=at[1])
    says('the coder does not know its own site, and there are 2', make, coder('topk'))
    says('the coder does not know its own site: give site=', make, coder('topk'), (lm, ctx))
    says('the coder has the width 6', make, SAE(6, 8, k=2), site=at[0])
    says('has no encode', make, torch.nn.Linear(16, 2), site=at[0])
    says('cache values in torch.float16 or torch.float32', make, coder('topk', at[0]), dtype=torch.bfloat16)
    assert not (tmp_path/'f').exists()
    make(coder('topk', at[0])); says('holds a cache with coder=', make, coder('relu', at[0]))
    says("holds 'saebook-features' and not 'saebook-activations'", ActivationCache.open, tmp_path/'f')

def test_a_code_that_is_a_view_of_its_input(tmp_path):
    class Neurons:
        n = 6
        def encode(self, x): return SparseCode(x, torch.arange(6).expand(len(x), 6), 6)
    f = FeatureCache.create(tmp_path/'f', Neurons(), write(tmp_path/'c'), dtype=torch.float32, batch=32, shard_batches=3, progress=False)
    assert torch.equal(f[:].to_dense(), torch.cat(tensors()))

def test_values_too_large_for_the_dtype(tmp_path):
    class Loud:
        n = 2
        def encode(self, x): return SparseCode(x[:, :1]*1e6, torch.zeros(len(x), 1, dtype=torch.long), 2)
    acts = write(tmp_path/'c', [torch.ones(5, 3)])
    says('too large for torch.float16, in shard 0', FeatureCache.create, tmp_path/'f', Loud(), acts, progress=False)
    assert float(FeatureCache.create(tmp_path/'g', Loud(), acts, dtype=torch.float32, progress=False).feature(0)[2][0]) == 1e6

def test_features_are_mended(tmp_path):
    acts = write(tmp_path/'c')
    make = lambda: FeatureCache.create(tmp_path/'f', SAE(6, 8, k=2), acts, batch=50, shard_batches=3, progress=False)
    make(); want = hashes(tmp_path/'f')
    for name in ('index.safetensors', '00001.safetensors', '00003.safetensors'):
        (tmp_path/'f'/name).unlink(); says(f'{name}', FeatureCache.open, tmp_path/'f')
        make(); assert hashes(tmp_path/'f') == want
    f = tmp_path/'f/index.safetensors'; b = bytearray(f.read_bytes()); b[-1] ^= 1; f.write_bytes(b)
    says('index.safetensors', FeatureCache.open(tmp_path/'f').verify, progress=False)

# ---- damaged and hostile files

def damage(**kw): return lambda d: write_json(d/'manifest.json', {**read_json(d/'manifest.json'), **kw})
def config(**kw): return lambda d: damage(config={**read_json(d/'manifest.json')['config'], **kw})(d)
def shard(fn): # on the bytes of the second shard
    def do(d): f = d/'00001.safetensors'; f.write_bytes(fn(f.read_bytes()))
    return do
def header(**kw): # other words in the header of the second shard
    def fn(b):
        n = int.from_bytes(b[:8], 'little'); h = json.loads(b[8:8+n]); h['x'] = {**h['x'], **kw}; h = json.dumps(h).encode()
        return len(h).to_bytes(8, 'little') + h + b[8+n:]
    return shard(fn)

@pytest.mark.parametrize('do,words', [
    (lambda d: (d/'manifest.json').unlink(), 'has no manifest.json'), (lambda d: (d/'manifest.json').write_text('{'), 'is damaged'),
    (lambda d: (d/'manifest.json').write_bytes(b'\xff\xfe'), 'is damaged'), (lambda d: (d/'manifest.json').write_text('[]'), 'and not'), (damage(format='zarr'), "holds 'zarr'"),
    (damage(version=2), 'is of version 2'), (damage(rows=-1), 'is damaged'), (damage(rows='500'), 'is damaged'), (damage(rows=None), 'is not finished'), (damage(rows=10**9), 'damaged'),
    (damage(shards=3), 'is damaged'), (damage(shards=[1]), 'is damaged'), (damage(shards=[]), 'is damaged'), (damage(config=None), 'is damaged'), (damage(config={}), 'is damaged'),
    (config(sites=None), 'is damaged'), (config(sites=[{'path': 3}]), 'is damaged'), (config(widths=[]), 'is damaged'), (config(widths=['a']), 'is damaged'), (config(widths=[0]), 'is damaged'), (config(widths=[7]), 'is damaged'),
    (config(dtype='I3'), 'is damaged'), (config(dtype='BF16'), 'is damaged'), (config(shard_mb='x'), 'is damaged'), (config(tokens='abc'), 'contexts.safetensors'),
    (shard(lambda b: b''), 'is damaged'), (shard(lambda b: b[:5]), 'is damaged'), (shard(lambda b: b[:40]), 'is damaged'), (shard(lambda b: b[:-1]), 'is damaged'), (shard(lambda b: b + b'\0'), 'is damaged'),
    (shard(lambda b: b'\xff'*8 + b[8:]), 'is damaged'), (shard(lambda b: b'\x80\x04' + b[2:]), 'is damaged'), (header(dtype='BF16'), 'is damaged'), (header(dtype='Q'), 'is damaged'),
    (header(shape=[-1, 6]), 'is damaged'), (header(shape=[10**9, 10**9]), 'is damaged'), (header(shape='ab'), 'is damaged'), (header(data_offsets=[-10**6, 0]), 'is damaged'), (header(data_offsets=[0]), 'is damaged'),
    (lambda d: (d/'00001.safetensors').unlink(), "00001.safetensors' is missing"), (lambda d: (d/'00009.safetensors').unlink(), 'is missing')])
def test_damaged_caches_are_refused_in_a_sentence(tmp_path, do, words):
    write(tmp_path/'c', shard_mb=1200/2**20)
    do(tmp_path/'c')
    says(words, ActivationCache.open, tmp_path/'c')

def test_not_a_cache(tmp_path):
    says('has no manifest.json', ActivationCache.open, tmp_path); says('has no manifest.json', FeatureCache.open, tmp_path/'nowhere')

def test_no_path_is_kept(tmp_path, lm, at):
    acts = ActivationCache.create(tmp_path/'a', lm, make_ctx(), at, progress=False)
    f = FeatureCache.create(tmp_path/'f', coder('topk', at[0]), acts, progress=False)
    f.to_delphi(tmp_path/'d')
    assert not [p for p in tmp_path.rglob('*') if p.is_file() and str(tmp_path).encode() in p.read_bytes()]

# ---- delphi

def by_hand(folder, splits=((0, 2), (3, 6)), kind=np.uint16, **changes):
    "delphi's layout: 3 rows of 4 tokens, 7 features; feature 1 fires at (0, 2) and (2, 3), feature 6 at (0, 2)."
    loc = {0: [[0, 2, 1], [2, 3, 1]], 3: [[0, 2, 3]]}; act = {0: [.5, 1.25], 3: [2.]}
    folder.mkdir(parents=True)
    for a, b in splits: save_file({**dict(locations=np.array(loc[a], kind), activations=np.array(act[a], np.float16), tokens=np.arange(12).reshape(3, 4)), **changes}, folder/f'{a}_{b}.safetensors')
    (folder/'config.json').write_text('{"model_name": "some/model"}')

def read(tmp_path, **kw): return FeatureCache.from_delphi(tmp_path/'d', tmp_path/'c', progress=False, **kw)

@pytest.mark.parametrize('kind', [np.uint16, np.uint32, np.int64])
@pytest.mark.parametrize('batch', [1, 5, 4096])
def test_delphi_written_by_hand(tmp_path, batch, kind):
    by_hand(tmp_path/'d'/'layers.0.mlp', kind=kind)
    f = read(tmp_path, batch=batch, shard_batches=1)
    assert f.n == 7 and len(f) == 12 and f.site == Site('layers.0.mlp') and f.contexts().input_ids.tolist() == np.arange(12).reshape(3, 4).tolist()
    assert [t.tolist() for t in f.feature(1)] == [[0, 2], [2, 3], [.5, 1.25]] and [t.tolist() for t in f.feature(6)] == [[0], [2], [2.]]
    assert f.firing_counts().tolist() == [0, 2, 0, 0, 0, 0, 1] and f[2].to_dense().tolist() == [[0, .5, 0, 0, 0, 0, 2.]]

def test_delphi_of_another_form(tmp_path):
    i = 0
    def case(words, hookpoint=None, **kw):
        nonlocal i; i += 1; d = tmp_path/str(i)
        by_hand(d/'d'/'m', **kw); says(words, read, d, hookpoint=hookpoint, batch=3, shard_batches=1)
    case('add the file that begins at 0', splits=((3, 6),)); case('has 3_6.safetensors after feature 1', splits=((0, 1), (3, 6)))
    case('unknown hookpoint', hookpoint='n')
    case('not in reading order', splits=((0, 6),), locations=np.array([[2, 3, 1], [0, 2, 1]], np.uint16))
    case('outside the tokens', splits=((0, 6),), locations=np.array([[0, 2, 1], [2, 3, 7]], np.uint16)); case('outside the tokens', splits=((0, 6),), locations=np.array([[0, 2, 1], [3, 0, 1]], np.uint16))
    case('expected whole numbers', splits=((0, 6),), locations=np.zeros((2, 2), np.uint16)); case('expected whole numbers', splits=((0, 6),), activations=np.zeros(3, np.float16))
    case('NaN', splits=((0, 6),), activations=np.array([1, np.nan], np.float16))
    by_hand(tmp_path/'two/d/m'); by_hand(tmp_path/'two/d/n'); says('several modules (m, n): give hookpoint=', read, tmp_path/'two')
    assert read(tmp_path/'two', hookpoint='n').n == 7
    d = tmp_path/'bare/d/m'; d.mkdir(parents=True); save_file(dict(locations=np.zeros((0, 3), np.uint16), activations=np.zeros(0, np.float16)), d/'0_6.safetensors')
    says("save_tokens=True", read, tmp_path/'bare')
    by_hand(tmp_path/'cut/d/m'); f = tmp_path/'cut/d/m/0_2.safetensors'; f.write_bytes(f.read_bytes()[:-3]); says('is damaged', read, tmp_path/'cut')

@pytest.mark.parametrize('n_splits', [1, 5, 48])
def test_delphi_there_and_back(tmp_path, lm, at, n_splits):
    ctx = make_ctx()
    f = FeatureCache.create(tmp_path/'f', coder('relu', at[0]), (lm, ctx), progress=False)
    out = f.to_delphi(tmp_path/'d', n_splits, 'layers.0', 'some/model')
    back = read(tmp_path, batch=32, shard_batches=2)
    for i in range(48):
        for a, b in zip(f.feature(i), back.feature(i)): assert torch.equal(a, b)
    # as delphi's loader reads it
    assert out.name == 'layers.0' and read_json(out/'config.json')['model_name'] == 'some/model' and len(list(out.glob('*.safetensors'))) == n_splits
    for p in out.glob('*.safetensors'):
        t, (a, b) = load_file(p), map(int, p.stem.split('_'))
        assert t['locations'].dtype == np.uint16 and t['activations'].dtype == np.float16 and (t['tokens'] == ctx.input_ids.numpy()).all()
        loc = t['locations'].astype(np.int64)
        assert loc[:, 2].max(initial=0) <= b - a and (np.diff(loc[:, 0]*100 + loc[:, 1]) >= 0).all()
    says('n_splits=49', f.to_delphi, tmp_path/'e', 49)

def test_delphi_of_many_rows(tmp_path):
    ones = torch.ones(70_000, 2, dtype=torch.long)
    ctx = Contexts(ones, ones, torch.tensor([False, True]).expand(70_000, 2), np.arange(70_000))
    f = FeatureCache.create(tmp_path/'f', SAE(6, 4, k=1), write(tmp_path/'a', [torch.randn(70_000, 6)], ctx=ctx, shard_mb=1), progress=False)
    assert load_file(f.to_delphi(tmp_path/'d', 1)/'0_3.safetensors')['locations'].dtype == np.uint32
    assert all(torch.equal(a, b) for i in range(4) for a, b in zip(f.feature(i), read(tmp_path).feature(i)))

def test_codes_of_another_encoder_are_not_taken_for_its_own(tmp_path, lm):
    "An encoder that is no torch module has no hash: what lies in a folder may be another's."
    class Coder:
        def __init__(self, sae): self.n, self.encode = sae.n, sae.encode
    make = lambda seed: FeatureCache.create(tmp_path/'f', Coder(SAE(16, 32, k=2, seed=seed)), (lm, make_ctx()), sites.site(lm, 0), progress=False)
    make(0)
    with pytest.raises(BadInput, match='cannot be told from those of another'): make(1)
