"Training beside a model: many sites in one pass, end to end, several processes, a folder that knows how to go on."
import errno, hashlib, json, os, subprocess, sys
from pathlib import Path

import pandas as pd, pytest, torch, torch.nn.functional as F

from saebook import cache, sites, train
from saebook.cache import ActivationCache, LiveActivations
from saebook.core import BadInput, read_json
from saebook.sae import ACTIVATIONS, SAE, Transcoder
from saebook.sites import Site
from saebook.train import TrainConfig, resume, summary, sweep, toy_activations, train_sae

fast = dict(progress=False)
MLP = Site('model.layers.2.mlp', 'input')

@pytest.fixture(scope='module')
def lm(shared):
    model, tok = sites.load_model(shared('models/stories260K'))
    return model, tok, *cache.split(cache.contexts(tok, cache.read_documents(shared('data/tinystories/small.txt'))[:60]), .25)

@pytest.fixture
def live(lm): return LiveActivations(lm[0], lm[2], window=8192)

def equal(a, b): return all((x == y).all() for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
def files(path): return {f.relative_to(path).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in path.rglob('*') if f.is_file()}

# --- many sites in one pass

def test_sites_learn_together_what_each_learns_alone(lm, live):
    "One stream, whoever else listens: SAEs at two layers and a transcoder."
    make = lambda: [SAE(64, 256, k=8, site=sites.site(lm[0], 1)), SAE(64, 128, 'relu', site=sites.site(lm[0], 3)), Transcoder(64, 256, k=8, site=MLP)]
    cfg = TrainConfig(steps=20, batch=512, warmup=5)
    together = train_sae(make(), live, cfg, **fast)
    for s, r in zip(make(), together):
        assert equal(train_sae(s, live, cfg, **fast).sae, r.sae) and r.history.fvu.iloc[-1] < r.history.fvu.iloc[0]

def test_one_forward_pass_serves_all_sites(lm, live):
    def passes(layers):
        sizes = []
        hook = lm[0].register_forward_pre_hook(lambda m, args, kwargs: sizes.append(len(kwargs['input_ids'])), with_kwargs=True)
        try: train_sae([SAE(64, 64, k=4, site=sites.site(lm[0], i)) for i in layers], LiveActivations(lm[0], lm[2], window=8192), TrainConfig(steps=30, batch=512), **fast)
        finally: hook.remove()
        return [n for n in sizes if n > 1] # one context at a time is read to learn the widths
    assert passes([0, 1, 2]) == passes([0])

def test_a_whole_cache_feeds_each_sae_at_its_site(tmp_path, lm):
    at = [sites.site(lm[0], 1), MLP, Site(MLP.path)]
    c = ActivationCache.create(tmp_path, lm[0], lm[2], at, torch.float32, progress=False)
    cfg = TrainConfig(steps=20, batch=512, warmup=5)
    s, t = train_sae([SAE(64, 128, k=8, site=at[0]), Transcoder(64, 128, k=8, site=MLP)], c, cfg, **fast)
    assert equal(train_sae(SAE(64, 128, k=8), c[at[0]], cfg, **fast).sae, s.sae)
    assert equal(train_sae(Transcoder(64, 128, k=8), (c[at[1]], c[at[2]]), cfg, **fast).sae, t.sae)
    with pytest.raises(BadInput, match='an SAE without a site'): train_sae(SAE(64, 128, k=8), c, **fast)
    with pytest.raises(BadInput, match='unknown site of the cache'): train_sae(SAE(64, 128, k=8, site=sites.site(lm[0], 4)), c, **fast)
    with pytest.raises(BadInput, match='width 64 were given .model.layers.1'): train_sae(SAE(32, 128, k=8, site=at[0]), c, **fast)

def test_a_sweep_goes_through_one_stream(lm, live):
    saes = sweep(64, n=[64, 128], k=range(2, 4), seed=[0, 1], site=sites.site(lm[0], 2))
    assert len(saes) == 8 and not equal(saes[0], saes[1])
    table = summary(train_sae(saes, live, TrainConfig(steps=10, batch=512), **fast))
    assert table.groupby(['n', 'k']).seed.apply(list).tolist() == [[0, 1]]*4 and (table.fvu < 1).all()

# --- end to end

def said(lm, sae):
    model, _, _, ctx = lm
    x = dict(input_ids=ctx.input_ids, attention_mask=ctx.attention_mask)
    got, use, module = {}, ctx.use[..., None], isinstance(sae, Transcoder)
    def hear(h): got['h'] = h; return h
    def say(h): return torch.where(use, sae(got.get('h', h)), h)
    edits = {} if sae is None else {MLP: hear, Site(MLP.path): say} if module else {sites.site(model, 2): say}
    with torch.no_grad(), sites.patch(model, edits): return train._said(train._logits(model, x), *x.values()).item()

@pytest.mark.parametrize('loss', ['ce', 'kl'])
@pytest.mark.parametrize('kind', ['topk', 'relu', 'batch_topk', 'transcoder'])
def test_end_to_end_lowers_the_models_loss(lm, live, loss, kind):
    at = sites.site(lm[0], 2)
    make = lambda: Transcoder(64, 256, k=4, site=MLP) if kind == 'transcoder' else SAE(64, 256, kind, k=4, site=at)
    cfg = TrainConfig(steps=40, batch=512, warmup=5, loss=loss, l1=.003, local=.1)
    before, (r, clean) = said(lm, make()), (train_sae(make(), live, cfg, **fast), said(lm, None))
    after = said(lm, r.sae)
    assert clean < after < before - .3*(before - clean), (clean, after, before)
    assert r.history[loss].iloc[-1] < r.history[loss].iloc[0]
    assert all(p.requires_grad and p.grad is None for p in lm[0].parameters()) # the model is as it was

def test_a_perfect_coder_has_no_kl(lm, live):
    "Gradients start from the right place: with the activation itself in place of its reconstruction, KL is 0 and CE is the model's own."
    model, _, ctx, _ = lm
    x = dict(input_ids=ctx.input_ids[:4], attention_mask=ctx.attention_mask[:4])
    clean = train._logits(model, x)
    assert train._said(clean, *x.values(), clean).item() == pytest.approx(0, abs=1e-6)
    p, q = clean.softmax(-1), (clean*.5).softmax(-1)
    want = (p*(p.log() - q.log())).sum(-1)[x['attention_mask'].bool()].mean()
    assert train._said(clean*.5, *x.values(), clean).item() == pytest.approx(want.item(), rel=1e-4)
    assert train._said(clean, *x.values()).item() == pytest.approx(model(**x, labels=x['input_ids'].masked_fill(x['attention_mask'] == 0, -100)).loss.item(), rel=1e-5)

def test_end_to_end_asks_for_a_model(lm, tmp_path):
    acts, _ = toy_activations(500)
    with pytest.raises(BadInput, match='it needs the model'): train_sae(SAE(16, 32, k=2), acts, TrainConfig(loss='kl'), **fast)
    with pytest.raises(BadInput, match='no logits'): train_sae(SAE(64, 32, k=2, site=Site('layers.1')), LiveActivations(lm[0].model, lm[2]), TrainConfig(loss='ce', steps=2), **fast)
    with pytest.raises(BadInput, match='in training mode'): LiveActivations(torch.nn.Linear(2, 2), lm[2])

# --- several processes

together = """
import json, sys, torch
torch.set_num_threads(1)
from saebook import cache, sites
from saebook.sae import SAE
from saebook.train import TrainConfig, device, toy_activations, train_sae
out, shared = sys.argv[1:]
device()
acts, _ = toy_activations(8000)
saes = [SAE(16, 64, a, k=4) for a in ('topk', 'batch_topk', 'jump_relu')]
with torch.no_grad(): saes[0].b_enc[:16] = -3. # dead, so that AuxK is at work
cfg = dict(steps=200, batch=512, log_every=1, dead_after=2000)
rows = [r.history for r in train_sae(saes, acts, TrainConfig(**cfg), progress=False, path=out + '/run')]
model, tok = sites.load_model(shared + '/models/stories260K')
live = cache.LiveActivations(model, cache.contexts(tok, cache.read_documents(shared + '/data/tinystories/small.txt')[:30]), window=4096)
for loss in ('fvu', 'kl'):
    sae = SAE(64, 128, k=8, site=sites.site(model, 1))
    rows.append(train_sae(sae, live, TrainConfig(steps=12, batch=512, log_every=1, warmup=4, loss=loss), progress=False).history)
if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0: json.dump([r.to_dict('list') for r in rows], open(out + '/rows.json', 'w'))
"""

def test_two_processes_train_as_one(tmp_path, shared):
    (tmp_path/'go.py').write_text(together)
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(Path(train.__file__).resolve().parents[1]))
    many = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    got = []
    for name, first in (('one', [sys.executable]), ('two', many)):
        (tmp_path/name).mkdir()
        p = subprocess.run([*first, str(tmp_path/'go.py'), str(tmp_path/name), str(shared('.'))], env=env, capture_output=True, text=True, timeout=300)
        assert p.returncode == 0, p.stderr[-3000:]
        got.append([pd.DataFrame(r) for r in read_json(tmp_path/name/'rows.json')])
    for one, two in zip(*got, strict=True):
        assert (one - two).abs().max().max() < 1e-4
        assert one.fvu.iloc[-1] < one.fvu.iloc[0] or one is got[0][-1] # the last minds what the model says, not the FVU
    assert got[0][-1].loss.iloc[-1] < got[0][-1].loss.iloc[0]
    assert got[0][0].dead.max() > .1 # AuxK was at work
    assert set(files(tmp_path/'one'/'run')) == set(files(tmp_path/'two'/'run'))

# --- a folder that knows how to go on

def stopped(at):
    def on_log(row):
        if row['step'] == at: raise KeyboardInterrupt
    return on_log

@pytest.mark.parametrize('source', ['cache', 'views', 'tensor', 'live'])
def test_a_training_goes_on_from_its_folder(tmp_path, lm, live, source):
    at = [MLP, Site(MLP.path)]
    c = ActivationCache.create(tmp_path/'cache', lm[0], lm[2], at, progress=False)
    given = dict(cache=c, views=(c[at[0]], c[at[1]]), tensor=tuple(c[a][:] for a in at), live=live)[source]
    call = dict(cfg=TrainConfig(steps=30, batch=256, warmup=5, log_every=3), save_every=7, **fast)
    make = lambda: [Transcoder(64, 128, k=8, site=MLP, seed=i, skip=i > 0) for i in range(2)]
    whole = train_sae(make(), given, path=tmp_path/'whole', **call)
    with pytest.raises(KeyboardInterrupt): train_sae(make(), given, path=tmp_path/'part', on_log=stopped(15), **call)
    if source in ('tensor', 'live'):
        with pytest.raises(BadInput, match='are in no cache: give them'): resume(tmp_path/'part')
    again = resume(tmp_path/'part', given if source in ('tensor', 'live') else None, **fast)
    assert files(tmp_path/'part') == files(tmp_path/'whole') and 'sae-1/sae.safetensors' in files(tmp_path/'whole')
    assert all(equal(a.sae, b.sae) and a.history.equals(b.history) for a, b in zip(whole, again))
    assert equal(SAE.from_pretrained(tmp_path/'part'/'sae-1'), whole[1].sae)
    lines = [json.loads(l) for l in (tmp_path/'part'/'history.jsonl').read_text().splitlines()]
    assert lines == sorted((dict(r, sae=i) for i, w in enumerate(whole) for r in w.history.to_dict('records')), key=lambda r: r['step'])
    assert 'start' in {p.name for p in (tmp_path/'part').iterdir()} and str(tmp_path) not in (tmp_path/'part'/'run.json').read_text() # no path of a machine

def test_what_differs_is_named(tmp_path):
    acts, _ = toy_activations(1000)
    go = lambda sae=None, a=acts, **kw: train_sae(sae or SAE(16, 32, k=2), a, TrainConfig(**(dict(steps=5, batch=64) | kw)), path=tmp_path, **fast)
    go()
    with pytest.raises(BadInput, match=r'another training \(lr=0.002 and now 0.01\)'): go(lr=.01)
    with pytest.raises(BadInput, match=r'another training \(activations\)'): go(a=acts*2)
    with pytest.raises(BadInput, match=r'another training \(saes\)'): go(SAE(16, 32, k=3))
    for text, match in (('{', 'damaged'), ('[]', 'damaged'), ('{"about": 3}', 'damaged')):
        (tmp_path/'run.json').write_text(text)
        with pytest.raises(BadInput, match=match): resume(tmp_path, acts)
    with pytest.raises(BadInput, match='no run.json'): resume(tmp_path/'elsewhere')

# --- what goes wrong on the way

def test_a_checkpoint_with_nan_is_never_written(tmp_path, monkeypatch):
    acts, _ = toy_activations(1000)
    old = train.Trainer._update
    def broken(self, rate):
        old(self, rate)
        if self.steps_seen == 12: self.sae.W_dec.data[3, 2] = float('nan')
        self.steps_seen += 1
    monkeypatch.setattr(train.Trainer, 'steps_seen', 0, raising=False); monkeypatch.setattr(train.Trainer, '_update', broken)
    go = lambda: train_sae(SAE(16, 32, k=2), acts, TrainConfig(steps=20, batch=64, log_every=100), path=tmp_path, save_every=5, **fast)
    with pytest.raises(FloatingPointError, match='holds NaN or infinity after step 14.*kept'): go()
    monkeypatch.undo()
    assert torch.isfinite(go().sae.W_dec).all() # from the checkpoint of step 10

def test_nan_in_a_model_is_told_and_the_checkpoint_stays(tmp_path, lm):
    model, _, ctx, _ = lm
    live = LiveActivations(model, ctx, window=2048)
    go = lambda: train_sae(SAE(64, 64, k=4, site=sites.site(model, 1)), live, TrainConfig(steps=30, batch=512), path=tmp_path, save_every=1, **fast)
    calls, old = [0], cache.activations
    def bad(*a, **k):
        x = old(*a, **k); calls[0] += 1
        if calls[0] == 12: raise BadInput('1 of 2048 activations at model.layers.1 hold NaN or infinity: load the model in float32')
        return x
    cache.activations = bad
    try:
        with pytest.raises(BadInput, match='hold NaN'): go()
    finally: cache.activations = old
    assert (tmp_path/'checkpoint.safetensors').is_file()
    done = go()
    want = train_sae(SAE(64, 64, k=4, site=sites.site(model, 1)), live, TrainConfig(steps=30, batch=512), **fast)
    assert equal(done.sae, want.sae)

def test_a_full_disk_is_told_and_the_checkpoint_stays(tmp_path, monkeypatch):
    import safetensors, safetensors.torch
    acts, _ = toy_activations(1000)
    go = lambda: train_sae(SAE(16, 32, k=2), acts, TrainConfig(steps=20, batch=64), path=tmp_path, save_every=5, **fast)
    old, n = safetensors.torch.save_file, [0]
    def full(tensors, path, meta=None):
        n[0] += 'checkpoint' in str(path)
        if n[0] == 2 and 'checkpoint' in str(path): raise safetensors.SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')
        return old(tensors, path, meta)
    monkeypatch.setattr(safetensors.torch, 'save_file', full)
    with pytest.raises(BadInput, match='the disk is full while .* make room'): go()
    kept = (tmp_path/'checkpoint.safetensors').stat().st_size
    monkeypatch.undo()
    assert kept and len(go().history)

# --- what a training may be told

def test_outliers_are_left_out():
    acts, D = toy_activations(4000)
    far = torch.arange(4000) % 50 == 0
    x = torch.where(far[:, None], 300*acts.flip(0), acts)
    def fvu(x, **kw):
        s = train_sae(SAE(16, 64, k=2), x, TrainConfig(steps=300, batch=256, lr=5e-3, **kw), **fast).sae
        return ((acts - s(acts))[~far].square().sum()/(acts - acts.mean(0))[~far].square().sum()).item()
    left_out, gone, kept = fvu(x, outlier=10.), fvu(acts[~far]), fvu(x)
    assert left_out < 1.1*gone and kept > 2*gone

def test_a_start_from_data_points_at_tokens():
    acts, _ = toy_activations(4000)
    s = SAE(16, 64, k=2)
    t = train._begin(s, TrainConfig(data_init=True), acts, acts, train._spreads(acts, acts, TrainConfig()))
    near = F.normalize(acts - acts.mean(0), dim=1) @ s.W_dec.T
    assert near.amax(0).min() > .999 and torch.allclose(F.normalize(s.W_enc.T, dim=1), s.W_dec, atol=1e-5)
    h = train_sae(SAE(16, 64, k=2), acts, TrainConfig(steps=100, data_init=True), **fast).history
    assert h.fvu.iloc[-1] < h.fvu.iloc[0]

@pytest.mark.parametrize('act', ACTIVATIONS)
def test_bfloat16_products_learn_as_well(act):
    acts, _ = toy_activations(4000)
    def end(bf16):
        r = train_sae(SAE(16, 64, act, k=2), acts, TrainConfig(steps=150, batch=256, bf16=bf16, dead_after=1000), **fast)
        assert all(p.dtype == torch.float32 for p in r.sae.parameters())
        return r.history.fvu.iloc[-1]
    assert end(True) < 1.1*end(False) + .01

def test_tensorboard_reads_what_was_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    acts, _ = toy_activations(1000)
    r = train_sae(SAE(16, 32, k=2), acts, TrainConfig(steps=40, batch=64, log_every=10), on_log=train.tensorboard(tmp_path), **fast)
    e = EventAccumulator(str(tmp_path)); e.Reload()
    assert [(s.step, pytest.approx(s.value)) for s in e.Scalars('fvu')] == list(zip(r.history.step, r.history.fvu))

@pytest.mark.parametrize('bad', [dict(loss='mse'), dict(bf16=1), dict(exact='yes'), dict(outlier=.5), dict(local=-1), dict(accumulate=0)])
def test_a_wrong_setting_is_told(bad):
    with pytest.raises(BadInput): TrainConfig(**bad)

def test_a_batch_too_small_for_its_parts_is_told():
    acts, _ = toy_activations(100)
    with pytest.raises(BadInput, match='a batch of 3 was given to 1 processes in 5 parts'): train_sae(SAE(16, 32, k=2), acts, TrainConfig(batch=3, accumulate=5, steps=2), **fast)

def test_a_context_of_outliers_breaks_nothing(lm):
    "End to end a part of the batch may be left with no ordinary token."
    model, _, ctx, _ = lm
    live = LiveActivations(model, ctx[:24])
    at = sites.site(model, 1)
    cfg = TrainConfig(outlier=1.01, accumulate=4, batch=4*128, steps=6, loss='ce', dead_after=0)
    for act in ('topk', 'batch_topk', 'relu'): assert train_sae(SAE(64, 64, act, k=4, site=at), live, cfg, **fast).history.loss.notna().all()

def test_what_cannot_be_trained_is_told(tmp_path, lm):
    acts, _ = toy_activations(100)
    at = [MLP, Site(MLP.path)]
    c = ActivationCache.create(tmp_path/'c', lm[0], lm[2][:2], at, progress=False)
    t = lambda **kw: Transcoder(64, 32, k=2, **kw)
    for sae, given, match in ((t(), [], '0 tensors were given'), (t(), [acts], '1 tensors were given'), (t(), [c[at[0]]]*3, '3 tensors were given'), (t(), c, 'without a site'),
                              (SAE(64, 32, k=2, site=MLP), c[at[1]], 'an SAE of model.layers.2.mlp:input was given'), (SAE(64, 32, k=2, site=at[1].at('last')), c, 'every token'), ('sae', acts, 'a str was given')):
        with pytest.raises(BadInput, match=match): train_sae(sae, given, TrainConfig(steps=2), **fast)
    with pytest.raises(BadInput, match='save_every=0'): train_sae(SAE(16, 32, k=2), acts, path=tmp_path/'run', save_every=0, **fast)
    train_sae(SAE(16, 32, k=2), acts, TrainConfig(steps=2, seed=2**62), **fast)

apart = """
import os, sys, torch
torch.set_num_threads(1)
from saebook.sae import SAE
from saebook.train import TrainConfig, device, toy_activations, train_sae
from saebook.core import BadInput, processes
device()
acts, _ = toy_activations(2000)
rank, world = processes()
say = lambda *a: os.write(1, (' '.join(map(str, a)) + '\\n').encode()) # a whole line at once: both write here
ways = dict(rows=lambda: train_sae(SAE(16, 32, k=2), acts[rank::world], TrainConfig(steps=4), progress=False),
            folder=lambda: train_sae(SAE(16, 32, k=2), acts, TrainConfig(steps=4), progress=False, path=f'{sys.argv[1]}/{rank}'))
train_sae(SAE(16, 32, k=2), acts, TrainConfig(steps=4), progress=False, path=f'{sys.argv[1]}/0')
for name, way in ways.items():
    try: way(); say(rank, name, 'went on')
    except BadInput as e: say(rank, name, 'do not agree' in str(e))
sae = SAE(16, 32, 'batch_topk', k=2) # looked at by one process, while it learns
train_sae(sae, acts, TrainConfig(steps=4, log_every=1), progress=False, on_log=lambda row: sae(acts[:10]))
"""

def test_processes_that_do_not_agree_are_told(tmp_path):
    (tmp_path/'go.py').write_text(apart)
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(Path(train.__file__).resolve().parents[1]))
    p = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(tmp_path/'go.py'), str(tmp_path)], env=env, capture_output=True, text=True, timeout=120)
    assert p.returncode == 0 and sorted(p.stdout.split('\n')) == ['', '0 folder True', '0 rows True', '1 folder True', '1 rows True'], p.stdout + p.stderr[-2000:]
