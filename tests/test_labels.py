"Labels: what is clicked is what is written, and what a file of another cache, a torn line or odd words do."
import json, pytest

from saebook.autointerp import LexicalDetection, Records, interpret
from saebook.core import BadInput
from saebook.labels import HumanExplainer, Labels, quoted_words, read_labels
from saebook.records import known_features

@pytest.fixture(scope='module')
def known(tmp_path_factory): return known_features(tmp_path_factory.mktemp('l')/'c', 300)[:2]

def board(known, path, features=(3, 1, 2), **kw): return Labels(Records(*known, length=16, **kw), features, path)

def test_clicks_are_written_and_gone_on_with(known, tmp_path):
    b = board(known, path := tmp_path/'new'/'l.jsonl')
    assert 'Feature 3' in b.card.value and b.where.value.startswith('1 of 3 · 0 looked at')
    b.text.value = ' the  word\n"router" '; b.save.click()
    assert 'Feature 1' in b.card.value and b.text.value == ''
    b.skip.click(); b.back.click()
    assert 'Feature 1' in b.card.value and b.where.value == '2 of 3 · 2 looked at, 1 labelled'
    b = board(known, path)
    assert 'Feature 2' in b.card.value # the first that nobody has looked at
    b.back.click(); b.text.value = 'fox'; b.save.click()
    assert {f: l['text'] for f, l in read_labels(path).items()} == {3: 'the word "router"', 1: 'fox'} and len(path.read_text().splitlines()) == 3

def test_a_torn_line_is_left_out_and_written_past(known, tmp_path):
    b = board(known, path := tmp_path/'l.jsonl'); b.label('one')
    with open(path, 'a') as f: f.write('{"feature": 1, "te')
    b = board(known, path); assert list(b.said) == [3]
    b.label('two')
    assert {f: l['text'] for f, l in read_labels(path).items()} == {3: 'one', 1: 'two'}

def test_labels_belong_to_their_cache(known, tmp_path):
    board(known, path := tmp_path/'l.jsonl').label('"fox"')
    other = known_features(tmp_path/'c', 60)[:2]
    with pytest.raises(BadInput, match='another cache'): board(other, path)
    with pytest.raises(BadInput, match='another cache'): HumanExplainer(path).explain(Records(*other, length=16)[3])
    with pytest.raises(BadInput, match='no labels'): (tmp_path/'x').write_text('{"a": 1}\n'); read_labels(tmp_path/'x')
    with pytest.raises(BadInput, match='no features'): board(known, path, [])

def test_other_labels_are_another_interpretation(known, tmp_path):
    b = board(known, tmp_path/'l.jsonl'); b.label('"router"')
    go = lambda: interpret(known[0], [3, 1], HumanExplainer(tmp_path/'l.jsonl'), LexicalDetection(0), tokenizer=known[1], length=16, path=tmp_path/'i.jsonl', progress=False)
    f = go().frame.set_index('feature')
    assert f.score[3] == 1 and f.why[1] == 'nobody has labelled it' and 'l.jsonl' not in json.dumps(go().config)
    b.label('"fox"')
    with pytest.raises(BadInput, match='explainer='): go()

def test_words_of_several_tokens_count_at_their_last(known):
    tok = known[1]
    ids = lambda s: tok(s, add_special_tokens=False)['input_ids']
    w = quoted_words('“of the” and "fox"', tok)
    assert sorted(zip(w['id'], w['before'])) == sorted([(ids('the')[0], ids('of')[0]), (ids('fox')[0], -1)])
    assert quoted_words('""', tok) is None and quoted_words('"zzzz"', tok) is None # no word, and none that the tokenizer knows
