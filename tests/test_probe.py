"Probes: splits, what each adversary must and must not see, false alarms, and what is refused."
import numpy as np, pytest

from saebook import probe
from saebook.core import BadInput
from saebook.probe import ADVERSARIES, balanced_accuracy, fit_adversary, group_split, read_out

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
