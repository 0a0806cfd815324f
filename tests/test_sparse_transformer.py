"Sparse and dense models side by side: the setting with known figures, what is equal, and what a second call does not do again."
import json, sysconfig
from pathlib import Path

import pandas as pd, pytest, torch

from saebook import lm, sparse_transformer as st
from saebook.cli import main
from saebook.core import BadInput
from saebook.lm import new_lm, packed_rows, train_lm, train_tokenizer
from saebook.metrics import fvu
from saebook.sae import Transcoder
from saebook.sparse_transformer import FeedForwardSpec, SparseConfig, feedforwards, sparse_vs_dense, sparsify_feedforward
from saebook.train import TrainConfig, train_sae
from saebook.world import World

TINY = dict(width=32, layers=2, heads=2, k=8, kinds=['topk', 'groupmax'], steps=12, batch=8, context=32, warmup=3, valid_every=4, coder_steps=8, seeds=[0, 1], held_out=.1)

@pytest.fixture(scope='module')
def text():
    "Documents of the world, and a tokenizer of theirs."
    documents = World(0).documents(200, 'train').text.tolist()
    return documents, train_tokenizer(documents, 500)

def test_a_second_call_trains_nothing_again(tmp_path, text, monkeypatch):
    one = sparse_vs_dense(text[0], SparseConfig(**TINY), text[1], path=tmp_path/'run', progress=False)
    def no(*a, **kw): raise AssertionError('a step was made again')
    monkeypatch.setattr(lm._Learner, 'step', no)
    two = sparse_vs_dense(text[0], SparseConfig(**TINY), text[1], path=tmp_path/'run', progress=False)
    pd.testing.assert_frame_equal(one.frame, two.frame)
    f = one.frame.set_index(['model', 'seed', 'at'])
    assert len(f) == 2*(5*3 + 2) and (one.frame.step[(one.frame['at'] == 'steps') & ~one.frame.model.str.endswith(' on dense')] == 12).all()
    spent = f.flops.xs('flops', level='at')
    assert spent.max()/spent.min() < 1 + 1/8 # to half a step of twelve

def test_a_row_is_what_the_model_says(tmp_path, text):
    "The loss of the table is that of the model that was kept, and a scorer is given that model and its coders."
    seen = []
    def units(model, tokenizer, coders): seen.append((type(model).__name__, [type(c).__name__ for c in coders])); return sum(c.n for c in coders)
    c = sparse_vs_dense(text[0], SparseConfig(**dict(TINY, seeds=[3], kinds=['topk'])), text[1], scorers=dict(units_of_all=units), path=tmp_path/'run', progress=False)
    rows = packed_rows(text[1], lm.split_documents(text[0], .1, 0)[1], 32)
    model = st._opened(tmp_path/'run'/'seed-3'/'topk', 12)
    f = c.frame.set_index(['model', 'at'])
    assert f.loss['topk', 'steps'] == pytest.approx(lm.validation_loss(model, rows), abs=1e-6) and c.rows['topk', 3, 'steps'].shape == (len(rows),)
    assert f.units_of_all['topk', 'steps'] == 2*512 and seen[-1][1] == ['Transcoder']*2 and all(n.startswith('Sparse') for n, _ in seen)
    ids = rows[:4, :20].clamp_min(0).long()
    for b in feedforwards(model).values(): assert int((b.encode(torch.randn(50, 32)).values != 0).sum(1).max()) <= 8
    said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    with torch.no_grad(): again = model(said, use_cache=False).logits
    told = again[:, 19:-1].clone(); told[..., text[1].eos_token_id] = -torch.inf # which was not to be said yet
    assert torch.equal(told.argmax(-1), said[:, 20:])

@pytest.mark.parametrize('kind', ['topk', 'batch_topk', 'groupmax'])
def test_a_sparse_model_that_was_interrupted_ends_with_the_same_bytes(tmp_path, text, kind):
    "Thresholds and who has been silent for how long are a part of what the next step depends on."
    def run(name, stop=None):
        def on_log(row):
            if row['step'] == stop: raise KeyboardInterrupt
        model = sparsify_feedforward(new_lm(text[1], 32, 2, 2, 32, 0), FeedForwardSpec(kind, 4, 8, revive=.3, dead_after=1000))
        train_lm(model, text[0], lm.LMConfig(steps=12, batch=8, context=32, warmup=3, valid_every=4, log_every=1, sample=0), text[1], path=tmp_path/name, save_every=4, keep=4, progress=False, on_log=on_log)
        return {str(f.relative_to(tmp_path/name)): f.read_bytes() for f in sorted((tmp_path/name).rglob('*')) if f.is_file()}
    whole = run('whole')
    with pytest.raises(KeyboardInterrupt): run('stopped', 7)
    assert run('stopped') == whole and 'checkpoints/step-000008/model.safetensors' in whole

def test_from_a_file(tmp_path, capsys):
    (tmp_path/'c.yaml').write_text(json.dumps(dict(TINY, kind='sparse', kinds=['topk'], seeds=[0], tokenizer='train:500')))
    assert main(['run', str(tmp_path/'c.yaml'), '--out', str(tmp_path/'out'), '--quiet']) == 0
    page = (tmp_path/'out'/'comparison.html').read_text()
    assert 'transcoder on dense' in capsys.readouterr().out and page.count('<svg') == 2 and 'http://' not in page.replace('http://www.w3.org', '')
    assert {'comparison.csv', 'curves.csv', 'config.json', 'tokenizer', 'seed-0'} <= {f.name for f in (tmp_path/'out').iterdir()}

@pytest.mark.parametrize('change, says', [(dict(kinds=[]), 'kinds=[]'), (dict(coders=['saes']), "did you mean 'sae'?"), (dict(k=0), 'k=0'), (dict(seeds=[]), 'seeds=[]'), (dict(expansion=1), 'give at least 2'), (dict(k=513), 'k=513 was given for 512 units'), (dict(kinds=['groupmax'], k=7), 'in k=7 groups')])
def test_what_cannot_be_compared_is_told_before_any_step(text, change, says, monkeypatch):
    monkeypatch.setattr(lm._Learner, 'step', lambda *a: (_ for _ in ()).throw(AssertionError('a step was made')))
    with pytest.raises(BadInput) as e: sparse_vs_dense(text[0], SparseConfig(**dict(TINY, **change)), text[1], progress=False)
    assert says in str(e.value) and '\n' not in str(e.value), e.value

def test_a_transcoder_learns_a_known_net_and_its_skip_a_linear_map():
    "A net of 32 ReLUs of which five are on; a linear map of which a code of one entry knows little."
    g = torch.Generator().manual_seed(0)
    A, B, x = torch.randn(16, 32, generator=g)/4, torch.randn(32, 16, generator=g)/32**.5, torch.randn(20_000, 16, generator=g)
    def left(y, *a, **kw):
        t = train_sae(Transcoder(16, *a, **kw), (x[:16_000], y[:16_000]), TrainConfig(steps=1500, batch=512, lr=4e-3), progress=False).sae.eval()
        with torch.no_grad(): return float(fvu(y[16_000:], t(x[16_000:])))
    assert left(torch.relu(x @ A - 1) @ B, 256, k=16) < .05
    y = x @ torch.randn(16, 12, generator=g)
    assert left(y, 32, k=1, d_out=12, skip=True) < 1e-4 < .1 < left(y, 32, k=1, d_out=12)

def stdlib_texts():
    "The sources of Python's own library: a text that every machine has."
    lib = Path(sysconfig.get_paths()['stdlib'])
    files = [f for f in sorted(lib.rglob('*.py')) if not {'site-packages', 'test', 'tests', 'idlelib', 'lib2to3'} & set(f.relative_to(lib).parts)]
    return [t for f in files if (t := f.read_text(encoding='utf-8', errors='ignore')).strip()]

@pytest.mark.slow
def test_sparse_beside_dense_on_real_text():
    "Python's own library, 2,048 tokens, width 64, two blocks, 1,024 units of which 16 speak, 240 steps of 16 rows: TopK is as good as dense at equal steps, on each of three seeds."
    texts = stdlib_texts()[::2] # 1.8 million tokens
    tok = train_tokenizer(texts, 2048)
    c = sparse_vs_dense(texts, SparseConfig(valid_every=40, held_out=.02), tok, progress=False)
    print(f'\n{c.summary().round(3).to_string(index=False)}')
    loss = c.frame[c.frame['at'] == 'steps'].pivot(index='seed', columns='model', values='loss')
    assert (loss['topk'] <= loss['dense'] + .02).all()
    s = c.summary().set_index(['model', 'at'])
    assert s.l0['topk', 'steps'] <= 16 and s.units['topk', 'steps'] == s.units['dense, as many units', 'steps'] == 1024
