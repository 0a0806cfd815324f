"Explained and judged by a language model: a server that reads only what it is sent and misbehaves, `transformers serve`, a model taught to say yes and no; what formats, quotes, line breaks and long texts do."
import json, math, re, signal, subprocess, sys, textwrap, threading, time
from collections import Counter
from pathlib import Path

import numpy as np, pytest, torch
from serving import KEY, LLAMA, http, serving, transformers_serve, user

from saebook import chat, sites
from saebook.autointerp import ChatDetection, ChatExplainer, ChatFuzzing, ChatSimulation, Explanation, HFGenerator, Interpretation, Intruder, Records, RememberingGenerator, Simulation, Surprisal, interpret
from saebook.core import BadInput
from saebook.generators import Completion, _chosen
from saebook.lm import new_lm, train_tokenizer
from saebook.records import Examples, FeatureRecord, MEANINGS, known_features

FOX, WEARS = MEANINGS.index('fox'), MEANINGS.index('wears')

@pytest.fixture(scope='module')
def known(tmp_path_factory): return known_features(tmp_path_factory.mktemp('k')/'known')

@pytest.fixture(scope='module')
def records(known): return Records(known[0], known[1], length=16)

def says(prompt):
    "All that the server does: it looks for quoted words among what stands below, and for what is marked most."
    above, _, below = prompt.partition('Examples:\n')
    if 'Tokens: ' in above:
        above, tokens = prompt.split('Tokens: ')
        return [10*(t.strip() in re.findall('"([^"]+)"', above)) for t in json.loads(tokens)]
    words, rows = re.findall('"([^"]+)"', above), re.findall(r'^\d+\. (.*)$', below, re.M)
    marked = [re.findall('<<(.*?)>>', r) for r in rows]
    if '[EXPLANATION]' in above: return f'[EXPLANATION]: The word "{Counter(sum(marked, [])).most_common(1)[0][0]}"'
    if any(marked): return [int(all(m in words for m in ms)) for ms in marked]
    return [int(any(w in r.split() for w in words)) for r in rows]

def reading(asked): return str(says(asked['messages'][-1]['content']))

def moody(h, n, asked):
    "Of seven calls one is too many, one breaks, one is cut off, one comes late."
    if n % 7 == 0: return h.send(429, b'{"error": {"message": "slow down"}}', Retry_After='2')
    if n % 7 == 2: return h.send(500, b'oops')
    if n % 7 == 4: return h.send(200, b'{"choices": [{"message": {"content": "[0, 1')
    if n % 14 == 6: time.sleep(.05)

def forgetful(h, n, asked):
    "As above, and the answers to some questions have a mark too few, whenever they are asked."
    if (bad := moody(h, n, asked)) is not None: return bad
    said = says(asked['messages'][-1]['content'])
    if isinstance(said, list) and len(json.dumps(asked)) % 3 == 0: return h.answer(str(said[:-1])) is None

class Saying:
    "A generator that says what a function makes of the prompt; an exception is an error."
    def __init__(self, fn): self.fn, self.counts, self.asked = fn, dict(requests=0, retries=0, failures=0), []
    def about(self): return dict(kind='Saying')
    def complete(self, chats, max_tokens=256, temperature=0., logprobs=0):
        out = []
        for c in chats:
            self.asked.append(c[-1]['content'])
            try: out.append(Completion(str(self.fn(c[-1]['content']))))
            except ValueError as e: out.append(Completion(error=str(e)))
        return out
    def choose(self, chats, options=('Yes', 'No')):
        got = self.complete(chats)
        return _chosen(tuple(options), [None]*len(got), [None if c.error else list(options).index(c.text) for c in got], [c.error for c in got])

def opposite(record, tok):
    on, off = ({w for t in record.test[record.test.active == k].texts(tok) for w in t.split()} for k in (True, False))
    return ' or '.join(f'"{w}"' for w in sorted(off - on))

# --- a server that reads only what it is sent

@pytest.mark.parametrize('batch', [1, 5, 7, 1000])
def test_a_right_explanation_is_right_another_is_chance_and_the_opposite_is_wrong_through_all_that_a_server_does(records, known, batch):
    r, scores = records[FOX], {}
    for k, text in dict(right='"fox" or "foxes"', another='"router"', opposite=opposite(r, known[1])).items():
        with serving(moody, reading) as (server, url):
            g = http(url, retries=12)
            s = scores[k] = ChatDetection(g, batch).score(r, Explanation(text))
        assert s.failures == 0 and s.n == len(r.test) and g.counts == dict(requests=server.n, retries=server.n - math.ceil(len(r.test)/batch), failures=0)
    assert (scores['right'].score, scores['opposite'].score) == (1, 0) and abs(scores['another'].score - .5) < .03
    assert scores['right'].more['balanced_accuracy'] == 1 and (scores['right'].low, scores['right'].high) == (1, 1)

def test_interpret_explains_and_judges_through_it_tells_every_failure_and_keeps_no_key(known, tmp_path):
    features, tok, meaning = known
    with serving(forgetful, reading) as (server, url):
        g = http(url, retries=12)
        r = interpret(features, [0, 1, 2, 3], ChatExplainer(g), [ChatDetection(g), ChatFuzzing(g), ChatSimulation(g, draws=0)], tokenizer=tok, length=16, path=tmp_path/'run.jsonl', progress=False)
    r.save(tmp_path/'saved.jsonl'); r.to_html(tmp_path/'page.html'); (tmp_path/'repr.txt').write_text(repr(r) + repr(g) + r._repr_html_())
    f = r.frame
    assert f.explanation[::3].tolist() == [f'The word "{w}"' for w in meaning[:4]]
    by = f.groupby('scorer')
    assert (f[f.scorer != 'ChatSimulation'].score == 1).all() and (by.score.min()['ChatSimulation'] > .99) and f[f.scorer == 'ChatDetection'].control.between(.4, .6).all()
    rec = Records(features, tok, length=16)
    for i, n, lost in f[f.scorer == 'ChatDetection'][['feature', 'n', 'failures']].itertuples(index=False): assert n + lost == len(rec[i].test)
    assert by.failures.sum().min() > 0 and r.summary().failures.tolist() == by.failures.sum()[r.summary().scorer].tolist()
    more = r.scored[0]['scores']['ChatDetection']['more']['failed']
    assert more and all(re.fullmatch(r'\d+ marks for \d+ examples', k) for k in more)
    assert KEY not in json.dumps(r.config) and r.config['scorers']['ChatDetection']['generator'] == dict(kind='HTTPGenerator', base_url=url, model='reader', extra={})
    files = [p for p in tmp_path.rglob('*') if p.is_file()]
    assert len(files) == 4 and not [p for p in files if KEY.encode() in p.read_bytes()]

def test_every_failure_is_an_examples_and_none_is_filled_in(records):
    r = records[FOX]
    def mood(h, n, asked):
        if n == 2: return h.send(500, b'')
        if n == 3: return h.answer('Surely not.') is None
        if n == 4: return h.answer('[1, 0, 1]') is None
        if n == 5: return h.answer('[2, 0, 0, 0, 0]') is None
    with serving(mood, reading) as (_, url): s = ChatDetection(http(url, retries=0, concurrency=1)).score(r, Explanation('"fox"'))
    assert s.score == 1 and s.failures == 20 and s.n == len(r.test) - 20
    assert s.more['failed'] == {'500: Internal Server Error': 5, 'no list of marks': 5, '3 marks for 5 examples': 5, 'a mark of 2, with 1 the largest': 5}

def test_where_all_fail_there_is_no_score_and_a_reason(records):
    r, e = records[FOX], Explanation('"fox"')
    with serving(lambda h, n, asked: h.send(401, b'{"error": "who are you?"}')) as (_, url):
        g = http(url)
        for s, n in ((ChatDetection(g), len(r.test)), (ChatDetection(g, by='logprobs'), len(r.test)), (ChatFuzzing(g), int(r.test.active.sum())), (Intruder(g), 50), (ChatSimulation(g), len(r.test)), (ChatSimulation(g, by='logprobs'), len(r.test))):
            got = s.score(r, e)
            assert math.isnan(got.score) and (got.n, got.failures) == (0, n) and got.more['why'] == f'{n} of {n} examples failed, most often: 401: who are you?', s
        said = ChatExplainer(g).explain(r)
    assert said.text == '' and said.meta == dict(failed='401: who are you?')
