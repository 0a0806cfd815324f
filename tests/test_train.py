"Training: what a killed run leaves, every activation function on real activations, the planted dictionary, transcoders, many SAEs in one stream."
import hashlib, os, random, signal, subprocess, sys, time

import pytest, torch, torch.nn.functional as F

from saebook import cache, codes, sites
from saebook.codes import SparseCode
from saebook.core import BadInput
from saebook.sae import ACTIVATIONS, SAE, Transcoder
from saebook.sites import Site
from saebook.train import TrainConfig, loss_of, toy_activations, train_sae

fast = dict(progress=False)

# --- killed and resumed

killable = """
import sys, torch
from saebook.sae import SAE
from saebook.train import TrainConfig, toy_activations, train_sae
torch.set_num_threads(1)
acts, _ = toy_activations(3000)
train_sae(SAE(16, 64, sys.argv[2], k=4), acts, TrainConfig(steps=400, batch=256, dead_after=2000), progress=False, path=sys.argv[1], save_every=7)
"""

def hashes(path): return {f.relative_to(path).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in path.rglob('*') if f.is_file() and not f.name.startswith('.')}
def start(path, act): return subprocess.Popen([sys.executable, '-c', killable, str(path), act], stderr=subprocess.PIPE)

@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL is POSIX')
@pytest.mark.slow
@pytest.mark.parametrize('act', ['topk', 'batch_topk', 'jump_relu'])
def test_a_killed_training_ends_with_the_same_bytes(tmp_path, act):
    whole = start(tmp_path/'whole', act)
    assert whole.wait(300) == 0, whole.stderr.read()
    rng, killed = random.Random(0), 0
    while killed < 7: # 20 over the three
        p = start(tmp_path/'killed', act)
        f = tmp_path/'killed'/'checkpoint.safetensors'
        seen = f.stat().st_mtime_ns if f.exists() else 0
        while p.poll() is None and not (f.exists() and f.stat().st_mtime_ns > seen): time.sleep(.01) # at work
        time.sleep(rng.random()*.5)
        p.send_signal(signal.SIGKILL); killed += p.wait(60) == -signal.SIGKILL
        if p.returncode == 0: break
    assert killed >= 1
    last = start(tmp_path/'killed', act)
    assert last.wait(300) == 0, last.stderr.read()
    assert hashes(tmp_path/'killed') == hashes(tmp_path/'whole')

@pytest.mark.parametrize('d, n, save_every', [(16, 64, 8), (256, 4096, 7)]) # the wide one holds its encoder in 8 bits over two steps, and stops between them
def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path, d, n, save_every):
    acts, _ = toy_activations(3000, d)
    def run(path, stop=None):
        def on_log(row):
            if row['step'] == stop: raise KeyboardInterrupt
        return train_sae(SAE(d, n, k=4), acts, TrainConfig(steps=100, batch=256, log_every=5), path=tmp_path/path, save_every=save_every, on_log=on_log, **fast)
    whole = run('whole')
    with pytest.raises(KeyboardInterrupt): run('stopped', 45)
    again = run('stopped')
    assert hashes(tmp_path/'whole') == hashes(tmp_path/'stopped')
    for a, b in zip(whole.sae.state_dict().values(), again.sae.state_dict().values()): assert (a == b).all()
    assert whole.history.equals(again.history)

def test_another_training_is_not_resumed(tmp_path):
    acts, _ = toy_activations(2000)
    train_sae(SAE(16, 32, k=2), acts, TrainConfig(steps=10), path=tmp_path, **fast)
    for sae, a, cfg in ((SAE(16, 32, k=3), acts, {}), (SAE(16, 32, k=2), acts + 1, {}), (SAE(16, 32, k=2), acts, dict(lr=1e-4)), (SAE(16, 32, k=2, seed=1), acts, {})):
        with pytest.raises(BadInput, match='holds another training'): train_sae(sae, a, TrainConfig(**(dict(steps=10) | cfg)), path=tmp_path, **fast)
    (tmp_path/'checkpoint.safetensors').write_bytes(b'\xff'*50)
    with pytest.raises(BadInput, match='cannot be read'): train_sae(SAE(16, 32, k=2), acts, TrainConfig(steps=10), path=tmp_path, **fast)

# --- the planted dictionary

def planted(n_true=128, d=64, l0=4, tokens=60_000, seed=3):
    g = torch.Generator().manual_seed(seed)
    D = F.normalize(torch.randn(n_true, d, generator=g), dim=1)
    which = torch.rand(tokens, n_true, generator=g).topk(l0, dim=1).indices
    return codes.decode(SparseCode(1 + torch.rand(tokens, l0, generator=g), which, n_true), D), D

def mean_max_cosine(D, sae): return (D @ F.normalize(sae.W_dec.detach(), dim=1).T).amax(1).mean().item()

@pytest.mark.slow
@pytest.mark.parametrize('n', [128, 256])
def test_the_planted_dictionary_is_found(n):
    acts, D = planted()
    r = train_sae(SAE(64, n, k=4), acts, TrainConfig(steps=2000, dead_after=10_000), **fast)
    assert mean_max_cosine(D, r.sae) >= .97

@pytest.mark.slow
def test_auxk_revives_features_that_were_born_weak():
    acts, D = planted()
    def run(aux):
        sae = SAE(64, 128, k=4) # as many features as there are directions: none can be spared
        with torch.no_grad(): sae.W_enc[:, :64] *= .02
        r = train_sae(sae, acts, TrainConfig(steps=1000, aux=aux, dead_after=10_000), **fast)
        code = r.sae.encode(acts)
        fired = torch.zeros(128, dtype=torch.bool).index_fill_(0, code.indices[code.values > 0], True)
        return mean_max_cosine(D, r.sae), 1 - fired.float().mean().item()
    cosine, dead = run(1/8)
    assert cosine >= .98 and dead == 0
    assert run(0)[1] >= .4

# --- every kind on real activations

@pytest.fixture(scope='module')
def real(shared):
    model, tok = sites.load_model(shared('models/stories260K'))
    ctx = cache.contexts(tok, cache.read_documents(shared('data/tinystories/small.txt'))[:120])
    at = [Site('model.layers.2.mlp', side=s) for s in ('input', 'output')] + [sites.site(model, 2)]
    return [cache.activations(model, ctx, at, progress=False)[s] for s in at]

@pytest.mark.parametrize('act', ACTIVATIONS)
def test_every_activation_function_learns_real_activations(real, act):
    sae, x = SAE(64, 512, act, k=16), real[2]
    h = train_sae(sae, x, TrainConfig(steps=300), **fast).history
    assert h.fvu.iloc[-1] < h.fvu.iloc[0] and h.l0.iloc[-1] <= h.l0.iloc[0] and h.fvu.iloc[-1] < .3
    assert ((x - sae(x)).square().sum()/(x - x.mean(0)).square().sum()).item() < .3 # as saved, in the model's units

def test_matryoshka_prefixes_each_reconstruct(real):
    x = real[2]
    def fvu(sae, m):
        code = sae.encode(x)
        y = sae.decode(SparseCode(code.values*(code.indices < m), code.indices, code.n))
        return ((x - y).square().sum()/(x - x.mean(0)).square().sum()).item()
    nested, plain = (train_sae(SAE(64, 512, k=16, prefixes=p), x, TrainConfig(steps=300), **fast).sae for p in ((32, 128), ()))
    assert [fvu(nested, m) for m in (32, 128, 512)] == sorted((fvu(nested, m) for m in (32, 128, 512)), reverse=True)
    for m in (32, 128): assert fvu(nested, m) < .6 and fvu(nested, m) < .7*fvu(plain, m)

def test_a_transcoder_predicts_a_modules_output(real):
    x, y = real[:2]
    t = Transcoder(64, 512, k=16, site=Site('model.layers.2.mlp', side='input'))
    train_sae(t, (x, y), TrainConfig(steps=600), **fast)
    fvu = ((y - t(x)).square().sum()/(y - y.mean(0)).square().sum()).item()
    line = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
    linear = ((y - torch.cat([x, torch.ones(len(x), 1)], 1) @ line).square().sum()/(y - y.mean(0)).square().sum()).item()
    assert fvu < linear # the least that a nonlinear replacement owes
    with pytest.raises(BadInput, match='needs the inputs and the outputs'): train_sae(t, x, **fast)

def test_a_skip_recovers_a_linear_map():
    g = torch.Generator().manual_seed(0)
    x, A = torch.randn(20_000, 12, generator=g), torch.randn(12, 20, generator=g)
    t = Transcoder(12, 32, k=1, d_out=20, skip=True)
    train_sae(t, (x, x @ A), TrainConfig(steps=1500, lr=5e-3), **fast)
    assert ((x @ A - t(x)).square().sum()/(x @ A).square().sum()).item() < .01

# --- many in one stream

def test_several_saes_in_one_stream_are_what_each_would_be_alone(real):
    x, cfg = real[2], TrainConfig(steps=40)
    specs = [dict(k=8), dict(k=16, seed=1), dict(n=256), dict(activation='relu')]
    make = lambda kw: SAE(64, kw.get('n', 512), **{k: v for k, v in kw.items() if k != 'n'})
    together = train_sae([make(kw) for kw in specs], x, cfg, **fast)
    for kw, r in zip(specs, together):
        alone = train_sae(make(kw), x, cfg, **fast)
        assert (alone.sae.W_dec == r.sae.W_dec).all() and alone.history.equals(r.history)

def test_parts_of_a_batch_add_up(real):
    x, cfg = real[2][:512].double(), TrainConfig(aux=0)
    sae = SAE(64, 512, k=16).double()
    loss_of(sae, x, x, cfg)[0].backward(); want = sae.W_enc.grad.clone(); sae.zero_grad()
    for part in x.chunk(4): (loss_of(sae, part, part, cfg)[0]/4).backward()
    torch.testing.assert_close(sae.W_enc.grad, want)

@pytest.mark.parametrize('cfg', [dict(optimizer='signum', lr=2e-3), dict(accumulate=3), dict(multi=.125)])
def test_every_way_to_train_learns(real, cfg):
    h = train_sae(SAE(64, 512, k=16), real[2], TrainConfig(steps=300, **cfg), **fast).history
    assert h.fvu.iloc[-1] < .2

# --- low precision

@pytest.mark.parametrize('spread', [1., 30.])
def test_screening_loses_nothing(spread):
    g = torch.Generator().manual_seed(0)
    W, b = F.normalize(torch.randn(8192, 256, generator=g), dim=1), .1*torch.randn(8192, generator=g)
    x = F.embedding_bag(torch.randint(0, 8192, (2048, 20), generator=g), W, mode='sum') + .05*torch.randn(2048, 256, generator=g)
    x[:, 3] *= spread
    dense = lambda v, i: SparseCode(v, i, 8192).to_dense() != 0
    a, e = (dense(*codes.strongest(x, W, b, 32, exact)) for exact in (False, True))
    assert (a & e).sum() >= .9999*e.sum()

def test_candidates_from_weights_a_step_old_lose_nothing(monkeypatch):
    acts, _ = toy_activations(4000, 256, 512, 8)
    agree, strongest = [], codes.strongest
    def both(x, W, b, k, exact=False, rough=None):
        old = rough and rough(x).old
        v, i = strongest(x, W, b, k, exact, rough)
        if old and codes._screens(x, W, k): agree.append((i.sort(1).values == strongest(x, W, b, k, True)[1].sort(1).values).float().mean().item())
        return v, i
    monkeypatch.setattr(codes, 'strongest', both)
    cfg = dict(steps=60, batch=256, log_every=1)
    rough, exact = (train_sae(SAE(256, 4096, k=16), acts, TrainConfig(**cfg, exact=e), **fast).history for e in (False, True))
    assert (rough.fvu - exact.fvu).abs().max() < 1e-3
    if codes._screens(acts[:256], torch.zeros(4096, 256), 16): assert len(agree) >= 25 and min(agree) >= .9999

# --- beside other libraries

def test_training_with_nnsight_imported():
    "nnsight changes Tensor.backward for all."
    import nnsight
    acts, _ = toy_activations(500)
    h = train_sae(SAE(16, 32, k=2), acts, TrainConfig(steps=30, batch=64, log_every=1), **fast).history
    assert h.fvu.iloc[-1] < h.fvu.iloc[0]

# --- from disk

def test_training_from_a_cache_and_going_on_after_an_interrupt(tmp_path):
    acts, _ = toy_activations(5000)
    view = cache.ActivationCache.write(tmp_path/'cache', iter(acts.split(500)), dtype=torch.float32, progress=False)[Site('')]
    def run(path, stop=None):
        def on_log(row):
            if row['step'] == stop: raise KeyboardInterrupt
        return train_sae(SAE(16, 64, k=4), view, TrainConfig(steps=60, batch=256, warmup=5, log_every=5), path=tmp_path/path, save_every=8, on_log=on_log, **fast)
    whole = run('whole')
    assert whole.history.fvu.iloc[-1] < .5*whole.history.fvu.iloc[0]
    with pytest.raises(KeyboardInterrupt): run('stopped', 30)
    run('stopped')
    assert hashes(tmp_path/'whole') == hashes(tmp_path/'stopped')
    with pytest.raises(BadInput, match='width 16 were given'): train_sae(SAE(8, 64, k=4), view, **fast)

# --- gradients

@pytest.mark.parametrize('act', ACTIVATIONS)
@pytest.mark.parametrize('aux', [0., .5])
def test_gradients_are_those_of_plain_dense_code(act, aux):
    "Each activation function's whole loss, AuxK and a transcoder's skip included, in double precision."
    torch.manual_seed(1)
    t, x, y = Transcoder(8, 24, act, k=3, d_out=6, skip=True).double(), torch.randn(40, 8).double(), torch.randn(40, 6).double()
    with torch.no_grad():
        for p in t.parameters(): p.add_(.3*torch.randn_like(p))
        if act == 'jump_relu': t.threshold.uniform_(.3, 1)
    cfg, dead = TrainConfig(aux=aux, width=.2, batch=40), torch.arange(24) % 3 == 0
    def by_hand():
        pre = x @ t.W_enc + (0 if act == 'gated' else t.b_enc)
        f, cost = F.relu(pre), 0
        if act == 'topk': f = f*(pre >= pre.topk(3).values[:, -1:])
        elif act == 'batch_topk': f = f*(pre >= pre.flatten().topk(3*40).values[-1])
        elif act == 'group_max': f = f*F.one_hot(pre.view(40, 3, 8).argmax(2), 8).view(40, 24)
        elif act == 'relu': cost = cfg.l1*f.sum(1).mean()
        elif act == 'gated':
            gate = pre + t.b_gate
            f = F.relu(pre*t.r_mag.exp() + t.b_enc)*(gate > 0)
            cost = cfg.l1*F.relu(gate).sum(1).mean() + (y - F.relu(gate) @ t.W_dec.detach() - t.b_dec.detach()).square().mean()
        else: # the threshold's gradient is that of a step blurred over the bandwidth: a term whose value is 0 and whose slope is the estimate
            on, near = (f > t.threshold).double(), ((f - t.threshold).abs() < .1).double()/.2
            shift = t.threshold - t.threshold.detach()
            f, cost = f*on - t.threshold.detach()*near*shift, cfg.l0*(on - near*shift).sum(1).mean()
        err = y - (f @ t.W_dec + t.b_dec + x @ t.W_skip)
        off = x @ t.W_enc + (t.b_gate if act == 'gated' else t.b_enc)
        off = off.masked_fill(~dead, -torch.inf)
        g = F.relu(off.where(off >= off.topk(3).values[:, -1:], 0)) @ t.W_dec
        e = err.detach()
        return err.square().mean() + cost + aux*(g - e).square().sum()/(e - e.mean(0)).square().sum()
    grads = []
    for loss in (loss_of(t, x, y, cfg, dead)[0], by_hand()):
        t.zero_grad(); loss.backward(); grads.append([loss.detach(), *(p.grad.clone() for p in t.parameters())])
    assert all(g.abs().sum() > 0 for g in grads[0])
    for (name, _), a, b in zip([('loss', 0), *t.named_parameters()], *grads): torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8, msg=name)
