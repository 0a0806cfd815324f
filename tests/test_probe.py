"Probes: splits, what each adversary must and must not see, false alarms, curves of few features, control labels, code lengths, and what is refused."
import math

import numpy as np, pytest, torch
from scipy import sparse

from saebook import probe
from saebook.core import BadInput
from saebook.probe import ADVERSARIES, balanced_accuracy, fit_adversary, group_split, mdl, read_out, selectivity, sparse_curve

def test_groups_are_not_torn():
    groups = np.repeat(np.arange(40), 5)
    for seed in range(5):
        held = group_split(groups, .3, seed)
        assert not set(groups[held]) & set(groups[~held]) and held.sum() == 60
    assert (group_split(groups, .3, 0) != group_split(groups, .3, 1)).any()
    with pytest.raises(BadInput, match='between 0 and 1'): group_split(groups, 1.)

def test_balanced_accuracy_gives_a_guesser_of_the_commonest_class_its_chance():
    code = np.array([0]*90 + [1]*10)
    assert balanced_accuracy(code == 0, code) == .5
    right = np.random.default_rng(0).random(100) < .5
    assert balanced_accuracy(right, code) == pytest.approx((right[:90].mean() + right[90:].mean())/2)

@pytest.mark.parametrize('kind', ADVERSARIES)
def test_an_unbalanced_concept_is_read_and_nothing_is_not(kind):
    g = np.random.default_rng(0)
    y = (g.random(1500) < .1).astype(int)
    X = g.normal(size=(1500, 6)); X[:, 0] += 4*y
    assert read_out(X, y, kinds=[kind]).accuracy[0] > .9

def test_false_alarms_are_as_rare_as_promised():
    "60 draws in which there is nothing: all four readers together, and groups of five rows that share their noise."
    alarms = 0
    for seed in range(60):
        g = np.random.default_rng(seed)
        group = np.repeat(np.arange(120), 5)
        X, y = g.normal(size=(600, 8)) + g.normal(size=(120, 8))[group], g.integers(2, size=120)[group]
        alarms += read_out(X, y, group, kinds=['linear', 'knn', 'trees'], n=800).beats.any()
    assert alarms <= 6 # of 60; at one in twenty 7 or more come in one run of thirty-five

def test_an_estimator_is_an_ordinary_one_and_a_seed_fixes_it():
    g = np.random.default_rng(1)
    X, y = g.normal(size=(200, 4)), np.where(g.random(200) < .5, 'yes', 'no')
    X[:, 1] += 3*(y == 'yes')
    a, b = (fit_adversary(X, y, 'mlp', seed=3) for _ in range(2))
    assert (a.predict(X) == b.predict(X)).all() and a.classes.tolist() == ['no', 'yes'] and (a.classes[a.predict(X)] == y).mean() > .85

def test_scikit_learn_is_not_loaded_before_it_is_needed():
    import subprocess, sys
    code = "import sys, saebook.probe; print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == 'False'

@pytest.mark.parametrize('y, groups, says', [
    (['a']*40, None, "all 40 labels are 'a'"), ([None] + ['a', 'b']*19 + ['a'], None, '1 of 40 labels are missing'), (['a', 'b']*10, None, '20 labels were given for 40 rows'),
    (['a', 'b']*20, ['g']*40, 'at least two are needed'), (['a'] + ['b']*39, list(range(40)), "no row of class 'a'")])
def test_what_cannot_be_asked_is_told_before_anything_is_fitted(y, groups, says, monkeypatch):
    monkeypatch.setattr(probe, 'fit_adversary', lambda *a: pytest.fail('something was fitted'))
    with pytest.raises(BadInput, match=says): read_out(np.zeros((40, 3)), y, groups)

def test_rows_that_are_all_the_same_tell_nothing_and_are_no_error():
    y = np.arange(60) % 2
    r = probe.read_out(np.ones((60, 4)), y)
    assert (r.accuracy == .5).all() and not r.beats.any()

def planted(seed=0, rows=1000, n=400, known=5, hit=.7):
    "Sparse columns, of which the first few fire for class 1."
    g = np.random.default_rng(seed)
    y = np.arange(rows) % 2
    on = (g.random((rows, n)) < .05) | (np.arange(n) < known) & (y[:, None] == 1) & (g.random((rows, n)) < hit)
    return sparse.csr_matrix(on*g.gamma(2, 1, (rows, n))), y

@pytest.mark.parametrize('seed', range(5))
def test_five_planted_columns_are_worth_as_much_as_all(seed):
    X, y = planted(seed)
    f = sparse_curve(X, y, (1, 2, 5, 20, 999), seed=seed, n=200).set_index('k')
    assert list(f.index) == [1, 2, 5, 20] and abs(f.accuracy[5] - f.full[5]) < .05 and f.accuracy[1] < f.accuracy[2] < f.accuracy[5] and (f.low < f.accuracy).all() and (f.accuracy < f.high).all()
    dense = sparse_curve(X.toarray(), y, (1, 5), seed=seed, n=200).set_index('k')
    assert (dense.accuracy == f.accuracy[[1, 5]]).all() # sparse or not is the same

def test_activations_of_any_precision_are_read_alike():
    X, y = planted(rows=300, n=20)
    X = torch.tensor(X.toarray()).bfloat16()
    a, b = (sparse_curve(x, y, (1, 5), n=50) for x in (X, X.double().numpy()))
    assert a.equals(b)

def test_more_curves_than_colours_are_all_drawn_and_no_two_alike():
    import matplotlib.pyplot as plt
    f = sparse_curve(*planted(rows=300, n=20), (1, 5), n=50)
    ax = probe.plot_sparse_curve({f'curve {i}': f for i in range(12)})
    drawn = [l for l in ax.lines if l.get_label().startswith('curve')]
    assert len(drawn) == 12 and len({tuple(np.ravel(l.get_color())) for l in drawn}) == 12
    plt.close(ax.figure)

def test_a_curve_of_coin_tosses_is_flat():
    "Columns are chosen on the fitting side: those that seem to know something there know nothing here."
    at5 = [sparse_curve(sparse.random(400, 3000, .05, 'csr', rng=g), g.permutation(np.arange(400) % 2), (5, 50), seed=s, n=50).accuracy.mean() for s in range(8) for g in [np.random.default_rng(s)]]
    assert .45 < np.mean(at5) < .55

def test_noise_is_not_selective_and_a_word_list_is_not_either():
    noise, lists = [], []
    for s in range(8):
        g = np.random.default_rng(s)
        kind = g.integers(30, size=900)
        noise.append(selectivity(g.normal(size=(900, 30)), kind < 15, kind, seed=s).selectivity)
        lists.append(selectivity(sparse.csr_matrix(np.eye(30)[kind]), kind < 15, kind, seed=s).selectivity)
    assert abs(np.mean(noise)) < .02 and np.max(np.abs(lists)) < .01
    r = selectivity(planted()[0], planted()[1]) # each row its own type: the control can only be guessed
    assert abs(r.control - .5) < .06 and r.selectivity > .3

def test_control_labels_are_as_frequent_as_the_classes_and_of_a_type():
    code, kind, held = np.repeat([0, 1, 2], [600, 300, 100]), np.arange(1000) % 100, np.arange(1000) % 3 == 0
    lots = probe._lots(code, kind, held, np.random.default_rng(0))
    assert np.bincount(lots).tolist() == [600, 300, 100] and all(len(set(lots[kind == k])) == 1 for k in range(100))

def test_what_is_easy_is_told_in_fewer_bits_than_guesses_and_noise_is_not():
    g = np.random.default_rng(0)
    y = np.arange(1000) % 2
    easy, hard, nothing = (mdl(g.normal(size=(1000, 8)) + s*y[:, None], y) for s in (3, .5, 0))
    assert easy.bits < 60 < hard.bits < hard.uniform == 1000 < nothing.bits and easy.compression == pytest.approx(1000/easy.bits)
    assert mdl(*planted()).bits < 500 and mdl(g.normal(size=(90, 2)), np.arange(90) % 3).uniform == pytest.approx(90*math.log2(3))

def test_the_online_code_is_the_sum_over_blocks():
    "By hand, with a probe that always says three quarters for class 0."
    class Three:
        def get_params(self, deep=True): return {}
        def fit(self, X, y): return self
        def predict_proba(self, X): return np.tile([.75, .25], (len(X), 1))
    y = np.array([0, 0, 0, 1]*25)
    got = mdl(np.zeros((100, 1)), y, probe=Three(), shares=(.1, .5, 1.))
    costs = -np.log2(.99*np.array([.75, .25]) + .005)
    first = got.bits - 10 # ten were guessed; of the others some are of class 1, 25 in all
    assert any(abs(first - ((90 - k)*costs[0] + k*costs[1])) < 1e-6 for k in range(15, 26))

@pytest.mark.parametrize('says, ask', [
    ('a sparse matrix of shape', lambda X, y: read_out(X, y)), ('1 of 1000 rows hold NaN', lambda X, y: sparse_curve(spoilt(X), y)), ('no number of features', lambda X, y: sparse_curve(X, y, (0,))),
    ("no row of class '1' is held out", lambda X, y: sparse_curve(X, y, held=(y == 0) & (np.arange(1000) < 500))), ('10 types were given for 1000 rows', lambda X, y: selectivity(X, y, range(10))),
    ('1 types and 5 draws', lambda X, y: selectivity(X, y, ['a']*1000)), ('gives no probabilities', lambda X, y: mdl(X, y, probe=object())), ('rising ones', lambda X, y: mdl(X, y, shares=(.5, .1, 1.))), ('rising ones', lambda X, y: mdl(X, y, shares=())),
    ('1 of 1000 types are missing', lambda X, y: selectivity(X, y, [None] + ['a', 'b', 'c']*333)), ('one group alone is judged on', lambda X, y: sparse_curve(X, y, groups=np.arange(1000)//500, held=np.arange(1000) < 500)),
    ('one group alone is judged on', lambda X, y: read_out(X.toarray(), y, np.arange(1000)//500))])
def test_what_a_curve_a_control_or_a_code_cannot_be_asked(says, ask):
    with pytest.raises(BadInput, match=says): ask(*planted())

def spoilt(X): X = X.copy(); X.data[7] = np.nan; return X
