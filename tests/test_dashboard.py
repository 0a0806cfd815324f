"The dashboard as people meet it: a page of Voila's in a real browser, and what its buttons say when they cannot."
import json, os, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path

import numpy as np, pandas as pd, pytest

from saebook import classify, dashboard as db, tables
from saebook.classify import ClassifyConfig, reopen, run_classify
from saebook.cli import main
from saebook.core import BadInput
from saebook.dashboard import Dashboard, audit, chosen_rows, feature_rule
from saebook.results import Results

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp('run')
    cfg = ClassifyConfig(models=[dict(name='world', layers=[0, 2], saes='train', train=dict(n=128, steps=60))], datasets=[dict(name='world', config_name=l, limit=84) for l in ('en', 'de')],
                         settings=dict(C=[1.], prune=[0.], controls=['majority', 'TF-IDF', 'hidden', 'shuffled']))
    return out, run_classify(cfg, out, progress=False)

def test_an_opened_row_says_what_the_table_says(run):
    out, r = run
    for i in (r.best(reader='logistic', dataset='world/en'), r.best(reader='tree', dataset='world/de'), r.best(row='hidden')):
        o, said = reopen(out, i), r.said(i)
        assert set(said.row) == set(o.split.test) and (o.probe.predict(o.X[said.row.to_numpy()]) == said.said.to_numpy()).all()
    f = r.frame
    with pytest.raises(BadInput, match='reads no features'): reopen(out, int(f.index[f.row == 'TF-IDF'][0]))
    with pytest.raises(BadInput, match='shuffled labels'): reopen(out, int(f.index[f.row == 'shuffled'][0]))
    with pytest.raises(BadInput, match='there are rows 0 to'): reopen(out, 999)

def test_the_tokens_of_a_feature_add_up_to_what_was_pooled(run):
    out, r = run
    o = reopen(out, r.best(reader='logistic', dataset='world/en'))
    feature = int(np.asarray(o.X.sum(0)).argmax())
    for i in o.split.test[:5]:
        pieces, amount = o.tokens(i, feature)
        assert len(pieces) == len(amount) and abs(amount.mean().item() - o.X[i, feature]) < 1e-4 # pooling is the mean

def test_a_planted_feature_is_missed_and_random_ones_are_not():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    X = (rng.random((400, 60)) < .3).astype(np.float32); X[:, 7] = y*(rng.random(400) < .95)
    from scipy import sparse
    from saebook.estimators import make_probe
    rows = pd.DataFrame(dict(id=range(400), text='x', label=np.where(y, 'yes', 'no')))
    split = tables.Split(0, np.arange(200), np.arange(200, 250), np.arange(250, 400))
    o = classify.Opened(dict(row='SAE'), rows, sparse.csr_matrix(X), split, make_probe().fit(X[:250], rows.label[:250]))
    t = audit(o, 7).set_index('class')
    assert t.difference['all'] < -.3 and t.random_low['all'] > t.before['all'] - .1
    rule = feature_rule(o, 7, 'yes', .5).set_index('texts')
    assert rule.precision['judging'] == 1 and .85 < rule.recall['judging'] < 1

def test_several_runs_and_imported_results_side_by_side(run):
    out, r = run
    board = Dashboard({'first': out, 'second': r})
    assert 'run' in board.choice and len(board.row.options) == 2*len(r.cells)
    board.choice['run'].value = 'second'
    assert {v[0] for _, v in board.row.options} == {'second'} and all('second' in t for t, _ in board.row.options)
    board.open_row(); assert 'results alone' in board.state.value
    plain = Results([dict(of=dict(dataset='d', model='m', layer=3, row='SAE', reader='logistic', pool='sum'), f1=.5, accuracy=.5, low=None, high=None, validation=None, size=None, chosen='', classes={'a': dict(precision=1., recall=.5, f1=.6, support=3)})], dict(d=dict(name='d', classes=['a', 'b'])))
    shown = Dashboard(plain)
    assert 'precision' in shown.classes.value and not bytes(shown.confusion.value) # no predictions, no confusion

def test_what_a_field_cannot_do_is_said_in_it(run):
    board = Dashboard(run[0])
    board.row.value = next(v for t, v in board.row.options if 'TF-IDF' in t)
    board.open_row(); assert 'reads no features' in board.state.value
    board.row.value = next(v for t, v in board.row.options if 'SAE, layer' in t and 'logistic' in t)
    board.open_row()
    board.feature.value = '99999'; assert 'there are 0 to 127' in board.rule.value
    board.feature.value = 'seven'; assert 'is no feature' in board.rule.value
    board.gone.value = (); board.ask.click(); assert 'Choose features' in board.audited.value
    with pytest.raises(BadInput, match='is not there'): Dashboard('nowhere')
    with pytest.raises(BadInput, match='no results'): Dashboard({})

def test_a_threshold_is_chosen_on_texts_that_do_not_judge(run, monkeypatch):
    "The picture and where the slider begins come from the fitted side; and a row that is opened is drawn once."
    out, r = run
    board, drawn, draw = Dashboard(out), [], db.plot_feature
    monkeypatch.setattr(db, 'plot_feature', lambda *a: drawn.append(a) or draw(*a))
    board.row.value = ('run', r.best(reader='logistic', dataset='world/en'))
    board.open_row()
    assert len(drawn) == 1
    row, feature = drawn[0][0], drawn[0][1]
    x = db._column(row, feature)[row.split.known]
    assert board.threshold.value == pytest.approx(np.median(x[x > 0]))
    shares = draw(row, feature, board.label.value).lines[0].get_ydata()
    mine = x[(row.rows.label == board.label.value).to_numpy()[row.split.known]]
    assert shares[0] == pytest.approx((mine > 0).mean())
    board.threshold.value = board.threshold.max/2
    assert len(drawn) == 2

def test_most_of_the_inputs_cannot_be_left_out(run):
    out, r = run
    o = reopen(out, r.best(reader='logistic', dataset='world/en'))
    with pytest.raises(BadInput, match='give half of them at most'): audit(o, range(65))
    assert len(audit(o, range(64), controls=2)) == 8

def test_nothing_of_a_row_is_left_where_no_row_fits(run):
    _, r = run
    cells = [dict(c, of=dict(c['of'], model='one' if c['of']['dataset'] == 'world/en' else 'two')) for c in r.cells]
    board = Dashboard(Results(cells, r.datasets))
    assert 'precision' in board.classes.value and all('one' in t or 'two' in t for t, _ in board.row.options)
    board.choice['dataset'].value = 'world/en'; board.choice['model'].value = 'two'
    assert board.row.value is None and not board.classes.value and not bytes(board.confusion.value) and not bytes(board.picture.value)

def test_an_interrupt_of_the_page_ends_as_shells_expect(run, monkeypatch, capsys):
    def stop(*a, **kw): raise KeyboardInterrupt
    monkeypatch.setattr(db, 'serve', stop)
    assert main(['dashboard', str(run[0])]) == 130 and 'the page is closed' in capsys.readouterr().err

def test_the_page_runs_where_it_was_asked_for(run, monkeypatch, tmp_path):
    pytest.importorskip('voila')
    code = []
    monkeypatch.setattr(db.subprocess, 'run', lambda cmd: code.append(''.join(json.loads(Path(cmd[3]).read_text())['cells'][0]['source'])) or subprocess.CompletedProcess(cmd, 0))
    monkeypatch.chdir(tmp_path)
    assert db.serve(os.path.relpath(run[0]), browser=False) == 0
    assert code[0].index(f'os.chdir({str(tmp_path)!r})') < code[0].index('from saebook') and str(run[0]) in code[0]

def _free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def until(f, seconds=90):
    end = time.time() + seconds
    while not f(): assert time.time() < end; time.sleep(.3)

@pytest.mark.browser
def test_the_page_of_voila_answers(run, browser, tmp_path):
    pytest.importorskip('voila')
    port = _free_port()
    code = f'from saebook.cli import main; main({["dashboard", str(run[0]), f"--port={port}", "--no-browser"]})'
    server = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(120):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/static/', timeout=1); break
            except urllib.error.HTTPError: break
            except OSError: assert server.poll() is None; time.sleep(.5)
        page = browser.new_page(viewport=dict(width=1300, height=1000))
        page.goto(f'http://127.0.0.1:{port}/', timeout=120_000)
        image = page.locator('.jp-OutputArea img, .widget-image').first
        image.wait_for(timeout=120_000)
        was = image.get_attribute('src')
        layers = page.get_by_label('layer')
        layers.select_option(label='2')
        until(lambda: image.get_attribute('src') != was)
        page.screenshot(path=tmp_path/'compare.png')
        page.get_by_label('reader').select_option(label='tree')
        rows = page.get_by_label('row', exact=True)
        until(lambda: all('tree' in o or 'majority' in o for o in rows.locator('option').all_inner_texts()))
        rows.select_option(label=next(o for o in rows.locator('option').all_inner_texts() if 'SAE,\xa0layer\xa02' in o)) # a select shows its spaces as they are
        page.get_by_role('tab', name='Tree').click()
        page.locator('pre:visible', has_text='rows').first.wait_for(timeout=60_000)
        page.screenshot(path=tmp_path/'tree.png')
        page.get_by_role('tab', name='Feature').click()
        page.get_by_role('button', name='Open this row').click()
        page.get_by_text('Not above').wait_for(timeout=120_000)
        page.screenshot(path=tmp_path/'feature.png')
    finally:
        os.killpg(server.pid, 15); server.wait(20)
