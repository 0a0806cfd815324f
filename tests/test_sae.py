"What holds for every kind of SAE: shapes, precision, saving, scaling, and gradients against the formula."
import json

import pytest, torch

from saebook import codes
from saebook.codes import SparseCode
from saebook.core import BadInput
from saebook.sae import ACTIVATIONS, SAE
from saebook.sites import Site
from saebook.train import TrainConfig, aux_loss, toy_activations, train_sae

def make(act, d=8, n=24, seed=0):
    sae, g = SAE(d, n, act, k=3, seed=seed, site=Site('a.b', positions=(0, -1)), info=dict(model='m')), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (sae.b_enc, sae.b_dec): p.normal_(generator=g)
    return sae

kinds = pytest.mark.parametrize('act', ACTIVATIONS)

@kinds
@pytest.mark.parametrize('shape', [(8,), (5, 8), (2, 3, 8), (2, 0, 8)])
def test_any_leading_shape_goes_in_and_comes_out(act, shape):
    sae, x = make(act), torch.randn(*shape)
    code = sae.encode(x)
    assert sae(x).shape == shape and code.shape == (*shape[:-1], 24) and sae.decode(code.to_dense()).shape == shape

def test_what_changes_the_code_stands_in_the_name_and_what_is_usual_does_not():
    from saebook.sae import JointSAE, Transcoder
    assert [repr(s) for s in (SAE(4, 8, k=2), SAE(4, 8, 'relu', center_input=True, normalize='layer_norm', apply_b_dec=False), Transcoder(4, 8, k=2), JointSAE([2, 2], 8, k=2))] == [
        "SAE(d_in=4, n=8, activation='topk', k=2)", "SAE(d_in=4, n=8, activation='relu', center_input=True, normalize='layer_norm', apply_b_dec=False)", "Transcoder(d_in=4, n=8, activation='topk', k=2)",
        "JointSAE(widths=[2, 2], n=8, kind='crosscoder', activation='batch_topk', k=2)"]

def formula(sae, x): # each activation function as its paper has it, dense
    z = (x - sae.b_dec) @ sae.W_enc
    pre = z + sae.b_enc
    return dict(topk=lambda: torch.where(pre >= pre.topk(3).values[:, -1:], pre.relu(), 0),
                batch_topk=lambda: torch.where(pre >= pre.flatten().topk(3*len(x)).values[-1], pre.relu(), 0),
                group_max=lambda: torch.where(pre.view(len(x), 3, 8) == pre.view(len(x), 3, 8).amax(2, keepdim=True), pre.view(len(x), 3, 8).relu(), 0).flatten(1),
                relu=lambda: pre.relu(), jump_relu=lambda: pre*(pre > sae.threshold),
                gated=lambda: (z + sae.b_gate > 0)*(sae.r_mag.exp()*z + sae.b_enc).relu())[sae.activation]()

@kinds
def test_the_formula(act):
    sae, x = make(act), torch.randn(7, 8)
    torch.testing.assert_close(sae.encode(x).to_dense(), formula(sae, x))
    torch.testing.assert_close(sae(x), formula(sae, x) @ sae.W_dec + sae.b_dec)

@kinds
def test_the_gradients_are_those_of_the_formula(act):
    sae, x, grads = make(act).double(), torch.randn(7, 8, dtype=torch.float64, requires_grad=True), []
    for out in (sae(x), formula(sae, x) @ sae.W_dec + sae.b_dec):
        sae.zero_grad(); x.grad = None
        (out - 1).square().sum().backward()
        grads.append([x.grad] + [p.grad for n, p in sae.named_parameters() if n != 'threshold']) # a jump has no gradient but the one that is made up for it
    for a, b in zip(*grads): torch.testing.assert_close(a, b)

@kinds
def test_nan_is_not_hidden(act):
    sae, x = make(act), torch.randn(9, 8)
    x[4, 2] = float('nan')
    out = sae(x)
    assert out[4].isnan().all() and out[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()

def test_a_batch_threshold_takes_over_after_training():
    sae, x = make('batch_topk'), torch.randn(50, 8)
    sae.threshold.fill_(.5)
    code = sae.eval().encode(x)
    torch.testing.assert_close(code.to_dense(), torch.where(sae.pre(x) > .5, sae.pre(x), 0))
    torch.testing.assert_close(sae.encode(x[:1]).to_dense(), code[:1].to_dense()) # a row's code no longer depends on its company

@kinds
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_activations_of_another_precision_keep_theirs(act, dtype):
    sae, x = make(act), torch.randn(4, 8)
    out = sae(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), sae(x.to(dtype).float()), atol=.1, rtol=.02)

@kinds
def test_saving_keeps_every_bit_and_every_fact(act, tmp_path):
    sae = make(act)
    back = SAE.from_pretrained(sae.save_pretrained(tmp_path))
    assert (back.site, back.info, back.k, back.activation) == (sae.site, sae.info, sae.k, act)
    for a, b in zip(sae.state_dict().values(), back.state_dict().values()): assert (a == b).all()
    half = SAE.from_pretrained(sae.to(torch.bfloat16).save_pretrained(tmp_path/'half'))
    assert half.W_dec.dtype == torch.bfloat16

@pytest.mark.parametrize('edit, contains', [
    (lambda c: '{', 'not JSON'), (lambda c: json.dumps({**c, 'format': 'other'}), 'saebook-sae'), (lambda c: json.dumps({k: v for k, v in c.items() if k != 'k'}), 'lacks'),
    (lambda c: '[]', 'saebook-sae'), (lambda c: json.dumps({**c, 'kind': 'OtherSAE'}), "holds a 'OtherSAE'"), (lambda c: json.dumps({**c, 'kind': 'JointSAE'}), 'does not say whose'), (lambda c: json.dumps({**c, 'extra': 1}), 'unknown key'),
    (lambda c: json.dumps({**c, 'k': '2'}), 'wrong type'), (lambda c: json.dumps({**c, 'site': 'x'}), 'wrong type'), (lambda c: json.dumps({**c, 'n': 10**12}), 'do not belong together'), (lambda c: json.dumps({**c, 'activation': 'exec'}), 'unknown activation')])
def test_a_wrong_configuration_is_told_in_one_sentence(tmp_path, edit, contains):
    make('topk').save_pretrained(tmp_path)
    f = tmp_path/'sae.json'
    f.write_text(edit(json.loads(f.read_text())))
    with pytest.raises(BadInput, match=contains) as e: SAE.from_pretrained(tmp_path)
    assert '\n' not in str(e.value)

def test_a_corrupt_tensor_file_is_told_in_one_sentence(tmp_path):
    make('topk').save_pretrained(tmp_path)
    (tmp_path/'sae.safetensors').write_bytes(b'\xff'*100)
    with pytest.raises(BadInput, match='cannot be read'): SAE.from_pretrained(tmp_path)

def test_decoding_and_its_gradients_agree_with_the_dense_product():
    torch.manual_seed(0)
    pre, W = torch.randn(5, 24, dtype=torch.float64, requires_grad=True), torch.randn(24, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, w: codes.decode(codes.topk(p, 3), w), (pre, W))

def test_an_empty_slot_never_hides_a_value():
    code = SparseCode(torch.tensor([[2., 0., 0.]]), torch.tensor([[1, 1, 0]]), 3)
    assert code.to_dense().tolist() == [[0, 2, 0]] and code.column(1).tolist() == [2]

def test_dead_features_learn_nothing_from_a_living_ones_residual_but_through_their_own_rows():
    sae, x = make('topk'), torch.randn(64, 8)
    err = x - sae.decode(sae.encode(x))
    dead = torch.zeros(24, dtype=torch.bool); dead[20:] = True
    aux_loss(sae, x, err, dead).backward()
    assert sae.W_dec.grad[:20].abs().sum() == 0 and sae.W_dec.grad[20:].abs().sum() > 0 and sae.W_enc.grad[:, :20].abs().sum() == 0

@pytest.mark.parametrize('cfg', [dict(steps=1), dict(steps=3, warmup=100), dict(steps=3, batch=10**6), dict(steps=3, decay=0), dict(steps=3, aux=0), dict(steps=3, dead_after=0)])
def test_training_takes_configurations_from_the_edges(cfg):
    acts, _ = toy_activations(200)
    r = train_sae(SAE(16, 32, k=2), acts, TrainConfig(**cfg), progress=False)
    assert r.history.loss.notna().all() and len(r.history) >= 1

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_training_takes_activations_of_any_precision(dtype):
    acts, _ = toy_activations(2000)
    r = train_sae(SAE(16, 32, k=2), acts.to(dtype), TrainConfig(steps=100), progress=False)
    assert r.sae.W_dec.dtype == torch.float32 and r.history.fvu.iloc[-1] < .2
    torch.testing.assert_close(r.sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-4, rtol=0)

@pytest.mark.parametrize('cfg', [dict(steps=2.5), dict(batch=0), dict(seed=-1), dict(lr=float('nan')), dict(decay=2.), dict(steps=True)])
def test_a_wrong_training_configuration_is_told_in_one_sentence(cfg):
    with pytest.raises(BadInput): TrainConfig(**cfg)

def test_training_refuses_what_it_would_spoil():
    acts, _ = toy_activations(500)
    long = SAE(16, 32, k=2)
    with torch.no_grad(): long.W_dec.mul_(5)
    with pytest.raises(BadInput, match='fold_norms'): train_sae(long, acts, TrainConfig(steps=2), progress=False)
    with pytest.raises(BadInput, match='float32'): train_sae(SAE(16, 32, k=2).half(), acts, TrainConfig(steps=2), progress=False)
    with pytest.raises(BadInput, match='spread'): train_sae(SAE(16, 32, k=2), acts*1e-30, TrainConfig(steps=2), progress=False)

def test_a_trained_sae_goes_on_from_where_it_was():
    acts, _ = toy_activations()
    first = train_sae(SAE(16, 32, k=2), acts, TrainConfig(steps=300, lr=5e-3), progress=False).history.fvu.iloc[-1]
    sae = SAE(16, 32, k=2)
    train_sae(sae, acts, TrainConfig(steps=300, lr=5e-3), progress=False)
    again = train_sae(sae, acts, TrainConfig(steps=2, lr=1e-6), progress=False).history.fvu.iloc[0]
    assert abs(again - first) < .02

def test_an_sae_goes_to_the_hub_and_comes_back(tmp_path, monkeypatch):
    "The hub's own client reads its cache: what was uploaded is laid out as it would be downloaded."
    import huggingface_hub, shutil
    from types import SimpleNamespace
    class Api:
        def __init__(self, token=None): pass
        def create_repo(self, repo, private, exist_ok): return SimpleNamespace(repo_id=f'me/{repo}' if '/' not in repo else repo)
        def upload_folder(self, repo_id, folder_path):
            home = tmp_path/f'models--{repo_id.replace("/", "--")}'
            shutil.copytree(folder_path, home/'snapshots'/'abc')
            (home/'refs').mkdir(); (home/'refs'/'main').write_text('abc')
            return f'hub/{repo_id}'
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    sae = make('topk')
    assert sae.push_to_hub('mine') == 'hub/me/mine'
    back = SAE.from_pretrained('me/mine', cache_dir=tmp_path)
    assert all((a == b).all() for a, b in zip(sae.state_dict().values(), back.state_dict().values()))
    with pytest.raises(BadInput, match='could not be had from the hub') as e: SAE.from_pretrained('me/other', cache_dir=tmp_path)
    assert '\n' not in str(e.value)

def test_encoding_in_inference_mode():
    with torch.inference_mode():
        sae, x = SAE(256, 2048, k=8).eval(), torch.randn(256, 256)
        assert sae.encode(x).values.shape == (256, 8) and sae.encode(x).values.shape == (256, 8)
