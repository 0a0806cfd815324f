"Estimators: scikit-learn's own checks, parity with the textbook, what a probe says of itself, and files that run nothing."
import copy, pickle, re, subprocess, sys, zipfile

import numpy as np, pandas as pd, pytest, torch
from scipy import sparse, stats
from sklearn.base import clone
from sklearn.decomposition import NMF, PCA
from sklearn.ensemble import BaggingClassifier, GradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_selection import chi2, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from saebook import estimators, sites
from saebook.core import BadInput
from saebook.estimators import (BY, Binarise, SAEFeatures, TextActivations, TopFeatures, contributions, load_probe, make_probe, probe_direction, save_probe, tree_html, tree_nodes,
                                tree_plot, tree_text)
from saebook.readings import Reading, collect
from saebook.sae import SAE, Transcoder
from saebook.world import World, load_taught

@parametrize_with_checks([SAEFeatures(), SAEFeatures(n=8, k=2, seed=1), Binarise(), Binarise(quantile=.5), *(TopFeatures(3, by) for by in BY)])
def test_scikit_learns_own_checks(estimator, check): check(estimator)

def test_scikit_learns_own_checks_of_a_given_sae_fail_where_they_bring_another_width_and_nowhere_else():
    got = check_estimator(SAEFeatures(SAE(10, 24, k=3).eval()), on_fail=None, on_skip=None)
    why = [str(r['exception'].__cause__ or r['exception'].__context__ or r['exception']) + str(r['exception']) for r in got if r['status'] == 'failed']
    assert all('to an SAE of width 10' in w for w in why), why
    assert sum(r['status'] == 'passed' for r in got) > 15

def data(classes=2, rows=300, n=60, seed=0, density=.1):
    "Sparse columns, of which the first of each class fires with it."
    g = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    on = g.random((rows, n)) < density
    for c in range(classes): on[:, 3*c:3*c + 3] |= (y == c)[:, None] & (g.random((rows, 3)) < .6)
    return sparse.csr_matrix(on*g.gamma(2, 1, (rows, n))), np.array(['abcdefg'[c] for c in y])

@pytest.fixture(scope='module')
def taught():
    model, tok = load_taught('base')
    return model, tok, World(0).topics(8).query("language == 'en'").reset_index(drop=True), sites.site(model, 1)

# ---- what they compute

def test_ranks_are_the_textbooks():
    X, y = data()
    D, two = X.toarray(), (y == 'b').astype(int)
    score = {by: TopFeatures(5, by).fit(X, y).scores_ for by in BY}
    assert np.allclose(score['mean_diff'], np.abs(D[two == 1].mean(0) - D[two == 0].mean(0)))
    assert np.allclose(score['t'], np.abs(stats.ttest_ind(D[two == 1], D[two == 0], equal_var=False).statistic))
    assert np.allclose(score['f'], f_classif(D, y)[0]) and np.allclose(score['chi2'], chi2(D, y)[0])
    assert np.allclose(score['mutual_info'], [mutual_info_score(two, c > c.mean()) for c in D.T])
    neg = X.copy(); neg.data *= np.where(np.arange(len(neg.data)) % 2, 1, -3)
    assert np.allclose(TopFeatures(5, 'mutual_info').fit(neg, y).scores_, [mutual_info_score(two, c > c.mean()) for c in neg.toarray().T])

@pytest.mark.parametrize('by', BY)
def test_the_planted_columns_are_found_and_sparse_is_dense(by):
    for seed in range(5):
        for classes in (2, 4):
            X, y = data(classes, seed=seed)
            a, b = TopFeatures(3*classes, by).fit(X, y), TopFeatures(3*classes, by).fit(X.toarray(), y)
            assert (a.features_ < 3*classes).sum() >= 3*classes - 1 and (a.features_ == b.features_).all(), seed
            assert (a.transform(X).toarray() == X[:, np.sort(a.features_)].toarray()).all() and sparse.issparse(a.transform(X))

def test_columns_that_never_change_come_last_and_warn_of_nothing(recwarn):
    X, y = data()
    X = sparse.hstack([sparse.csr_matrix((300, 400)), X, np.tile([1, 1, .001, .1], (300, 1))]).tocsr() # so many that a warning would take several lines; sums of .1 are rounded
    for by in BY:
        for x in (X, X.toarray()):
            top = TopFeatures(20, by).fit(x, y)
            assert set(top.features_) <= set(range(400, 460)) and not top.scores_[460:].any(), by
    assert not [w for w in recwarn if 'constant' in str(w.message)]

def test_quantiles_are_of_the_values_that_are_not_zero():
    X = sparse.csr_matrix(np.array([[0, 1., 5], [0, 2, 5], [0, 3, 0], [0, 0, 0]]))
    b = Binarise(quantile=.5).fit(X)
    assert b.thresholds_.tolist() == [0, 2, 5] and b.transform(X).toarray().tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert (b.transform(X.toarray()) == b.transform(X).toarray()).all() and b.transform(X.astype(np.float32)).dtype == np.float32
    assert list(Binarise().set_params(threshold=1.5).fit(X).transform(X).toarray().sum(0)) == [0, 2, 2]

def test_features_are_the_saes_and_a_clone_shares_it():
    x, sae = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32), SAE(6, 32, 'jump_relu').eval()
    s = SAEFeatures(sae)
    assert np.abs(s.fit_transform(x).toarray() - sae.encode(torch.from_numpy(x)).to_dense().detach().numpy()).max() < 1e-6
    assert clone(s).sae is sae and copy.deepcopy(s).sae is not sae and (copy.deepcopy(s).transform(x) != s.transform(x)).nnz == 0
    assert (clone(SAEFeatures(n=40, k=3)).fit_transform(x) != SAEFeatures(n=40, k=3).fit_transform(x)).nnz == 0 # a fixed random one
    assert Pipeline([('a', s), ('b', TopFeatures(4))]).fit(x, np.arange(50) % 2).get_feature_names_out().shape == (4,)

def test_texts_are_read_as_collect_reads_them_and_remembered_if_asked(taught):
    model, tok, df, at = taught
    r = Reading(at, SAE(128, 64, k=4, site=at), 'max')
    want = collect(model, tok, df.text, dict(x=r), progress=False)['x']
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        T = TextActivations(model, tok, at, 'max', r.sae, remember=True)
        assert clone(T).model is model and (T.fit_transform(df.text) != want).nnz == 0
        n = len(calls)
        assert (clone(T).transform(df.text.to_numpy()[::-1]) != want[::-1]).nnz == 0 and len(calls) == n
        clone(T).set_params(pool='sum').transform(df.text[:3]); assert len(calls) == n + 1
        TextActivations(model, tok, at).transform(df.text[:3].tolist()); TextActivations(model, tok, at).transform(df.text[:3]); assert len(calls) == n + 3
        whole, n = T.transform(df.text[:3]), len(calls)
        with sites.patch(model, {at: lambda h: 2*h}): # what a patched model says is neither taken from memory nor kept there
            assert (T.transform(df.text[:3]) != whole).nnz and len(calls) == n + 1
        assert (T.transform(df.text[:3]) != whole).nnz == 0 and len(calls) == n + 1
        for says, texts in (('0 texts', []), (r"text 3 has no token in use \(' '\)", [df.text[0]]*3 + [' ']), ('text 2 is None', ['a nurse', 'a nurse', None])):
            with pytest.raises(BadInput, match=says): T.transform(texts)
    finally: hook.remove()
    assert len(repr(T)) < 200 and T.get_feature_names_out()[:2].tolist() == ['f0', 'f1']

def test_coin_tosses_stay_coin_tosses_where_features_are_chosen_inside_the_fold_and_nowhere_else():
    "200 rows, 4,000 columns, 20 of them chosen: ten seeds."
    inside, outside = [], []
    for seed in range(10):
        g = np.random.default_rng(seed)
        X, y = sparse.random(200, 4000, .05, 'csr', rng=g), g.permutation(np.arange(200) % 2)
        inside.append(cross_val_score(make_probe(20), X, y).mean()); outside.append(cross_val_score(make_probe(), TopFeatures(20).fit_transform(X, y), y).mean())
    assert all(.4 <= a <= .6 for a in inside) and np.mean(outside) > .75, (inside, outside)

def test_a_clone_with_other_settings_predicts_as_one_that_was_made_with_them():
    g = np.random.default_rng(0)
    X, y = g.normal(size=(150, 6)), np.arange(150) % 3
    X[:, 0] += y
    made = lambda k, seed, C, **kw: Pipeline([('sae', SAEFeatures(n=40, k=4, seed=seed)), *make_probe(k, C=C, **kw).steps])
    one = made(5, 0, 1., quantile=.5).fit(X, y)
    same, other = clone(one).fit(X, y), clone(one).set_params(sae__seed=3, top__k=12, top__by='t', binarise__quantile=.2, probe__C=.1).fit(X, y)
    want = made(12, 3, .1, by='t', quantile=.2).fit(X, y)
    assert (same.predict_proba(X) == one.predict_proba(X)).all() and (other.predict_proba(X) == want.predict_proba(X)).all() and (other.predict_proba(X) != one.predict_proba(X)).any()

def test_a_grid_over_saes_copies_none_and_several_processes_find_the_same():
    g = np.random.default_rng(0)
    X, y = g.normal(size=(150, 6)).astype(np.float32), np.arange(150) % 2
    X[:, 0] += 2*y
    saes, found = [SAE(6, 24, k=3, seed=s).eval() for s in range(2)], []
    for jobs in (1, 2):
        found.append(GridSearchCV(Pipeline([('sae', SAEFeatures(saes[0])), *make_probe(8).steps]), dict(sae__sae=saes, top__k=[2, 8]), cv=3, n_jobs=jobs).fit(X, y))
        assert any(found[-1].best_estimator_['sae'].sae is s for s in saes) and clone(saes[0], safe=False) is saes[0]
    a, b = (f.cv_results_['mean_test_score'] for f in found)
    assert (a == b).all() and (found[0].predict_proba(X) == found[1].predict_proba(X)).all()

def test_in_a_grid_search_nothing_leaks():
    "The trap again, as a grid over k and the threshold: coin tosses stay coin tosses."
    scores = []
    for seed in range(3):
        g = np.random.default_rng(seed)
        X, y = sparse.random(200, 4000, .05, 'csr', rng=g), g.permutation(np.arange(200) % 2)
        search = GridSearchCV(make_probe(20, quantile=.5), dict(top__k=[5, 20], binarise__quantile=[.2, .8]), cv=3)
        scores.append(cross_val_score(search, X, y).mean())
    assert .4 < np.mean(scores) < .6

# ---- what a probe says of itself

@pytest.mark.parametrize('classes', [2, 4])
@pytest.mark.parametrize('kw', [dict(), dict(k=9), dict(k=9, quantile=.3), dict(k=9, dense=True), dict(l1_ratio=1., C=.2)])
def test_contributions_and_bias_are_the_decision(classes, kw):
    X, y = data(classes)
    if kw.get('dense'): X = X.toarray()
    p = make_probe(**kw).fit(X, y)
    c, want = contributions(p, X[:40]), p.decision_function(X[:40])
    assert np.abs(c.decision() - want.reshape(40, -1)).max() < 1e-6
    assert list(c.values) == (['b'] if classes == 2 else list('abcd')) and sparse.issparse(next(iter(c.values.values()))) == ('dense' not in kw)
    top = c.top(0, 3)
    assert top.contribution.abs().is_monotonic_decreasing and set(top.feature) <= set(range(3*classes)) | set(c.features)
    if 'k' in kw: assert set(c.features) == set(p['top'].features_)
    bare = p[-1].fit(X, y)
    assert np.abs(contributions(bare, X[:5]).decision() - bare.decision_function(X[:5]).reshape(5, -1)).max() < 1e-6

@pytest.mark.parametrize('classes', [2, 3])
def test_a_trees_text_page_and_picture_list_the_same_nodes_and_its_leaves_add_up(classes):
    X, y = data(classes)
    p = make_probe(12, reader='tree', depth=4).fit(X, y)
    nodes, names = tree_nodes(p), [f'<b>{i}' for i in range(X.shape[1])]
    leaves = nodes[nodes.feature.isna()]
    assert leaves.samples.sum() == 300 and nodes.depth.max() <= 4 and len(nodes) == p[-1].tree_.node_count
    for r in nodes[nodes.feature.notna()].itertuples():
        left, right = (nodes[(nodes.parent == r.node) & (nodes.side == s)].iloc[0] for s in '≤>')
        assert left.samples + right.samples == r.samples and r.feature in p['top'].features_
    rows, at = {}, X.toarray() # every row goes where the frame says
    for i in range(300):
        n = nodes.set_index('node').loc[0]
        while not pd.isna(n.feature): n = nodes[(nodes.parent == n.name if n.name is not None else 0) & (nodes.side == ('≤' if np.float32(at[i, n.feature]) <= n.threshold else '>'))].set_index('node').iloc[0]
        rows[i] = n.name
    assert (p[:-1].transform(X).shape[1] == 12) and (p[-1].apply(p[:-1].transform(X)) == list(rows.values())).all()
    html, text, ax = tree_html(p, names), tree_text(p, names), tree_plot(p, names)
    assert [int(i) for i in re.findall(r'data-node="(\d+)"', html)] == nodes.node.tolist() and html.count('<details') == html.count('</details>') == len(nodes) - len(leaves)
    assert '<b>' not in html and '&lt;b&gt;' in html
    plotted = {int(m[1]): t.get_text() for t in ax.texts if (m := re.search(r'node #(\d+)', t.get_text()))}
    assert set(plotted) == set(nodes.node) and all(f'samples = {r.samples}\n' in plotted[r.node] for r in nodes.itertuples())
    lines = text.splitlines()
    assert len(lines) == len(nodes) and sum(int(re.search(r'(\d+) ×', l)[1]) for l in lines if '×' in l) == 300
    import matplotlib.pyplot as plt; plt.close(ax.figure)

def test_a_picture_of_a_large_tree_stays_of_a_size_that_can_be_drawn():
    import matplotlib.pyplot as plt
    g = np.random.default_rng(0)
    ax = tree_plot(DecisionTreeClassifier().fit(g.normal(size=(300, 3)), g.integers(2, size=300)))
    assert ax.figure.get_figwidth() == 60
    plt.close(ax.figure)

@pytest.mark.parametrize('classes', [2, 3])
def test_a_direction_is_how_the_decision_changes(classes):
    g = np.random.default_rng(0)
    X, y = g.normal(size=(200, 12))*np.arange(1, 13), np.arange(200) % classes
    X[:, 2] += 3*y
    for p in (make_probe(dense=True), make_probe(5, dense=True), Pipeline([('pca', PCA(6)), ('probe', LogisticRegression())]), LogisticRegression()):
        p.fit(X, y); W = np.atleast_2d(probe_direction(p).numpy())
        dx = g.normal(size=(7, 12))
        assert np.allclose((p.decision_function(X[:7] + dx) - p.decision_function(X[:7])).reshape(7, -1), dx @ W.T, atol=1e-4)
    sae = SAE(12, 30, k=4)
    codes = SAEFeatures(sae).fit_transform(X)
    p, q = make_probe(8).fit(codes, y), Pipeline([('sae', SAEFeatures(sae)), *make_probe(8).steps]).fit(X, y)
    full = np.zeros((len(np.atleast_2d(p[-1].coef_)), 30)); full[:, p['top'].get_support()] = p[-1].coef_
    want = (full @ sae.W_dec.detach().numpy()).squeeze()
    assert np.allclose(probe_direction(p, sae), want, atol=1e-5) and np.allclose(probe_direction(q), want, atol=1e-5)
    for says, first in (('a step NMF, which is not linear', [('a', NMF(3, max_iter=1000))]), ('a step PCA, which is not linear', [('a', PCA(3, whiten=True))]), ('a step StandardScaler before its SAE', [('a', StandardScaler()), ('b', SAEFeatures(sae))])):
        bent = Pipeline([*first, ('probe', LogisticRegression())]).fit(np.abs(X), y)
        with pytest.raises(BadInput, match=says): probe_direction(bent)

# ---- files

def test_what_was_saved_predicts_the_same_in_another_process(tmp_path):
    g = np.random.default_rng(0)
    X, y = g.normal(size=(120, 6)), np.where(np.arange(120) % 2, 'yes', 'no')
    X[:, 0] += 2*(y == 'yes')
    made = [Pipeline([('sae', SAEFeatures(s)), *make_probe(8, **kw).steps]).fit(X, y) for s, kw in
            ((None, {}), (SAE(6, 24, 'batch_topk', k=3).eval(), dict(threshold=.1)), (SAE(6, 24, 'gated', normalize='layer_norm'), dict(quantile=.5)), (Transcoder(6, 24, d_out=4), dict(reader='tree')), (SAE(6, 24, k=3).bfloat16(), dict(dense=False)))]
    np.save(tmp_path/'X.npy', X)
    for i, p in enumerate(made): save_probe(p, tmp_path/f'{i}.skops')
    code = "import sys, numpy as np; from saebook.probe import load_probe; X = np.load(sys.argv[1] + '/X.npy')\nfor i in range(5): np.save(f'{sys.argv[1]}/{i}.npy', load_probe(f'{sys.argv[1]}/{i}.skops').predict_proba(X))"
    assert (r := subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True)).returncode == 0, r.stderr
    for i, p in enumerate(made): assert np.abs(np.load(tmp_path/f'{i}.npy') - p.predict_proba(X)).max() < 1e-6, i

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_probes_sae_keeps_its_precision_to_the_bit(dtype, tmp_path):
    sae = SAE(6, 24, 'jump_relu').to(dtype)
    with torch.no_grad(): sae.b_enc.copy_(torch.rand(24, dtype=torch.float64)/3)
    back = load_probe(save_probe(SAEFeatures(sae).fit(np.ones((3, 6))), tmp_path/'p')).sae
    assert all(torch.equal(a, b) and b.dtype == dtype for a, b in zip(sae.state_dict().values(), back.state_dict().values()))

class Bomb:
    def __reduce__(self): return eval, ("__import__('pathlib').Path('bang').touch()",)

def test_a_hostile_or_damaged_file_is_refused_and_nothing_of_it_is_run(tmp_path, monkeypatch):
    import skops.io
    monkeypatch.chdir(tmp_path)
    X, y = data()
    p = make_probe(5).fit(X, y)
    p.note = Bomb(); p.steps[0][1].helper = np.linalg.norm
    skops.io.dump(p, 'other.skops')
    for f, says in (('other.skops', 'neither of scikit-learn nor of saebook'), ('pickle', 'is no saved probe'), ('cut', 'is no saved probe'), ('empty', 'is no saved probe'), ('zip', 'is no saved probe'), ('none', 'is not there')):
        if f == 'pickle': open(f, 'wb').write(pickle.dumps(Bomb()))
        if f == 'cut': save_probe(make_probe(5).fit(X, y), 'whole'); open(f, 'wb').write(open('whole', 'rb').read()[:-200])
        if f == 'empty': open(f, 'wb').close()
        if f == 'zip': zipfile.ZipFile(f, 'w').writestr('a', 'b')
        with pytest.raises(BadInput, match=says): load_probe(f)
    assert not (tmp_path/'bang').exists()

def test_a_tree_whose_nodes_lead_nowhere_is_refused(tmp_path):
    X, y = data()
    p = make_probe(reader='tree').fit(X, y)
    p[-1].tree_.children_left[0] = 10**6
    with pytest.raises(BadInput, match='lead nowhere'): load_probe(save_probe(p, tmp_path/'t.skops'))
    forest = RandomForestClassifier(3, random_state=0).fit(X, y)
    assert (load_probe(save_probe(forest, tmp_path/'f.skops')).predict(X) == forest.predict(X)).all()
    forest.estimators_[1].tree_.feature[0] = 999
    with pytest.raises(BadInput, match='lead nowhere'): load_probe(save_probe(forest, tmp_path/'g.skops'))

def remade(tree, n_features=None, **state): # what only a file can say of a tree
    make, (n, classes, outputs), old = tree.__reduce__()
    new = make(n_features or n, classes, outputs)
    new.__setstate__(old | state)
    return new

def test_trees_that_compiled_code_would_follow_out_of_memory_are_refused_however_deep(tmp_path):
    "Each of these ends the process if it is asked to predict; so it is not asked here."
    X, y = data(rows=120, n=12)
    X = X.toarray(); g = np.random.default_rng(0).permutation(y) # coin tosses: the tree grows deep
    tree = lambda: DecisionTreeClassifier(random_state=0).fit(X, g)
    def bent(e, **kw): # with its tree made again
        e.tree_ = remade(e.tree_, **kw); e.n_features_in_ = e.tree_.n_features
        return e
    def nodes(t, i, **kw): # a tree with a node changed
        new = t.tree_.__getstate__()['nodes'].copy()
        for k, v in kw.items(): new[k][i] = v
        return bent(t, nodes=new)
    deep = tree(); leaf = int(np.flatnonzero(deep.tree_.children_left < 0)[0]); assert deep.tree_.max_depth > 4
    last = int(np.flatnonzero(deep.tree_.children_left >= 0)[-1])
    def spoilt(e, how): e.fit(X, y); how(e); return e
    def wider(b): b.estimators_ = np.repeat(b.estimators_, 9, 1)
    def one_wide(b): bent(b.estimators_[1, 0], n_features=2**30 + 5)
    def narrow(b): b.n_features_in_ = 3
    def unsaid(b): del b.n_features_in_
    def fewer(b): b.estimators_features_[0] = b.estimators_features_[0][:2]
    def first(b): b.estimators_[0] = nodes(tree(), 0, feature=-7)
    nested = Pipeline([('a', StandardScaler()), ('b', Pipeline([('c', DecisionTreeClassifier())]))]).fit(X, y); bent(nested['b']['c'], n_features=13); nested['b']['c'].n_features_in_ = 12
    hostile = dict(nested=nested, one=spoilt(GradientBoostingClassifier(n_estimators=2), one_wide), columns=spoilt(GradientBoostingClassifier(n_estimators=2), wider), shallow=bent(tree(), max_depth=0), endless=bent(tree(), max_depth=2**63 - 1),
                   none=bent(tree(), node_count=0), back=nodes(tree(), leaf, left_child=-5), two=nodes(tree(), 0, right_child=last), narrow=spoilt(RandomForestClassifier(2), narrow), unsaid=spoilt(RandomForestClassifier(2), unsaid),
                   bagged=spoilt(BaggingClassifier(DecisionTreeClassifier(), 2, max_features=.5), fewer), rest=spoilt(OneVsRestClassifier(DecisionTreeClassifier()), first))
    for name, e in hostile.items():
        with pytest.raises(BadInput, match='lead nowhere'): load_probe(save_probe(e, tmp_path/name)); pytest.fail(name)

def test_sound_trees_in_any_company_are_loaded(tmp_path):
    X, y = data(3, rows=120, n=12)
    X = X.toarray()
    for i, e in enumerate((DecisionTreeClassifier(max_depth=1), DecisionTreeClassifier(ccp_alpha=.02), DecisionTreeClassifier(max_leaf_nodes=7), DecisionTreeClassifier(min_samples_leaf=100), RandomForestClassifier(3), GradientBoostingClassifier(n_estimators=2), GradientBoostingClassifier(n_estimators=2, init='zero'),
                           BaggingClassifier(DecisionTreeClassifier(), 2, max_features=.5), OneVsRestClassifier(DecisionTreeClassifier()), Pipeline([('p', Pipeline([('s', StandardScaler()), ('t', DecisionTreeClassifier())]))]))):
        e.fit(X, y)
        assert (load_probe(save_probe(e, tmp_path/str(i))).predict(X) == e.predict(X)).all(), e
    Y = np.stack([y == 'a', X[:, 0] > X[:, 1]], 1).astype(int) # the second tree of a chain is given what the first one said, one feature more
    chain = ClassifierChain(DecisionTreeClassifier()).fit(X, Y)
    assert (load_probe(save_probe(chain, tmp_path/'chain')).predict(X) == chain.predict(X)).all()

# ---- what cannot be

def test_mistakes_are_told_in_a_sentence(taught):
    model, tok, df, at = taught
    X, y = data()
    for says, f in (("unknown way to rank features 'luck'", lambda: TopFeatures(by='luck').fit(X, y)), ('k=True was given', lambda: TopFeatures(True).fit(X, y)), ('quantile=2 was given', lambda: Binarise(quantile=2).fit(X)),
                    ('threshold=0.0 and quantile=0.5 were given', lambda: make_probe(threshold=0., quantile=.5)), ("'abc' was given as an SAE", lambda: SAEFeatures('abc').fit(X.toarray())), ('row 3 was asked for: there are rows 0 to 2', lambda: contributions(make_probe().fit(X, y), X[:3]).top(3)),
                    ('2 names were given, and none for feature', lambda: tree_text(make_probe(reader='tree').fit(X[:, :9], y), 'ab')), ('2 names were given, and none for feature', lambda: tree_plot(make_probe(reader='tree').fit(X, y), 'ab')),
                    ("unknown reader 'svm'", lambda: make_probe(reader='svm')), ('has no weights', lambda: contributions(make_probe(reader='tree').fit(X, y), X)), ('is no fitted tree', lambda: tree_nodes(make_probe().fit(X, y))),
                    ('is not linear', lambda: probe_direction(make_probe(threshold=1.).fit(X, y))), ('hidden states, which are all active', lambda: TextActivations(model, tok, at, 'count').fit(df.text)),
                    ('one text was given', lambda: TextActivations(model, tok, at).transform('a nurse')), ('width 6 were given to an SAE of width 5', lambda: SAEFeatures(SAE(5, 8, k=2)).fit(np.ones((3, 6)))),
                    ('holds a language model', lambda: save_probe(Pipeline([('t', TextActivations(model, tok, at)), ('p', LogisticRegression())]), 'x'))):
        with pytest.raises(BadInput, match=re.escape(says)) as e: f()
        assert '\n' not in str(e.value)

def test_the_probes_module_has_them_all_and_loads_scikit_learn_only_then():
    code = '''import sys, saebook.probe as p
assert 'sklearn' not in sys.modules
from saebook.probe import (TextActivations, SAEFeatures, Binarise, TopFeatures, make_probe, contributions, tree_nodes, tree_text, tree_html, tree_plot, probe_direction, save_probe, load_probe,
    sparse_curve, selectivity, mdl, Reading, collect)
assert 'sklearn' in sys.modules and SAEFeatures.__module__ == 'saebook.estimators'
try: p.nothing
except AttributeError as e: assert 'nothing' in str(e)
else: raise SystemExit('p.nothing is there')'''
    assert (r := subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)).returncode == 0, r.stderr
    from saebook import probe
    mine = set(estimators.__all__)
    assert set(probe._ESTIMATORS) == mine, 'a public name of the estimators is missing in the probes, or gone'
