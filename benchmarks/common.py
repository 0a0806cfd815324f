"What the benchmarks share: the machine they ran on, ratios that noise spoils little, tables, a peer's own python."
import datetime, importlib.metadata, importlib.util, json, os, platform, re, statistics, subprocess, sys, tempfile, time
from pathlib import Path

here = Path(__file__).resolve().parent
shared = here.parents[1]/'shared' # models and texts; every script takes other paths
venvs = Path(os.environ.get('PEER_VENVS', '~/.cache/saebook-peers')).expanduser() # made by peers.sh
PEERS = dict(sparsify='eai-sparsify', saelens='sae-lens', dl='dictionary-learning', overcomplete='overcomplete')
THREADS = int(os.environ.get('OMP_NUM_THREADS') or 1)

# ---- the machine

def processor():
    "The model name of the processor, and those of its flags that decide how fast a product is."
    info = Path('/proc/cpuinfo').read_text() if os.path.exists('/proc/cpuinfo') else ''
    get = lambda k: m[1].strip() if (m := re.search(rf'^{k}\s*:(.*)$', info, re.M)) else ''
    return get('model name') or platform.processor() or platform.machine(), sorted(set(get('flags').split()) & {'avx2', 'avx512f', 'avx512_vnni', 'avx512_bf16', 'avx_vnni', 'amx_bf16', 'amx_int8'})

def short(name, cores):
    "A processor's name as that of a file: 'Intel(R) Xeon(R) Processor @ 2.50GHz' with 2 cores is intel-xeon-2.50ghz-2c."
    return re.sub(r'[^a-z0-9.]+', '-', re.sub(r'\((r|tm)\)|\bprocessor\b|\bcpu\b', ' ', name.lower())).strip('-') + f'-{cores}c'

def cores(): return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()

def peer_python(name): # None where peers.sh has not been run
    p = venvs/name/'bin'/'python'
    return str(p) if p.exists() else None

def version_of(name):
    "The version of a peer in its own environment, or None."
    if not (py := peer_python(name)): return None
    r = subprocess.run([py, '-c', f'import importlib.metadata as m; print(m.version({PEERS[name]!r}))'], capture_output=True, text=True)
    return r.stdout.strip() or None

def machine():
    "Where and with what the figures were taken. No host name, no path."
    name, flags = processor()
    ours = {p: importlib.metadata.version(p) for p in ('torch', 'transformers', 'nnsight') if importlib.util.find_spec(p)}
    ini = (here.parent/'settings.ini').read_text(encoding='utf-8')
    return dict(processor=name, flags=flags, cores=cores(), threads=THREADS, system=platform.system(), load=round(os.getloadavg()[0], 2), date=str(datetime.date.today()),
                versions=dict(python=platform.python_version(), saebook=re.search(r'^version\s*=\s*(\S+)', ini, re.M)[1], **ours, **{p: v for p in PEERS if (v := version_of(p))}))

# ---- ratios

def cpu(f, n=1): # seconds of all threads: steadier than the clock on a shared machine
    t = time.process_time()
    for _ in range(n): f()
    return (time.process_time() - t)/n

def beside(fs, rounds=5, n=1): # {name: function}; the first is the base
    "CPU seconds of each, in rounds of changing order: {name: dict(ms, ratio, low, high)}; a ratio above 1 is faster than the base."
    for f in fs.values(): f()
    ts = {k: [] for k in fs}
    for r in range(rounds):
        for k in (list(fs) if r % 2 == 0 else list(fs)[::-1]): ts[k].append(cpu(fs[k], n))
    base, out = next(iter(ts.values())), {}
    for k, v in ts.items():
        rs = [a/b for a, b in zip(base, v)]
        out[k] = dict(ms=1e3*statistics.median(v), ratio=statistics.median(rs), low=min(rs), high=max(rs))
    return out

# ---- a side in its own process

def side(script, name, job): # job: what JSON can hold
    "The answer of `script --side name job.json`, run by the python of that peer, or by this one for saebook."
    env = dict(os.environ, OMP_NUM_THREADS=str(THREADS), HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', TOKENIZERS_PARALLELISM='false', WANDB_MODE='disabled', OMP_WAIT_POLICY='passive')
    with tempfile.TemporaryDirectory() as d:
        f = Path(d)/'job.json'; f.write_text(json.dumps(job))
        r = subprocess.run([sys.executable if name == 'saebook' else peer_python(name), str(script), '--side', name, str(f)], capture_output=True, text=True, env=env)
    if r.returncode: raise RuntimeError(f'{Path(script).name}, {name}: ' + ' | '.join(r.stderr.strip().splitlines()[-3:]))
    return json.loads(r.stdout.splitlines()[-1])

def answer(sides): # {name: function of a job}; in the child: whatever a library prints must not come between
    "Run the side that was asked for and print what it gives. False if none was."
    if '--side' not in sys.argv: return False
    name, f = sys.argv[-2:]
    out = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1)
    import torch; torch.set_num_threads(THREADS)
    print(json.dumps(sides(name, json.loads(Path(f).read_text()))), file=out, flush=True)
    return True

def have(*names):
    "Those of the peers whose environment is there; a line for each that is missing."
    for n in names:
        if not peer_python(n): print(f'{n}: no environment, left out (see peers.sh)', flush=True)
    return [n for n in names if peer_python(n)]

# ---- tables

def show(v): return '' if v is None else v if isinstance(v, str) else f'{v:,}' if isinstance(v, int) else f'{v:,.0f}' if abs(v) >= 1000 else f'{v:.1f}' if abs(v) >= 100 else f'{v:.3g}' if abs(v) >= 10 else f'{v:.4f}'.rstrip('0').rstrip('.')

def table(rows, title=''):
    "Rows (dicts of the same keys) as a Markdown table."
    if title: print(f'\n**{title}**\n')
    if not rows: print('(nothing)', flush=True); return rows
    keys = list(dict.fromkeys(k for r in rows for k in r))
    print('| ' + ' | '.join(keys) + ' |\n|' + ' --- |'*len(keys))
    for r in rows: print('| ' + ' | '.join(show(r.get(k)) for k in keys) + ' |')
    print(flush=True)
    return rows

# ---- from a shell

def tables(rows, doc): # rows(quick): {name: rows of a table}
    "Run a benchmark of several tables and print them; --quick for a short run."
    import argparse, torch
    torch.set_num_threads(THREADS)
    ap = argparse.ArgumentParser(description=doc); ap.add_argument('--quick', action='store_true')
    for k, v in rows(ap.parse_args().quick).items(): table(v, f'{k}, {THREADS} thread(s)')
