"Language models: what a killed training leaves, processes that share the work, what stands in a row, whose weights are judged, tokenizers that give every text back."
import csv, hashlib, json, math, os, random, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd, pytest, torch

from saebook import sites, train
from saebook.cache import END, read_documents
from saebook.cli import main
from saebook.core import BadInput, read_json
from saebook.lm import LMConfig, TransformerConfig, _Learner, new_lm, packed_rows, prune_embeddings, prune_tokenizer, read_texts, row_losses, split_documents, train_lm, train_tokenizer, train_transformer, validation_loss
from saebook.world import World

fast = dict(progress=False)

@pytest.fixture(scope='module')
def text():
    world = World(0)
    return split_documents(world.documents(600, 'train').text.tolist(), .1), world.tokenizer()

def lm(tok, **kw): return new_lm(tok, **dict(dict(width=32, layers=1, heads=2, context=32), **kw))
def small(**kw): return LMConfig(**dict(dict(steps=12, batch=8, context=32, warmup=3, valid_every=5, log_every=3, sample=0), **kw))
def hashes(path): return {f.relative_to(path).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in path.rglob('*') if f.is_file()}
def equal(a, b): return all((x == y).all() for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

# --- killed and gone on with

script = """
import sys, torch
from saebook.lm import LMConfig, new_lm, split_documents, train_lm
from saebook.train import device
from saebook.world import World
torch.set_num_threads(1)
out, optimizer, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
world = World(0)
(learn, judge), tok = split_documents(world.documents(300, 'train').text.tolist(), .1), world.tokenizer()
model = new_lm(tok, 32, 2, 2, 32, attention_dropout=.1, hidden_dropout=.1)
r = train_lm(model, learn, LMConfig(steps=steps, batch=8, context=32, warmup=5, valid_every=20, log_every=7, sample=4, accumulate=int(sys.argv[4]), optimizer=optimizer), tok, judge, out, save_every=9, keep=25, progress=False)
"""
def start(tmp_path, *args):
    (tmp_path/'go.py').write_text(script)
    return subprocess.Popen([sys.executable, str(tmp_path/'go.py'), *map(str, args)], stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=str(Path(train.__file__).resolve().parents[1])))

@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL is POSIX')
@pytest.mark.slow
@pytest.mark.parametrize('optimizer', ['schedule_free', 'cosine'])
def test_a_killed_training_ends_with_the_same_bytes(tmp_path, optimizer):
    "With dropout, samples, models kept on the way; killed twice at least, at any moment."
    args = optimizer, 120, 1
    whole = start(tmp_path, tmp_path/'whole', *args)
    assert whole.wait(300) == 0, whole.stderr.read()
    rng, killed, f = random.Random(0), 0, tmp_path/'killed'/'checkpoint.safetensors'
    while killed < 3:
        p = start(tmp_path, tmp_path/'killed', *args)
        seen = f.stat().st_mtime_ns if f.exists() else 0
        while p.poll() is None and not (f.exists() and f.stat().st_mtime_ns > seen): time.sleep(.005) # at work
        time.sleep(rng.random()*.4)
        p.send_signal(signal.SIGKILL); killed += p.wait(60) == -signal.SIGKILL
        if p.returncode == 0: break
    assert killed >= 2
    last = start(tmp_path, tmp_path/'killed', *args)
    assert last.wait(300) == 0, last.stderr.read()
    assert hashes(tmp_path/'killed') == hashes(tmp_path/'whole')
    assert {p.name for p in (tmp_path/'whole'/'checkpoints').iterdir()} == {f'step-{s:06}' for s in (25, 50, 75, 100)}

@pytest.mark.parametrize('optimizer', ['schedule_free', 'cosine'])
def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path, text, optimizer):
    (learn, judge), tok = text
    def run(name, stop=None, **kw):
        def on_log(row):
            if row['step'] == stop: raise KeyboardInterrupt
        return train_lm(lm(tok), learn, small(optimizer=optimizer), tok, judge, tmp_path/name, on_log=on_log, save_every=4, **kw, **fast)
    whole = run('whole')
    with pytest.raises(KeyboardInterrupt): run('stopped', 6)
    again = run('stopped')
    assert hashes(tmp_path/'whole') == hashes(tmp_path/'stopped')
    assert equal(whole.model, again.model) and whole.history.equals(again.history)
    assert equal(run('stopped').model, whole.model) # of a training that is done nothing is left to do
    with pytest.raises(BadInput, match=r'holds another training \(lr=0.003 and now 0.1\)'): train_lm(lm(tok), learn, small(optimizer=optimizer, lr=.1), tok, judge, tmp_path/'whole', **fast)
    with pytest.raises(BadInput, match=r'holds another training \(rows\)'): train_lm(lm(tok), learn[1:], small(optimizer=optimizer), tok, judge, tmp_path/'whole', **fast)

def test_without_a_schedule_a_training_can_be_made_longer(tmp_path, text):
    (learn, judge), tok = text
    run = lambda steps, name: train_lm(lm(tok), learn, small(steps=steps), tok, judge, tmp_path/name, **fast)
    once = run(24, 'once')
    run(12, 'twice')
    assert equal(run(24, 'twice').model, once.model)
    with pytest.raises(BadInput, match='was trained for 24 steps and 12 are asked for'): run(12, 'once')

def test_looking_never_changes_the_training(text):
    (learn, judge), tok = text
    run = lambda **kw: train_lm(lm(tok), learn, small(**kw), tok, judge, **fast)
    often, never = run(valid_every=1, sample=3), run(valid_every=12)
    assert equal(often.model, never.model) and len(often.history) == 12 and often.history['sample'].notna().all()

# --- several processes

def test_two_processes_train_as_one(tmp_path):
    "The same figures as one process with as many parts, dropout included."
    (tmp_path/'go.py').write_text(script)
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(Path(train.__file__).resolve().parents[1]))
    for name, first, parts in (('one', [sys.executable], 2), ('two', [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2'], 1)):
        p = subprocess.run([*first, str(tmp_path/'go.py'), str(tmp_path/name), 'schedule_free', '24', str(parts)], env=env, capture_output=True, text=True, timeout=300)
        assert p.returncode == 0, p.stderr[-3000:]
    one, two = (pd.read_json(tmp_path/n/'history.jsonl', lines=True) for n in ('one', 'two'))
    for k in ('loss', 'norm', 'valid'): assert (one[k] - two[k]).abs().max() < 1e-4, k
    assert one.loss.iloc[-1] < one.loss.iloc[0] - .3 and set(hashes(tmp_path/'one')) == set(hashes(tmp_path/'two'))
    a, b = (sites.load_model(tmp_path/n/'model')[0] for n in ('one', 'two'))
    assert max((x - y).abs().max().item() for x, y in zip(a.state_dict().values(), b.state_dict().values())) < 1e-4

# --- what stands in a row

def test_no_document_is_lost_and_each_is_closed(text):
    (learn, _), tok = text
    for context in (2, 7, 32):
        rows = packed_rows(tok, learn, context)
        flat = rows[rows >= 0].tolist()
        assert flat == [i for d in learn for i in tok(d)['input_ids'] + [tok.eos_token_id]]
        assert (rows[:-1] >= 0).all() and rows.shape[1] == context and (rows[-1] == -100).sum() < context

def test_documents_come_from_lists_files_folders_tables_and_data_sets(tmp_path):
    import datasets
    docs = ['one', 'two\nlines', 'three']
    (tmp_path/'texts').mkdir()
    (tmp_path/'t.txt').write_text(END.join(docs) + END + '\n'); (tmp_path/'texts'/'a.txt').write_text(END.join(docs[:2])); (tmp_path/'texts'/'b.txt').write_text(docs[2])
    (tmp_path/'t.jsonl').write_text('\n'.join(json.dumps(dict(story=d)) for d in docs))
    data = datasets.Dataset.from_dict(dict(story=docs))
    data.save_to_disk(tmp_path/'saved'); datasets.DatasetDict(train=data).save_to_disk(tmp_path/'dict')
    for given in (docs, [*docs, ' '], tmp_path/'t.txt', tmp_path/'texts', tmp_path/'t.jsonl', data, tmp_path/'saved', tmp_path/'dict', data.to_iterable_dataset()):
        assert read_texts(given, 'story') == docs, given
    with pytest.raises(BadInput, match="unknown text key 'text'.*'story'"): read_texts(data)
    (tmp_path/'empty.txt').write_text('  \n')
    with pytest.raises(BadInput, match='is empty'): read_texts(tmp_path/'empty.txt')
    with pytest.raises(BadInput, match='document 1 is a int'): read_texts(['a', 1])

def test_equal_documents_stay_on_one_side():
    learn, judge = split_documents([str(i % 20) for i in range(100)], .25)
    assert len(judge) == 25 and not set(learn) & set(judge) and len(learn) == 75
    assert split_documents(list('abcdef'), 2)[1] == split_documents(list('abcdef'), 2)[1] and len(split_documents(list('abcdef'), 2)[1]) == 2

# --- the loss

@pytest.mark.parametrize('kind', ['GPTNeoX', 'GPT2', 'GPTNeo', 'Llama'])
def test_the_loss_is_the_models_own(text, kind):
    import transformers as tf
    (_, judge), tok = text
    kw = dict(GPT2=dict(n_embd=32, n_layer=2, n_head=2, n_positions=32), GPTNeo=dict(hidden_size=32, num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]], max_position_embeddings=32)).get(kind) or dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=32)
    model = getattr(tf, dict(GPT2='GPT2LMHeadModel').get(kind, f'{kind}ForCausalLM'))(getattr(tf, f'{kind}Config')(vocab_size=len(tok), **kw)).train() # with dropout, which validation leaves out
    rows = packed_rows(tok, judge, 32)
    loss = validation_loss(model, rows, 5)
    assert model.training and abs(loss - validation_loss(model, rows, 64)) < 1e-5
    with torch.no_grad(): own = model.eval()(input_ids=rows.long().clamp_min(0), labels=rows.long()).loss.item()
    assert abs(loss - own) < 1e-5
    nats, n = row_losses(model, rows)
    assert int(n.sum()) == int((rows[:, 1:] >= 0).sum()) and len(nats) == len(rows)
    r = train_lm(model, judge, small(held_out=.2), tok, **fast) # each kind can be trained, without its weights being shared or frozen by mistake
    assert r.history.loss.iloc[-1] < r.history.loss.iloc[0]

def test_validation_looks_at_the_average_of_the_weights(text):
    (learn, judge), tok = text
    seen, model = {}, lm(tok)
    def on_log(row):
        if row['valid'] is not None: seen[row['step']] = row['valid'], validation_loss(model, packed_rows(tok, judge, 32))
    r = train_lm(model, learn, small(), tok, judge, on_log=on_log, **fast)
    assert all(abs(average - at_work) > 1e-4 for average, at_work in seen.values())
    assert abs(validation_loss(r.model, r.valid) - r.history.valid.iloc[-1]) < 1e-6 and not r.model.training # what is handed back is the average

def test_biases_and_norms_do_not_decay(text):
    me = _Learner(lm(text[1]), small())
    free = {id(p) for g in me.opt.param_groups if g['weight_decay'] == 0 for p in g['params']}
    assert {k.rsplit('.')[-1] for k, p in me.model.named_parameters() if id(p) in free} == {'bias', 'weight'} and all(p.ndim == 1 for p in me.model.parameters() if id(p) in free)
    assert sum(len(g['params']) for g in me.opt.param_groups) == len(list(me.model.parameters()))

def test_parts_of_a_batch_add_up(text):
    (learn, judge), tok = text
    one, four = (train_lm(lm(tok), learn, small(accumulate=n), tok, judge, **fast) for n in (1, 4))
    assert (one.history[['loss', 'norm', 'valid']] - four.history[['loss', 'norm', 'valid']]).abs().max().max() < 1e-4

@pytest.mark.slow
def test_without_a_schedule_no_more_is_paid_on_stories(shared):
    texts, judge = (read_documents(shared(f'data/tinystories/{f}.txt')) for f in ('train', 'valid'))
    tok = train_tokenizer(texts[:2500], 2048)
    rows, held = packed_rows(tok, texts[:2500], 64), packed_rows(tok, judge[:150], 64)
    run = lambda how: train_lm(new_lm(tok, 64, 2, 4, 64), rows, LMConfig(steps=300, batch=16, context=64, warmup=30, lr=1e-2, optimizer=how, sample=0), valid=held, **fast).history.valid.iloc[-1]
    free, cosine = run('schedule_free'), run('cosine')
    print(f'schedule-free {free:.3f}, cosine {cosine:.3f} nats a token')
    assert free < cosine + .02 and cosine < 4

# --- mistakes

def test_mistakes_are_told_before_work_begins(tmp_path, text):
    (learn, judge), tok = text
    go = lambda model=None, data=learn, t=tok, cfg=None, **kw: train_lm(model or lm(tok), data, cfg or small(), t, **kw, **fast)
    ids = packed_rows(tok, learn, 32)
    for f, said in ((lambda: go(cfg=small(context=64)), 'has 32 positions'), (lambda: go(lm(tok, vocab_size=9)), 'the tokenizer has 2366 tokens and the model knows 9'), (lambda: go(lm(tok, vocab_size=9), ids, None, valid=ids), 'the model knows ids up to 8'),
                    (lambda: go(data=learn[:3], valid=judge), 'lower LMConfig batch'), (lambda: go(data=[learn[0]]*9), 'were to be held out'), (lambda: go(lm(tok).half()), 'train in float32'), (lambda: go(t=None), 'without a tokenizer'),
                    (lambda: go(data=ids), 'give valid='), (lambda: go(data=ids[:, :9], valid=ids), 'rows of 9 tokens were given'), (lambda: go(keep=3), 'without a folder'), (lambda: small(optimizer='sgd'), "choose one of 'schedule_free'"),
                    (lambda: small(beta1=0), 'between 0 and 1'), (lambda: small(batch=2, accumulate=3), 'the parts fewer'), (lambda: go(save_every=0), 'save_every=0')):
        with pytest.raises(BadInput, match=said): f()
    r = go(data=ids.view(-1)[:-40], t=None, valid=ids[:4]) # ids alone
    assert r.history['sample'].isna().all() and math.isfinite(r._last('valid'))

def test_a_loss_that_is_no_number_leaves_the_last_good_state(tmp_path, text):
    (learn, judge), tok = text
    model, kept = lm(tok), {}
    def on_log(row):
        if row['step'] == 9:
            kept.update({k: v.clone() for k, v in model.state_dict().items()})
            model.lm_head.weight.register_hook(lambda g: g*math.nan)
    with pytest.raises(FloatingPointError, match='at step 10: lower LMConfig.lr .*as they were after step 9'):
        train_lm(model, learn, small(optimizer='cosine'), tok, judge, tmp_path, save_every=4, on_log=on_log, **fast)
    assert all((v == kept[k]).all() for k, v in model.state_dict().items())
    assert [json.loads(l)['step'] for l in (tmp_path/'history.jsonl').open()] == [3, 5, 6, 9]
    again = train_lm(lm(tok), learn, small(optimizer='cosine'), tok, judge, tmp_path, save_every=4, **fast) # goes on from step 8
    assert equal(again.model, train_lm(lm(tok), learn, small(optimizer='cosine'), tok, judge, **fast).model)

# --- tokenizers

@pytest.fixture(scope='module')
def texts(shared):
    stories = read_documents(shared('data/tinystories/valid.txt'))[:1000]
    with shared('data/sib200/fra_Latn.csv').open(encoding='utf-8') as f: french = [r['text'] for r in csv.DictReader(f)][:100]
    with shared('data/sib200/deu_Latn.csv').open(encoding='utf-8') as f: german = [r['text'] for r in csv.DictReader(f)][:100]
    return stories, french + german + ['東京タワー 🗼 нет', '\x00\x7f tab\t\r\n  end ', 'e\u0301']

def back(tok, text): return tok.decode(tok(text, add_special_tokens=False)['input_ids'])
def length(tok, texts): return sum(map(len, tok(texts, add_special_tokens=False)['input_ids']))

def test_a_trained_tokenizer_gives_every_text_back(tmp_path, texts):
    from transformers import AutoTokenizer
    tok = train_tokenizer(texts[0][:300], 2000, (END, '<|pad|>'))
    tok.save_pretrained(tmp_path); again = AutoTokenizer.from_pretrained(tmp_path)
    for t in texts[0] + texts[1]: assert back(tok, t) == t
    assert again(texts[1])['input_ids'] == tok(texts[1])['input_ids'] and len(again) == len(tok) == 2000 and (again.eos_token, again.eos_token_id) == (END, 0) and '<|pad|>' in again.all_special_tokens
    assert train_tokenizer(texts[0][:300], 2000, (END, '<|pad|>')).get_vocab() == tok.get_vocab()
    assert tok('a' + END)['input_ids'][-1] == 0 and len(tok('東京')['input_ids']) == len('東京'.encode()) # bytes, and never an unknown word

@pytest.mark.parametrize('name, keep, most', [('gpt2-tokenizer', 4096, 1.1), ('pythia-tokenizer', 4096, 1.1), ('gpt2-tokenizer', 300, 3.)])
def test_a_pruned_tokenizer_gives_every_text_back_in_few_tokens(tmp_path, shared, texts, name, keep, most):
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(shared(f'models/{name}'))
    small, old = prune_tokenizer(tok, texts[0][:500], keep)
    small.save_pretrained(tmp_path); again = AutoTokenizer.from_pretrained(tmp_path)
    for t in texts[0] + texts[1]: assert back(small, t) == back(again, t) == back(tok, t)
    assert len(small) == len(old) == keep and small.convert_ids_to_tokens(range(keep)) == tok.convert_ids_to_tokens(old.tolist())
    assert (small.eos_token, tok.convert_ids_to_tokens(int(old[small.eos_token_id]))) == (tok.eos_token,)*2 and set(small.all_special_tokens) == set(tok.all_special_tokens)
    ratio = length(small, texts[0][500:])/length(tok, texts[0][500:]) # on texts that were not counted
    print(f'{name} with {keep} tokens: {ratio:.3f} times as many')
    assert 1 <= ratio < most
    for t, i in small.get_vocab().items(): # each kept token is still built from its letters
        if i % 17 == 0 and t in (s := tok.tokenize(word := small.decode([i]))) and len(s) == 1: assert small.tokenize(word) == [t]

def test_begin_tokens_are_renumbered(shared):
    "A tokenizer that puts a special token in front, with byte fallback."
    model, tok = sites.load_model(shared('models/stories260K'))
    small, old = prune_tokenizer(tok, read_documents(shared('data/tinystories/small.txt'))[:50], 400)
    text = 'Once upon a time there was a dog.'
    assert old[small(text)['input_ids'][0]] == tok.bos_token_id and small.decode(small(text)['input_ids'], skip_special_tokens=True) == tok.decode(tok(text)['input_ids'], skip_special_tokens=True)

def test_a_pruned_model_says_what_it_said_of_the_tokens_that_are_left(shared, tmp_path):
    model, tok = sites.load_model(shared('models/stories260K'))
    small, old = prune_tokenizer(tok, read_documents(shared('data/tinystories/small.txt'))[:50], 400)
    ids = torch.tensor([small('The dog was happy.')['input_ids']])
    want = sites.forward(model, old[ids]).logits[..., old]
    assert torch.allclose(sites.forward(prune_embeddings(model, old), ids).logits, want, atol=1e-5)
    model.save_pretrained(tmp_path); small.save_pretrained(tmp_path)
    again, _ = sites.load_model(tmp_path)
    assert torch.allclose(sites.forward(again, ids).logits, want, atol=1e-5) and again.config.vocab_size == 400 and again.config.bos_token_id == small.bos_token_id

# --- in one command

def test_the_commands_end_to_end(tmp_path, shared, capsys):
    "A dense model and its tokenizer from a text file, gone on with, then transcoders of all its MLPs in sparsify's layout."
    from saebook.formats import load_sae
    story, out = str(shared('data/tinystories/small.txt')), tmp_path/'lm'
    args = ['train-transformer', '--dense', '--dataset', story, '--tokenizer', 'train:600', '--width', '32', '--layers', '2', '--heads', '2', '--context', '64', '--batch', '8', '--valid-every', '10', '--quiet', '--out', str(out)]
    assert main([*args, '--steps', '10', '--keep', '5']) == 0
    was = hashes(out/'model')
    assert main([*args, '--steps', '10', '--keep', '5']) == 0 and hashes(out/'model') == was
    assert main([*args, '--steps', '20']) == 0 and hashes(out/'model') != was
    said = capsys.readouterr()
    assert 'GPTNeoXForCausalLM after 20 steps' in said.out and str(out/'model') in said.out
    model, tok = sites.load_model(out/'model')
    assert len(tok) == 600 and {f.name for f in (out/'checkpoints').iterdir()} == {'step-000005', 'step-000010'}
    saes = ['train-sae', '--model', str(out/'model'), '--text', story, '--hookpoints', 'gpt_neox.layers.*.mlp', '--k', '4', '--features', '64', '--steps', '20', '--batch', '256', '--quiet']
    for how, kind in (([], 'SAE'), (['--transcode'], 'Transcoder')):
        assert main([*saes, *how, '--out', str(tmp_path/kind)]) == 0
        for i in range(2):
            d = tmp_path/kind/f'gpt_neox.layers.{i}.mlp'
            assert {f.name for f in d.iterdir()} == {'cfg.json', 'sae.safetensors'} and read_json(d/'cfg.json')['transcode'] == (kind == 'Transcoder')
            sae = load_sae(d, model=model, quiet=True)
            assert type(sae).__name__ == kind and (sae.site.path, sae.site.side) == (d.name, 'input' if kind == 'Transcoder' else 'output')
    assert 'gpt_neox.layers.1.mlp' in capsys.readouterr().out
    assert main([*saes[:6], 'gpt_neox.layer.*']) == 2 and 'unknown module or pattern' in capsys.readouterr().err

def test_a_configuration_file_trains_a_model(tmp_path, capsys):
    (tmp_path/'c.yaml').write_text('kind: train\nfeedforward: dense\ntokenizer: "train:400"\nwidth: 16\nlayers: 1\nheads: 1\nsteps: 3\nbatch: 4\ncontext: 16\nsample: 0\n')
    assert main(['run', str(tmp_path/'c.yaml'), '--out', str(tmp_path/'out'), '--quiet']) == 0 and sites.load_model(tmp_path/'out'/'model')
    (tmp_path/'c.yaml').write_text('kind: train\nfeed_forward: dense\n')
    assert main(['run', str(tmp_path/'c.yaml')]) == 2 and "did you mean 'feedforward'" in capsys.readouterr().err

def test_validation_can_be_left_out(text):
    cfg = TransformerConfig(steps=3, batch=4, context=16, width=16, layers=1, heads=1, tokenizer='train:300', feedforward='dense', held_out=0, sample=4)
    r = train_transformer(cfg, **fast)
    assert r.valid is None and r.history.valid.isna().all() and r.history['sample'].notna().any() and 'nan' in repr(r)
