"Classification: real text with known bars, one file in, equal tables out, killed and resumed, other languages and other models."
import json, os, signal, subprocess, sys
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch

from saebook import classify, readings, results, sites, tables
from saebook.classify import ClassifyConfig, plan, run_classify
from saebook.cli import main
from saebook.core import BadInput, configured, read_config, read_json, write_json
from saebook.results import Results, Settings, from_arrays, judge
from saebook.sae import SAE
from saebook.tables import f1_interval, labelled, macro_f1, make_splits, nadeau_bengio, paired_difference, read_table
from saebook.world import World

TFIDF = dict(row='TF-IDF', reader='logistic')

def sib(shared, *languages):
    return {l: labelled(read_table(shared(f'data/sib200/{l}.csv')), id='id', split='split', name=l) for l in languages}

# --- the known bars

def test_letters_know_seven_topics_of_real_text(shared):
    rows, = sib(shared, 'eng_Latn').values()
    r = judge(rows.text, rows, make_splits(rows), TFIDF)
    assert r['f1'] == pytest.approx(.712, abs=.02) and r['low'] < .69 < .73 < r['high']
    assert judge(None, rows, make_splits(rows), dict(row='majority', reader='–'))['f1'] == pytest.approx(.057, abs=.001)

def test_letters_know_twelve_intents(shared):
    rows = labelled(read_table(shared('data/banking77/banking77_12.csv')), id='id', split='split')
    assert judge(rows.text, rows, make_splits(rows), TFIDF)['f1'] == pytest.approx(.940, abs=.02)

def test_a_script_without_spaces_is_read_by_characters():
    assert results.tfidf(['我们去北京', '天气很好']).analyzer == 'char' and results.tfidf(['we go to Paris', 'vélo à Москва']).analyzer == 'char_wb'

# --- an experiment of a file, on a real small model

YAML = """
settings: {cv: null, readers: [logistic], C: [0.1, 10], batch_size: 32, length: 96}
models:
  - {name: %(model)s, saes: {2: [%(sae)s]}}
datasets:
  - {path: %(table)s, id_field: id, split_field: split, limit: 500}
classification_params: {top_n_values: [0, 5], binarize_values: [null]}
"""

@pytest.fixture(scope='module')
def setting(tmp_path_factory, shared):
    "A file, its model, an SAE of it, and a table: (folder, text of the file)."
    d = tmp_path_factory.mktemp('classify')
    SAE(64, 256, k=8, seed=1).save_pretrained(d/'sae')
    read_table(shared('data/sib200/eng_Latn.csv')).to_csv(d/'eng.csv', index=False)
    return d, YAML % dict(model=shared('models/stories260K'), sae=d/'sae', table=d/'eng.csv')

def config(folder, text, name='c.yaml'):
    (folder/name).write_text(text, encoding='utf-8')
    return configured(ClassifyConfig, {k: v for k, v in read_config(folder/name).items() if k != 'kind'})

def calls(f):
    "What `f` gives, and the number of forward passes that reading took."
    n, read = [], sites.read
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sites, 'read', lambda model, inputs, *a, **kw: n.append(isinstance(inputs, dict)) or read(model, inputs, *a, **kw))
        return f(), sum(n) # a tensor of one token is read to learn a width

@pytest.fixture(scope='module')
def run(setting):
    d, text = setting
    asked = plan(config(d, text), d/'run')
    found, n = calls(lambda: run_classify(config(d, text), d/'run', progress=False))
    return asked, found, n

def test_the_plan_says_what_reading_costs(run):
    asked, found, n = run
    assert n == asked.reading.passes.sum() and asked.counts == {'done': 0, 'to do': len(found.cells), 'failed': 0}
    assert asked.reading.texts.sum() == 500 and 500*10 < asked.reading.tokens.sum() < 500*96

def test_every_table_has_every_row(run):
    _, found, _ = run
    assert set(found.frame.row) == set(results.ROWS) and not found.failed
    f = found.frame.set_index(['row', 'pool'])
    assert f.f1['hidden', 'sum'] > .1 and f['size']['random SAE', 'top 5'] == f['size']['SAE', 'top 5'] == 256
    for i, c in enumerate(found.cells): # what stands in the table is what was said
        said = found.said(i)
        names = found.datasets['eng']['classes']
        code = {c: j for j, c in enumerate(names)}
        scores = [macro_f1(s.true.map(code).to_numpy(), s.said.map(code).to_numpy(), 7) for _, s in said.groupby('repeat')]
        assert np.mean(scores) == pytest.approx(c['f1'])

def test_shuffled_labels_leave_chance(run):
    "Macro F1 of saying classes at random, as often as they are said and are true."
    _, found, _ = run
    for i in found.frame.index[found.frame.row == 'shuffled']:
        M = found.confusion(i).to_numpy()
        p, q = M.sum(1)/M.sum(), M.sum(0)/M.sum()
        assert found.frame.f1[i] == pytest.approx(np.divide(2*p*q, p + q).mean(), abs=.05) and found.frame.f1[i] == pytest.approx(1/7, abs=.05)

def test_the_same_file_twice_gives_equal_tables(tmp_path, setting, run):
    d, text = setting
    again = run_classify(config(d, text), tmp_path/'again', progress=False)
    assert again.frame.equals(run[1].frame) and again.cells == run[1].cells
    assert (tmp_path/'again'/'results.csv').read_bytes() == (d/'run'/'results.csv').read_bytes()

def test_rows_in_another_order_give_equal_tables(tmp_path, setting, run):
    d, text = setting
    pd.read_csv(d/'eng.csv').sample(frac=1, random_state=3).to_csv(tmp_path/'eng.csv', index=False)
    other = run_classify(config(tmp_path, text.replace(str(d/'eng.csv'), str(tmp_path/'eng.csv'))), tmp_path/'run', progress=False)
    assert other.frame.equals(run[1].frame)

def test_a_row_more_costs_only_that_row(setting, run):
    d, text = setting
    more = config(d, text.replace('binarize_values: [null]', 'binarize_values: [null, 1.0]'))
    assert plan(more, d/'run').counts == {'done': len(run[1].cells), 'to do': 6, 'failed': 0}
    found, n = calls(lambda: run_classify(more, d/'run', progress=False))
    assert n == 0 and len(found.cells) == len(run[1].cells) + 6

killed = """
import os, sys
from saebook import classify, sites
from saebook.core import configured, read_config
log, read, judge, die = sys.argv[3], sites.read, classify.judge, int(sys.argv[4])
def note(what):
    with open(log, 'a') as f: f.write(what + '\\n')
def reading(model, inputs, *a, **kw):
    if isinstance(inputs, dict): note('pass')
    return read(model, inputs, *a, **kw)
def judging(*a, **kw):
    r = judge(*a, **kw); note('row')
    if open(log).read().count('row') == die: os.kill(os.getpid(), 9)
    return r
sites.read, classify.judge = reading, judging
classify.run_classify(configured(classify.ClassifyConfig, read_config(sys.argv[1])), sys.argv[2], progress=False)
"""

def test_killed_and_resumed_is_equal_and_reads_nothing_twice(tmp_path, setting, run):
    d, text = setting
    (tmp_path/'c.yaml').write_text(text); (tmp_path/'go.py').write_text(killed)
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(Path(classify.__file__).resolve().parents[1]))
    go = lambda die: subprocess.run([sys.executable, str(tmp_path/'go.py'), str(tmp_path/'c.yaml'), str(tmp_path/'run'), str(tmp_path/'log'), str(die)], env=env, capture_output=True, text=True, timeout=300)
    assert go(7).returncode == -signal.SIGKILL and not (tmp_path/'run'/'results.json').exists()
    last = go(0)
    assert last.returncode == 0, last.stderr[-2000:]
    log = (tmp_path/'log').read_text().split()
    assert log.count('pass') == run[2] and log.count('row') == len(run[1].cells) + 1 # the one whose file was not yet written
    assert Results.load(tmp_path/'run').frame.equals(run[1].frame)

def test_the_command_line_reads_and_classifies_apart(tmp_path, setting, capsys):
    d, text = setting
    (tmp_path/'c.yaml').write_text('kind: classify\n' + text.replace('top_n_values: [0, 5]', 'top_n_values: [0]').replace('limit: 500', 'limit: 120'))
    go = lambda *a: (main(['run', str(tmp_path/'c.yaml'), '--out', str(tmp_path/'run'), '--quiet', *a]), capsys.readouterr())
    code, said = go('--classify-only')
    assert code == 2 and 'has not been read with' in said.err and said.err.count('\n') == 1
    assert go('--extract-only', '--classify-only')[0] == 2
    code, said = go('--extract-only')
    assert code == 0 and 'to be read: nothing' in said.out and not (tmp_path/'run'/'results.json').exists()
    (code, said), n = calls(lambda: go('--classify-only'))
    assert code == 0 and n == 0 and 'random SAE' in said.out and (tmp_path/'run'/'report.html').is_file()

def test_a_reader_of_real_depth(tmp_path, setting):
    d, text = setting
    cfg = config(tmp_path, text.replace('readers: [logistic]', 'readers: [tree], tree_depth: 3, prune: [0]').replace('top_n_values: [0, 5]', 'top_n_values: [0]'))
    found = run_classify(cfg, tmp_path/'run', progress=False)
    trees = [found.tree(i) for i in range(len(found.cells)) if 'tree' in found.cells[i]]
    assert max(t.depth.max() for t in trees) == 3
    i = found.best(reader='tree')
    assert found.tree_text(i).count('\n') + 1 == len(found.tree(i)) and found.tree(i).query('depth == 0').samples.item() == found.tree(i)[found.tree(i).feature.isna()].samples.sum()

def test_the_page_stands_alone(tmp_path, run, browser):
    page, outside = browser.new_page(), []
    page.on('request', lambda r: outside.append(r.url) if not r.url.startswith('file:') else None)
    errors = []; page.on('pageerror', lambda e: errors.append(str(e)))
    page.goto(run[1].to_html(tmp_path/'r.html').resolve().as_uri())
    assert not outside and not errors and page.locator('svg').count() == 1 and page.locator('table').count() >= 2
    page.locator('summary').last.click()
    assert 'science/technology' in page.locator('details').last.inner_text()

def test_results_of_a_wide_probe_are_small(tmp_path):
    g, y = np.random.default_rng(0), np.arange(1000) % 5
    from scipy import sparse
    X = sparse.random(1000, 16384, .02, 'csr', dtype=np.float32, random_state=0, data_rvs=lambda n: g.exponential(size=n).astype(np.float32)) + sparse.csr_matrix((np.ones(1000, np.float32)*2, (range(1000), y)), (1000, 16384))
    rows = labelled(pd.DataFrame(dict(label=[f'class {c}' for c in y], id=range(1000))), text=None, id='id')
    i = rows.id.astype(int).to_numpy()
    cells = [judge(X[i], rows, s := make_splits(rows), dict(dataset='wide', row='SAE', reader=r), Settings(C=[1.], prune=[0.])) for r in ('logistic', 'tree')]
    path = Results(cells, dict(wide=results.data_record('wide', rows, s))).save(tmp_path/'r.json')
    assert path.stat().st_size < 50_000, path.stat().st_size
    back = Results.load(path)
    assert {back.top(0, 1).set_index('class').input[f'class {c}'] for c in range(5)} <= set(range(5)) and back.frame.f1[0] > .9

# --- splits and intervals

def test_repeated_and_grouped_splits():
    g = np.random.default_rng(0)
    df = pd.DataFrame(dict(id=range(600), text=[f't{i}' for i in range(600)], label=g.choice(list('aaabbc'), 600), group=g.integers(90, size=600)))
    rows = labelled(df, id='id', group='group')
    splits = make_splits(rows, cv=5, seeds=(0, 1, 2))
    assert len(splits) == 15 and all(np.array_equal(s.dev, splits[0].dev) for s in splits)
    assert sorted(np.concatenate([s.test for s in splits[5:10]])) == sorted(set(range(600)) - set(splits[0].dev)) # all but the dev rows judge, once a deal
    share = rows.label.value_counts(normalize=True)
    for s in splits:
        assert not set(rows.group[s.test]) & set(rows.group[s.known]) and not set(rows.group[s.fit]) & set(rows.group[s.dev])
        assert (rows.label[s.test].value_counts(normalize=True) - share).abs().max() < .05
    assert set(map(tuple, (sorted(s.test) for s in splits[:5]))) != set(map(tuple, (sorted(s.test) for s in splits[5:10])))
    held, = make_splits(rows, test_size=.4)
    assert len(held.test)/600 == pytest.approx(.4, abs=.02) and len(held.dev)/600 == pytest.approx(.12, abs=.02)

@pytest.mark.parametrize('how', [dict(cv=5), dict(cv=3, seeds=(0, 1)), dict(test_size=.3, seeds=(0, 1, 2))])
def test_who_chooses_never_judges(how):
    rows = labelled(pd.DataFrame(dict(id=range(100), label=np.arange(100) % 2)), None, id='id')
    splits = make_splits(rows, **how)
    assert not set(splits[0].dev) & set(np.concatenate([s.test for s in splits])) and all(np.array_equal(s.dev, splits[0].dev) for s in splits)

def test_the_best_of_forty_readers_of_noise_is_no_better_than_chance(monkeypatch):
    "Forty readers (nearest class mean) of four random numbers each, a hundred rows with random labels. The best had .57 with dev rows dealt anew in each fold, .55 with one deal and its mean score over folds."
    class Nearest:
        n_features_in_ = 4
        def __init__(self, X, y): self.means = np.stack([X[y == c].mean(0) for c in (0, 1)])
        def __getitem__(self, i): return self
        def predict(self, X): return ((X[:, None] - self.means)**2).sum(-1).argmin(1)
    def fit(of, X, y, s, S): return Nearest(X[s.known], y[s.known]), '', macro_f1(y[s.dev], Nearest(X[s.fit], y[s.fit]).predict(X[s.dev]), 2)
    for where, name, f in ((results, 'fit_best', fit), (results, '_top', lambda *a: {}), (tables, 'f1_interval', lambda *a: (0, 1))): monkeypatch.setattr(where, name, f)
    best, chosen = [], []
    for draw in range(80):
        g = np.random.default_rng([5, draw])
        rows = labelled(pd.DataFrame(dict(id=range(100), label=g.permutation(np.arange(100) % 2))), None, id='id')
        splits = make_splits(rows, cv=5)
        r = Results([judge(X, rows, splits, dict(dataset='noise', row='SAE', reader='logistic')) for X in g.normal(size=(40, 100, 4))], {})
        f = r.frame.loc[r.best()]
        best.append(f.f1); chosen.append(f.validation)
    assert np.mean(best) == pytest.approx(.5, abs=.03) and np.mean(chosen) > .65 # on the rows that choose it looks well

@pytest.mark.parametrize('labels, groups, split, says', [
    ('aabb'*3, '000011112222', '', 'is judged in a split that fits on none of its groups|all .* of one class|no row of'), ('a'*9 + 'bbb', 'gggggggggxyz', '', "class 'a' of t has 1 group"), ('ab'*6, '012345'*2, 'train '*10 + 'test test', None), ('aaaaaabbbbbb', None, 'train '*6 + 'test '*6, 'in test and not in train'),
    ('aaaaaaaaaaab', None, 'train '*9 + 'test test dev', 'of one class')])
def test_classes_that_cannot_be_on_every_side_are_told_in_one_sentence(labels, groups, split, says):
    df = pd.DataFrame(dict(text=[f't{i}' for i in range(12)], label=list(labels)))
    if groups: df['group'] = list(groups)
    if split: df['split'] = split.split()
    go = lambda: judge(rows.text, rows, make_splits(rows, cv=None if split else 3, name='t'), TFIDF, Settings(C=[1.]))
    if groups and split:
        with pytest.raises(BadInput, match='a group belongs to one side'): labelled(df, group='group', split='split')
        return
    rows = labelled(df, group='group' if groups else None, split='split' if split else None)
    with pytest.raises(BadInput, match=says) as e: go()
    assert '\n' not in str(e.value)

def test_intervals_hold_what_they_promise():
    "A classifier that is right with a known probability by class; its macro F1 in an endless sample is known."
    k, share, right = 3, np.array([.5, .3, .2]), np.array([.9, .7, .5])
    def draw(n, g):
        y = g.choice(k, n, p=share)
        return y, np.where(g.random(n) < right[y], y, (y + g.integers(1, k, n)) % k)
    true = macro_f1(*draw(2_000_000, np.random.default_rng(0)), k)
    inside = 0
    for seed in range(200):
        y, said = draw(150, np.random.default_rng([1, seed]))
        low, high = f1_interval(y, said, k, np.arange(150), 400)
        inside += low <= true <= high
    assert inside/200 >= .88, inside/200

def test_differences_are_paired():
    g = np.random.default_rng(0)
    y = g.integers(2, size=500); a = np.where(g.random(500) < .7, y, 1 - y); b = a.copy(); b[:20] = y[:20] # better on a few rows
    d, low, high = paired_difference(y, b, a, 2, np.arange(500))
    one = f1_interval(y, a, 2, np.arange(500))
    assert 0 <= low <= d <= high and high - low < .5*(one[1] - one[0])
    assert paired_difference(y, a, a, 2, np.arange(500)) == (0, 0, 0)
    assert nadeau_bengio([0, 0, 0], 400, 100) == 1 and nadeau_bengio([.2, .21, .19, .2, .2], 400, 100) < .001 and np.isnan(nadeau_bengio([.1], 4, 1))

# --- what cannot be done

@pytest.mark.parametrize('change, says', [
    (('batch_size', 'batch_sizes'), "unknown key of settings 'batch_sizes'"), (('length: 96', 'cv_folds: 5'), "the key 'cv_folds' of settings does nothing: write cv"), (('limit: 500', 'batch_size: 2'), "the key 'batch_size' of datasets[0] does nothing"),
    (('id_field: id', 'id_field: idd'), "did you mean 'id'"), (('split_field: split', 'text_field: body'), "unknown column of 'eng', text_field 'body'"), (('split_field: split', 'split_field: label'), 'give one of train'), (('[null]}', '[null]}\nbanana: 1'), "unknown key of ClassifyConfig 'banana'"),
    (('limit: 500', 'label_field: id, id_field: null'), 'in test and not in train'), (('top_n_values: [0, 5]', 'top_n_values: [-2]'), 'top_n -2'), (('saes: {2: [', 'saes: {x: ['), "unknown layer of saes"), (('C: [0.1, 10]', 'C: []'), 'C [] of settings'), (('C: [0.1, 10]', 'C: [1e-3]'), 'which YAML reads as a number'), (('/eng.csv', '/none.csv'), "there is no"),
    (('[null]}', '[null], extra_binarize_value: 1.0}'), 'without an extra_top_n'), (('[null]}', '[]}'), 'binarize_values []'), (('[logistic]', '[logistic, logistic]'), 'give each once'), (('C: [0.1, 10]', 'seeds: [1, 1]'), 'give each once'), (('saes: {', 'layers: [2, 2], saes: {'), 'give each once'),
    (('saes: {', 'widths: [16k], saes: {'), 'leave one out'), (('saes: {', 'train: {n: 64}, saes: {'), 'nothing is trained there'), (('saes: {', 'train: 3, saes: {'), 'train 3'), (('cv: null', 'cv: 3'), 'every data set names its own parts'), (('cv: null', 'test_size: 0.2'), 'every data set names its own parts'), (('cv: null', 'seeds: [0, 1]'), 'every data set names its own parts'),
    (('limit: 500', 'config_name: en'), 'a table has none'), (('limit: 500', 'split: test'), 'a table has none, give split_field'), (('- {name: ', '- {layers: [1], x: '), 'unknown key'), (('cv: null', 'base_save_dir: 5'), 'base_save_dir 5'), (('cv: null', 'balanced: maybe'), 'give true or false'), (('- {path', '- {name: a/b, path'), 'give a name on the hub or a path')])
def test_a_wrong_file_is_told_in_one_sentence(tmp_path, setting, change, says):
    text = setting[1].replace(*change, 1)
    assert text != setting[1]
    with pytest.raises(BadInput) as e: plan(config(tmp_path, text), tmp_path/'run')
    assert says in str(e.value) and '\n' not in str(e.value), e.value

def test_a_data_set_in_the_hubs_layout(tmp_path):
    d = tmp_path/'set'; d.mkdir()
    for s, n in dict(train=40, validation=12, test=12).items(): (d/f'{s}.jsonl').write_text('\n'.join(json.dumps(dict(prompt=f'{w} {i} {s}', type=w)) for i in range(n//2) for w in ('good', 'bad')))
    write = lambda split: f"settings: {{readers: [logistic], C: [1]}}\ndatasets:\n  - {{name: {d}, config_name: '', split: {split}, text_field: prompt, label_field: type}}\n"
    parts = run_classify(config(tmp_path, write('[train, validation, test]')), tmp_path/'parts', progress=False)
    assert parts.frame.row.tolist() == ['majority', 'TF-IDF'] and parts.frame.f1[1] == 1 and len(parts.said(1)) == 12
    folds = run_classify(config(tmp_path, write('train')), tmp_path/'folds', progress=False)
    assert len(folds.said(1)) == 32 # a fifth chooses

def test_words_and_numbers_of_a_table_stay_as_they_stand(tmp_path):
    (tmp_path/'t.csv').write_text('id,text,label,group\n007,None,yes,NA\n7,null,no,b\n08,NA,yes,c\n')
    rows = labelled(read_table(tmp_path/'t.csv'), id='id', group='group').set_index('id')
    assert rows.text.to_dict() == {'007': 'None', '7': 'null', '08': 'NA'} and rows.group['007'] == 'NA'
    (tmp_path/'t.jsonl').write_text('\n'.join(json.dumps(dict(id=i, text='x', label=l, date='2020-01-01')) for i, l in (('007', 1), ('7', 2), ('8', 1))))
    t = read_table(tmp_path/'t.jsonl')
    assert set(labelled(t, id='id').id) == {'007', '7', '8'} and set(labelled(t, id='id').label) == {'1', '2'} and t.date[0] == '2020-01-01'
    (tmp_path/'t.csv').write_text('id,text,label,group\n1,a,yes,\n2,b,no,x\n,c,no,x\n')
    with pytest.raises(BadInput, match="row 0 of the table has nothing in 'group', which group_field names"): labelled(read_table(tmp_path/'t.csv'), group='group')
    with pytest.raises(BadInput, match="row 2 of the table has nothing in 'id', which id_field names"): labelled(read_table(tmp_path/'t.csv'), id='id')
    (tmp_path/'t.csv').write_text('text,label\na,yes\n,no\n')
    with pytest.raises(BadInput, match='row 1 of the table has no text'): labelled(read_table(tmp_path/'t.csv'))
    with pytest.raises(BadInput, match="there is no 'data/none.csv'"): read_table('data/none.csv') # and the hub is not asked for it

# --- what is kept, and found again

SMALL = dict(settings=dict(C=[1.], readers=['logistic'], controls=['hidden', 'PCA']), datasets=[dict(name='world', config_name='en', limit=70)])

@pytest.fixture
def two(tmp_path):
    "SAEs of two sites of one layer of the world's model: (folder, {site: path})."
    from saebook.world import load_taught
    model, _ = load_taught('base')
    return tmp_path, {w: SAE(128, 64, k=4, seed=0, site=sites.site(model, 1, w)).save_pretrained(tmp_path/'saes'/w) or tmp_path/'saes'/w for w in ('resid_post', 'mlp')}

def test_hidden_states_of_another_site_are_read_anew(two):
    d, paths = two
    at = lambda w: ClassifyConfig(**dict(SMALL, settings=dict(SMALL['settings'], base_save_dir=str(d/'store')), models=[dict(name='world', layers=[1], saes={1: str(paths[w])})]))
    made = {}
    for w in ('resid_post', 'mlp'):
        run_classify(at(w), d/'run', progress=False)
        job = classify._Job(at(w), d/'run')
        assert plan(at(w), d/'run').counts['to do'] == 0
        file, = job.readings(next(of for of, _ in job.cells if of['row'] == 'hidden')).values()
        made[w] = readings._Store(file, {}).get(0)
    assert made['mlp'].shape == made['resid_post'].shape and abs(made['mlp'] - made['resid_post']).max() > .1

def test_an_sae_that_is_trained_here_is_named_by_its_site_too():
    name = lambda location: classify._saes(classify.ModelSpec('world', [1], saes='train'), Settings(sae_location=location))[0].print
    assert name('res') != name('mlp')

def test_a_row_of_components_is_opened_with_its_components(two):
    d, paths = two
    found = run_classify(ClassifyConfig(**dict(SMALL, models=[dict(name='world', layers=[1], saes={1: str(paths['mlp'])})])), d/'run', progress=False)
    i = found.best(row='PCA')
    o = classify.reopen(d/'run', i)
    assert o.X.shape == (70, found.frame['size'][i]) and set(found.top(i).input) <= set(range(o.X.shape[1]))
    assert (o.probe.predict(o.X[o.split.test]) == found.said(i).said.to_numpy()).all()

def test_classes_and_data_sets_may_be_called_as_secrets_are(tmp_path):
    d = tmp_path/'home'/'me'; d.mkdir(parents=True)
    pd.DataFrame([dict(text=f'{w} {i}', label=w) for i in range(8) for w in ('reset_password', 'access_token')]).to_csv(d/'my_tokens.csv', index=False)
    found = run_classify(ClassifyConfig(settings=dict(C=[1.], readers=['logistic']), datasets=[dict(path=str(d/'my_tokens.csv'))]), tmp_path/'run', progress=False)
    back = Results.load(tmp_path/'run')
    i = back.best(row='TF-IDF')
    assert list(back.datasets) == ['my_tokens'] and set(back.confusion(i)) == {'reset_password', 'access_token'} == set(back.per_class(i)['class']) and len(back.top(i))
    home = '/'.join(['', 'home', 'me']) # as on somebody's machine
    back.config['api_key'] = 'abc'; back.failed.append(dict(of=dict(row='SAE', dataset='my_tokens'), why=f'no {home}/sae'))
    text = back.save(tmp_path/'r.json').read_text()
    assert '"abc"' not in text and f'{home}/sae' not in text

def test_a_folder_is_a_data_set_by_its_own_name(tmp_path):
    (tmp_path/'set').mkdir()
    assert classify.DataSpec(name=str(tmp_path/'set')).title == 'set'
    sae = SAE(128, 64, k=4)
    for a in 'ab': sae.save_pretrained(tmp_path/a/'sae')
    names = [s.name for s in classify._saes(classify.ModelSpec('world', saes={1: [str(tmp_path/'a'/'sae'), str(tmp_path/'b'/'sae')]}), Settings())]
    assert names == ['a/sae', 'b/sae'] # as short as tells them apart

@pytest.mark.parametrize('home', [False, True])
def test_a_run_is_opened_from_anywhere(two, monkeypatch, home):
    "Paths that are relative to where the run was started, or redacted to ~."
    d, paths = two
    start = d/'start'; start.mkdir()
    rows = World(0).topics(10).query("language == 'en'"); rows.to_csv(start/'t.csv', index=False)
    os.rename(d/'saes', start/'saes'); monkeypatch.chdir(start)
    if home: monkeypatch.setenv('HOME', str(start))
    at = (lambda p: f'~/{p}') if home else lambda p: p
    cfg = ClassifyConfig(settings=dict(SMALL['settings'], base_save_dir=at('store')), models=[dict(name='world', saes={1: [at('saes/mlp')]})], datasets=[dict(path=at('t.csv'), label_field='topic', id_field='id', split_field='split')])
    found = run_classify(cfg, 'runs/one', progress=False)
    kept = read_json('runs/one/config.json')
    assert home or str(d) not in json.dumps(kept) and kept['started'] == '../..'
    if home: write_json('runs/one/config.json', json.loads(json.dumps(kept).replace(str(start), '~')))
    monkeypatch.chdir('/')
    o = classify.reopen(start/'runs'/'one', i := found.best())
    assert (o.probe.predict(o.X[o.split.test]) == found.said(i).said.to_numpy()).all() and len(o.tokens(0, 0)[0])

def test_what_is_damaged_is_made_again_or_told(two):
    d, paths = two
    cfg = ClassifyConfig(**dict(SMALL, models=[dict(name='world', saes={1: str(paths['mlp'])})]))
    found = run_classify(cfg, d/'run', progress=False)
    cells, shards = sorted((d/'run'/'cells').glob('*.json')), sorted((d/'run'/'activations').glob('*/*.safetensors'))
    cells[0].write_text('{"of": {'); cells[1].write_text('[]'); cells[2].write_text('{"of": {}, "f1": 1}')
    assert plan(cfg, d/'run').counts == {'done': len(cells) - 3, 'to do': 3, 'failed': 0}
    assert run_classify(cfg, d/'run', progress=False).frame.equals(found.frame)
    for f in shards: f.write_bytes(f.read_bytes()[:-4] + b'junk')
    with pytest.raises(BadInput, match='is damaged'): classify.reopen(d/'run', found.best())
    whole = (d/'run'/'results.json').read_text()
    for text in ('{', '[]', '{"schema": "saebook-classify/1"}', '{"schema": "saebook-classify/1", "cells": [1], "datasets": {}}', whole.replace('"datasets"', '"data_sets"'), whole.replace('"world/en":', '"other":')):
        (d/'run'/'results.json').write_text(text)
        with pytest.raises(BadInput) as e: Results.load(d/'run')
        assert '\n' not in str(e.value)

def test_two_models_are_told_apart():
    cell = lambda m: dict(of=dict(dataset='d', model=m, layer=1, row='SAE', sae='s', pool='mean', reader='logistic'), f1=.5, accuracy=.5, low=None, high=None, validation=.5, size=3, chosen='', classes={})
    r = Results([cell('gpt2'), cell('pythia')], dict(d=dict(name='d', classes=['a', 'b'])))
    assert [t.get_text() for t in r.plot().get_yticklabels()] == [r._title(0), r._title(1)] or {t.get_text() for t in r.plot().get_yticklabels()} == {r._title(0), r._title(1)}
    assert 'gpt2' in r._title(0) and 'gpt2' not in Results(r.cells[:1], r.datasets)._title(0)

@pytest.mark.parametrize('spec, says', [(dict(name=5, layers=[1]), 'name 5'), (dict(name='world', layers=[1], saes=3), 'saes 3'), (dict(name='gpt2', layers=[1], saes='train', train=dict(text='nowhere.txt')), "the text 'nowhere.txt' of train"), (dict(name='world', layers=[1], saes='train', train=3), 'train 3'), (dict(name='world', layers=[1], saes='train', train=dict(n='many')), "n 'many'"), (dict(name='world', layers=[1], widths=[16]), 'widths 16')])
def test_a_wrong_model_is_told_in_one_sentence(spec, says):
    with pytest.raises(BadInput) as e: ClassifyConfig(models=[spec], datasets=[dict(name='world', config_name='en')])
    assert says in str(e.value) and '\n' not in str(e.value)

# --- MOSAIC's results, other models, other kinds of input

def mosaic(path, f1=.5059, hidden=False):
    probe = dict(performance=dict(accuracy=.55, cross_validation=dict(mean_accuracy=.541, std_accuracy=.016, fold_scores=[.54]*5)), class_metrics={c: dict(precision=.5, recall=.5, f1_score=f1, support=50.) for c in ('Correct', 'Incorrect')},
                 aggregated_metrics={'macro avg': dict(precision=.5, recall=.5, f1_score=f1, support=100.)}, feature_analysis=dict(importance_scores=[0.]*10, top_features=[dict(index=3, score=.7, name='Feature 3')]))
    return write_json(path, dict(metadata=dict(model=dict(name='google/gemma-2-2b', layer=12, type='llm'), dataset=dict(name='AIM-Harvard/google_gemma_2_2b_boolq', hidden=hidden), training=dict(test_size=.2, random_state=42, cv_folds=5),
                                           args=dict(top_n=20, binarize_value=None, width='16k', dataset_split='train', dataset_config_name=None), timestamp='2025-01-10T15:54:12', class_names=['Correct', 'Incorrect']), models=dict(linearProbe=probe)))

def test_mosaics_results_stand_in_the_same_table(tmp_path):
    mosaic(tmp_path/'boolq'/'layer_12'/'sae_classifier_results.json'); mosaic(tmp_path/'boolq'/'layer_12'/'hidden_classifier_results.json', .6, True)
    r = Results.from_mosaic(tmp_path)
    f = r.frame.set_index('row')
    assert f.f1['SAE'] == .5059 and f.pool['SAE'] == 'top 20' and f.sae['SAE'] == '16k' and f.layer['hidden'] == 12 and f.low.isna().all()
    i = list(r.frame.row).index('SAE')
    assert '0.506' in r._repr_html_() and r.per_class(i).f1.tolist() == [.5059]*2 and r.top(i).input.tolist() == [3]
    assert Results.load(r.save(tmp_path/'r.json')).frame.equals(r.frame) and 'boolq' in r.to_html(tmp_path/'r.html').read_text()
    with pytest.raises(BadInput, match='imported with its scores alone'): r.confusion(i)
    with pytest.raises(BadInput, match='use Results.from_mosaic'): Results.load(tmp_path/'boolq'/'layer_12'/'sae_classifier_results.json')
    (tmp_path/'x_classifier_results.json').write_text('{"metadata": {}}')
    with pytest.raises(BadInput, match='not in the form'): Results.from_mosaic(tmp_path/'x_classifier_results.json')

def test_image_tokens_of_a_vision_language_model_go_through_a_text_sae():
    "A small random LLaVA: images that are bright at one side, its image tokens at a block of the language model, an SAE of that block."
    import transformers as tf
    torch.manual_seed(0)
    text = tf.LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
    vision = tf.CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8)
    model = tf.LlavaForConditionalGeneration(tf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)).eval()
    g = torch.Generator().manual_seed(0)
    side = torch.arange(60) % 2
    images = torch.randn(60, 3, 16, 16, generator=g)*.1
    images[side == 0, :, :, :8] += 2; images[side == 1, :, :, 8:] += 2
    n = 4 # patches
    ids = torch.tensor([[1] + [5]*n + [7, 8]]).expand(60, -1)
    at = sites.site(model.model.language_model, 1)
    h = sites.read(model, dict(input_ids=ids, pixel_values=images, attention_mask=torch.ones_like(ids)), sites.Site(f'model.language_model.{at.path}'))
    h, = h.values()
    r = from_arrays(h, ['left' if s == 0 else 'right' for s in side], SAE(32, 128, k=8), ids == 5, ['mean', 'count', 'top 2'], settings=Settings(readers=['logistic'], C=[1.], cv=3), name='images')
    assert h.shape == (60, 7, 32) and set(r.frame.row) == set(results.ROWS) - {'TF-IDF'} and r.frame.f1[r.frame.row == 'hidden'].min() > .9
    with pytest.raises(BadInput, match='an SAE of width 16 was given for activations of width 32'): from_arrays(h, side.tolist(), SAE(16, 32, k=2))

def test_fewer_features_are_used_with_l1(run, setting):
    d, _ = setting
    o = classify.reopen(d/'run', run[1].best())
    rows, X, s = o.rows, o.X, o.split
    used = lambda **kw: (results.fit_best(dict(row='SAE', reader='logistic'), X, pd.factorize(rows.label, sort=True)[0], s, Settings(C=[1.], **kw))[0][-1].coef_ != 0).mean()
    assert used(penalty='l1') < .5*used()

def test_gemma_scope_is_found_by_width(monkeypatch):
    import huggingface_hub
    files = [f'layer_12/width_16k/average_l0_{n}/params.npz' for n in (22, 82, 176, 41)] + ['layer_12/width_65k/average_l0_99/params.npz', 'layer_1/width_16k/average_l0_100/params.npz']
    monkeypatch.setattr(huggingface_hub, 'list_repo_files', lambda repo: files)
    assert classify._gemma_scope('google/gemma-2-2b', 'res', 12, '16k') == 'google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82'
    assert classify._which('google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82') == ('google/gemma-scope-2b-pt-res', 'layer_12/width_16k/average_l0_82')
    with pytest.raises(BadInput, match='has no layer_3/width_16k'): classify._gemma_scope('google/gemma-2-2b', 'res', 3, '16k')
    with pytest.raises(BadInput, match='give saes'): classify._gemma_scope('gpt2', 'res', 3, '16k')
