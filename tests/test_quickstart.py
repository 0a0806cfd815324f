"The main job: what bad input gets, what an interrupt keeps, equal runs, and the figures it must reach on real input."
import dataclasses, json, os, signal, subprocess, sys

import pytest, torch

from saebook.cli import _parser, main
from saebook.quickstart import QuickstartConfig, quickstart
from saebook.sae import SAE
from saebook.sites import load_model
from saebook.world import load_taught

@pytest.fixture(scope='module')
def lm(tmp_path_factory):
    "A copy of a small model on disk, and a text it can read."
    tmp = tmp_path_factory.mktemp('lm')
    model, tok = load_taught('base')
    model.save_pretrained(tmp/'model'); tok.save_pretrained(tmp/'model')
    (tmp/'text.txt').write_text('\n<|endoftext|>\n'.join(['the fox saw a tiny lantern by the river . '*4]*60), encoding='utf-8')
    return tmp

def refuses(capsys, contains, *argv): # argv: a command without --quiet
    capsys.readouterr() # what making the inputs has printed
    code = main([*map(str, argv), '--quiet'])
    err = capsys.readouterr().err
    assert code == 2 and err.count('\n') == 1 and contains in err, err

saebook = [sys.executable, '-c', 'import sys; from saebook.cli import main; sys.exit(main())']

# --- what bad input gets

@pytest.mark.parametrize('content, contains', [
    (b'', 'is empty'), (b' \n\n<|endoftext|>\n', 'is empty'), (b'\x80\x04\x95', 'is not UTF-8 text'), (b'abc\0def', 'is a binary file'), (b'the fox saw', 'the text has 3 tokens')])
def test_a_bad_text_is_told_in_one_sentence(lm, tmp_path, capsys, content, contains):
    (tmp_path/'t.txt').write_bytes(content)
    refuses(capsys, contains, 'quickstart', '--model', lm/'model', '--text', tmp_path/'t.txt', '--out', tmp_path/'out')

@pytest.mark.parametrize('args, contains', [
    (['--layer', 4], 'has layers 0 to 3'), (['--k', 2000], 'choose k from 1 to 1024'), (['--features', 8, '--k', 9], 'choose k from 1 to 8'),
    (['--activation', 'topkk'], "did you mean 'topk'?"), (['--steps', 0], 'steps=0 was given'), (['--context', 4], 'give at least 8'),
    (['--features', 0], 'give at least 1'), (['--k', 0], 'choose k of at least 1'), (['--seed', -1], 'choose one from 0'), (['--tokens', 10], 'give at least 5,000'), (['--device', 'gpu'], 'cannot be used')])
def test_a_bad_option_is_told_in_one_sentence(lm, tmp_path, capsys, args, contains):
    refuses(capsys, contains, 'quickstart', '--model', lm/'model', '--text', lm/'text.txt', '--out', tmp_path/'out', *args)
    assert not (tmp_path/'out'/'sae').exists()

def test_a_bad_model_folder_is_told_in_one_sentence(lm, tmp_path, capsys):
    rest = ['--text', lm/'text.txt', '--out', tmp_path/'out']
    refuses(capsys, 'is not a folder', 'quickstart', '--model', tmp_path/'none', *rest)
    m = tmp_path/'m'; m.mkdir()
    refuses(capsys, 'has no config.json', 'quickstart', '--model', m, *rest)
    (m/'config.json').write_bytes((lm/'model'/'config.json').read_bytes())
    refuses(capsys, 'has no weights', 'quickstart', '--model', m, *rest)
    torch.save({}, m/'pytorch_model.bin')
    refuses(capsys, 'pickled file only', 'quickstart', '--model', m, *rest)
    (m/'model.safetensors').write_bytes(b'\0'*64)
    refuses(capsys, 'could not be loaded', 'quickstart', '--model', m, *rest)

def test_a_model_without_a_tokenizer_is_told_in_one_sentence(lm, tmp_path, capsys):
    (tmp_path/'m').mkdir()
    for f in ('config.json', 'model.safetensors'): (tmp_path/'m'/f).write_bytes((lm/'model'/f).read_bytes())
    refuses(capsys, 'could not be loaded', 'quickstart', '--model', tmp_path/'m', '--text', lm/'text.txt', '--out', tmp_path/'out')

def test_nan_activations_are_told_before_training(lm, tmp_path, capsys):
    model, tok = load_model(lm/'model')
    with torch.no_grad(): model.gpt_neox.layers[1].mlp.dense_4h_to_h.bias[3] = float('nan')
    model.save_pretrained(tmp_path/'m'); tok.save_pretrained(tmp_path/'m')
    refuses(capsys, 'hold NaN or infinity', 'quickstart', '--model', tmp_path/'m', '--text', lm/'text.txt', '--out', tmp_path/'out')

def test_an_unwritable_folder_is_told_before_anything_is_read(lm, tmp_path, capsys):
    (tmp_path/'file').write_text('x')
    refuses(capsys, 'give a folder you may write to', 'quickstart', '--out', tmp_path/'file'/'out')

def test_a_model_without_a_text_is_told_in_one_sentence(lm, tmp_path, capsys):
    refuses(capsys, 'a model was given without a text', 'quickstart', '--model', lm/'model', '--out', tmp_path/'out')

def test_a_model_that_sees_what_it_should_predict_is_refused(lm, tmp_path, capsys):
    from transformers import BertConfig, BertLMHeadModel
    _, tok = load_taught('base')
    BertLMHeadModel(BertConfig(vocab_size=len(tok), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)).save_pretrained(tmp_path/'bert')
    tok.save_pretrained(tmp_path/'bert')
    refuses(capsys, 'give a causal language model', 'quickstart', '--model', tmp_path/'bert', '--text', lm/'text.txt', '--out', tmp_path/'out')

def test_a_tokenizer_that_is_larger_than_the_model_is_refused(lm, tmp_path, capsys):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)).save_pretrained(tmp_path/'m')
    load_taught('base')[1].save_pretrained(tmp_path/'m')
    refuses(capsys, "give the model's own tokenizer", 'quickstart', '--model', tmp_path/'m', '--text', lm/'text.txt', '--out', tmp_path/'out')

# --- the command line and its configuration

def test_the_command_line_offers_every_field_with_its_default():
    given = vars(_parser().parse_args(['quickstart']))
    for f in dataclasses.fields(QuickstartConfig): assert given[f.name] == f.default, f.name

# --- runs

small = dict(steps=60, tokens=12_000, n=256, progress=False)

def test_two_runs_of_one_seed_are_equal_but_for_the_time(tmp_path):
    a, b = (quickstart(out=tmp_path/x, **small) for x in 'ab')
    ma, mb = (json.loads((tmp_path/x/'metrics.json').read_text()) for x in 'ab')
    assert ma.pop('seconds') > 0 and mb.pop('seconds') > 0
    assert ma == mb
    assert (tmp_path/'a'/'sae'/'sae.safetensors').read_bytes() == (tmp_path/'b'/'sae'/'sae.safetensors').read_bytes()

def test_another_seed_gives_another_run(tmp_path):
    a, b = (quickstart(out=tmp_path/str(s), seed=s, **small).metrics for s in (0, 1))
    assert a['run'] != b['run'] and a['fvu'] != b['fvu']

def test_a_relu_sae_runs_on_a_given_model_and_text(lm, tmp_path):
    m = quickstart(lm/'model', lm/'text.txt', out=tmp_path, activation='relu', context=16, **small).metrics
    assert m['model'] == 'model' and m['loss_recovered'] is not None and 'concepts' not in m
    assert str(lm) not in (tmp_path/'metrics.json').read_text() + (tmp_path/'report.html').read_text()

def test_one_document_gives_an_interval_over_its_contexts_and_any_number_of_rows_works(lm, tmp_path):
    (tmp_path/'t.txt').write_text('the fox saw a tiny lantern by the river . '*733, encoding='utf-8') # 65 held-out rows: a last batch of one
    m = quickstart(lm/'model', tmp_path/'t.txt', out=tmp_path/'out', context=16, **small).metrics
    lo, hi = m['loss_recovered_interval']
    assert lo < m['loss_recovered'] < hi

def test_a_second_run_leaves_nothing_of_the_first(lm, tmp_path):
    quickstart(lm/'model', lm/'text.txt', out=tmp_path, context=16, **small)
    with pytest.raises(KeyboardInterrupt):
        with pytest.MonkeyPatch.context() as mp:
            mp.setattr('saebook.quickstart.train_sae', lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
            quickstart(lm/'model', lm/'text.txt', out=tmp_path, context=16, **small)
    assert sorted(f.name for f in tmp_path.iterdir()) == ['sae']

def test_a_report_holds_what_a_text_says_as_text_only(lm, tmp_path):
    (tmp_path/'t.txt').write_text('<script>alert(1)</script> the fox & the owl . '*40, encoding='utf-8')
    quickstart(lm/'model', tmp_path/'t.txt', out=tmp_path/'out', context=16, **small)
    assert '<script' not in (tmp_path/'out'/'report.html').read_text()

def _start(out, **env):
    p = subprocess.Popen([*saebook, 'quickstart', '--out', str(out), '--steps', '100000', '--tokens', '12000'],
                         stderr=subprocess.PIPE, env=dict(os.environ, **env),
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)) # a job in the background inherits that it is ignored
    seen = b''
    while b'fvu' not in seen: # the bar of the training
        chunk = p.stderr.read1(4096)
        assert chunk, seen
        seen += chunk
    return p

@pytest.mark.skipif(os.name == 'nt', reason='signals of this kind are POSIX')
def test_an_interrupt_keeps_the_sae_and_says_so(tmp_path):
    p = _start(tmp_path/'out')
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=120)[1].decode()
    assert p.returncode == 130 and 'interrupted' in err and 'Traceback' not in err
    sae = SAE.from_pretrained(tmp_path/'out'/'sae')
    assert sae.info['interrupted'] and torch.isfinite(sae.W_dec).all()

@pytest.mark.skipif(os.name == 'nt', reason='signals of this kind are POSIX')
def test_a_killed_run_leaves_no_half_file(tmp_path):
    p = _start(tmp_path/'out')
    p.kill(); p.wait(60)
    assert [f.name for f in (tmp_path/'out').iterdir() if not f.name.startswith('.')] == []
    quickstart(out=tmp_path/'out', **small)

def test_it_runs_where_the_terminal_speaks_ascii(tmp_path):
    env = dict(os.environ, LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0', PYTHONIOENCODING='ascii')
    r = subprocess.run([*saebook, 'quickstart', '--out', str(tmp_path), '--steps', '30', '--tokens', '6000', '--features', '128', '--quiet'], capture_output=True, env=env)
    assert r.returncode == 0, r.stderr.decode()
    assert 'ü' in (tmp_path/'report.html').read_text(encoding='utf-8') # the world speaks German too

@pytest.mark.browser
@pytest.mark.parametrize('width', [1440, 390], ids=['desk', 'phone'])
def test_the_report_asks_for_nothing_and_fits(browser, tmp_path, width):
    q = quickstart(out=tmp_path, **small)
    page, bad = browser.new_page(viewport=dict(width=width, height=900)), []
    page.on('request', lambda r: r.url.startswith(('file:', 'data:')) or bad.append(r.url))
    page.on('console', lambda m: m.type == 'error' and bad.append(m.text))
    page.goto((q.out/'report.html').as_uri())
    assert page.evaluate('document.documentElement.scrollWidth') <= width and not bad, bad
    page.close()

# --- on real input

def test_a_small_run_on_a_real_model(shared, tmp_path):
    m = quickstart(shared('models/stories260K'), shared('data/tinystories/small.txt'), out=tmp_path, steps=200, tokens=40_000, progress=False).metrics
    assert m['loss_recovered'] > .85 > m['baselines']['random SAE']['loss_recovered']
    assert m['site'] == 'model.layers.2' and m['l0'] <= 16

@pytest.mark.slow
def test_stories_are_recovered_with_sixteen_features_a_token(shared, tmp_path):
    m = quickstart(shared('models/stories260K'), shared('data/tinystories/small.txt'), out=tmp_path, progress=False).metrics
    assert m['loss_recovered'] >= .96 and m['l0'] <= 16 and m['dead_fraction'] < .05

@pytest.mark.slow
def test_the_world_quickstart_finds_what_was_planted(tmp_path):
    found = quickstart(out=tmp_path, progress=False).metrics['concepts']
    planted = [c for c in found if c['planted']]
    assert len(planted) >= 5 and len(found) > len(planted)
    for c in planted: assert c['SAE']['auroc'] >= .90 and c['random SAE']['interval'][1] < c['SAE']['auroc'], c
