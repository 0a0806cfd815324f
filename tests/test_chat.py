"Explained and judged by a language model: a server that reads only what it is sent and misbehaves, `transformers serve`, a model taught to say yes and no; what formats, quotes, line breaks and long texts do."
import copy, json, math, re, signal, subprocess, sys, time
from collections import Counter

import numpy as np, pytest, torch
from serving import KEY, LLAMA, http, serving, transformers_serve, user

from saebook import chat, sites
from saebook.autointerp import ChatDetection, ChatExplainer, ChatFuzzing, ChatSimulation, Explanation, HFGenerator, Interpretation, Intruder, Records, RememberingGenerator, Surprisal, interpret
from saebook.core import BadInput
from saebook.generators import Completion, _chosen
from saebook.lm import new_lm, train_tokenizer
from saebook.records import Examples, FeatureRecord, MEANINGS, fuzzed, known_features
from saebook.world import World, words

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
    return [int(any(w in r.split() for w in words) != ('without' in above)) for r in rows]

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

# --- a server that reads only what it is sent

@pytest.mark.parametrize('batch', [1, 5, 7, 1000])
def test_a_right_explanation_is_right_another_is_chance_and_the_opposite_is_wrong_through_all_that_a_server_does(records, batch):
    r, scores = records[FOX], {}
    for k, text in dict(right='"fox" or "foxes"', another='"router"', opposite='texts without "fox" or "foxes"').items():
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
        r = interpret(features, [0, 1, 2, 3], ChatExplainer(g), [ChatDetection(g), ChatFuzzing(g), ChatSimulation(g, draws=0)], tokenizer=tok, length=16, n_test=25, path=tmp_path/'run.jsonl', progress=False)
    r.save(tmp_path/'saved.jsonl'); r.to_html(tmp_path/'page.html'); (tmp_path/'repr.txt').write_text(repr(r) + repr(g) + r._repr_html_())
    f = r.frame
    assert f.explanation[::3].tolist() == [f'The word "{w}"' for w in meaning[:4]]
    by = f.groupby('scorer')
    assert (f[f.scorer != 'ChatSimulation'].score == 1).all() and (by.score.min()['ChatSimulation'] > .99) and abs(f[f.scorer == 'ChatDetection'].control.mean() - .5) < .1
    rec = Records(features, tok, length=16, n_test=25)
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

@pytest.mark.parametrize('scorer', [ChatDetection, ChatFuzzing])
def test_the_order_of_the_examples_is_the_features_alone(records, scorer):
    r, a, b = records[FOX], Saying(says), Saying(says)
    scorer(a, 7).score(r, Explanation('"fox"')); records[WEARS]; scorer(b, 7).score(records[FOX], Explanation('"dog"'))
    below = lambda g: [p.split('Examples:\n')[1] for p in g.asked]
    n = len(r.test) if scorer is ChatDetection else len(fuzzed(r.test, feature=FOX)[0])
    assert below(a) == below(b) and len(a.asked[-1].split('Examples:\n')[1].split('\n')) == (n - 1) % 7 + 1 # the last batch, however short
    y = {t: k for t, k in zip(chat._texts(r, r.test), r.test.active)} # windows where it fires and where it doesn't are mixed
    if scorer is ChatDetection: assert len({y[l.split('. ', 1)[1]] for l in below(a)[0].split('\n')}) == 2
    c = Saying(says); scorer(c, 7, seed=1).score(r, Explanation('"fox"'))
    assert below(c) != below(a)

# --- killed in the middle

RUN = '''
import sys
from saebook.autointerp import *
from saebook.cache import FeatureCache
from saebook.records import MEANINGS
from saebook.world import World
known, url, out = sys.argv[1:]
g = RememberingGenerator(url, 'reader', out + '/answers.jsonl', retries=9, concurrency=1, sleep=lambda s: None)
interpret(FeatureCache.open(known), [0, 1, 2, 3], ChatExplainer(g), [ChatDetection(g), ChatFuzzing(g)], tokenizer=World(0).tokenizer(), length=16, path=out + '/run.jsonl', progress=False)
'''

@pytest.mark.slow # five processes that each import torch
def test_killed_in_the_middle_it_ends_the_same_and_asks_nothing_twice(known, tmp_path, monkeypatch):
    "SIGKILL from the server, at some answers that lie inside explaining, scoring and a control; each time it goes on."
    features, tok, _ = known
    monkeypatch.setenv('SAEBOOK_API_KEY', KEY)
    answered, kill = Counter(), dict(at=[], p=None)
    def mood(h, n, asked):
        if kill['at'] and answered.total() == kill['at'][0]: kill['at'].pop(0); kill['p'].kill(); return True
        return moody(h, n, asked)
    def counted(asked): answered[asked['messages'][0]['content']] += 1; return reading(asked)
    with serving(mood, counted) as (server, url):
        def run(name): kill['p'] = subprocess.Popen([sys.executable, '-c', RUN, str(features.path), url, str(tmp_path/name)]); return kill['p'].wait()
        assert run('whole') == 0
        once = Counter(answered); answered.clear()
        kill['at'] = [2, 30, 55] # while it explains, judges, judges a control
        assert [run('killed') for _ in range(4)] == [-signal.SIGKILL]*3 + [0]
    assert (tmp_path/'killed/run.jsonl').read_bytes() == (tmp_path/'whole/run.jsonl').read_bytes()
    assert answered == once and set(once.values()) == {1} and len(Interpretation.load(tmp_path/'killed/run.jsonl').frame) == 8
    files = [f for f in tmp_path.rglob('*') if f.is_file()]
    assert len(files) == 4 and not [f for f in files if KEY.encode() in f.read_bytes()]

def test_kept_answers_are_whole_and_only_answers(tmp_path):
    kept = tmp_path/'a'/'kept.jsonl'
    def mood(h, n, asked):
        if 'bad' in asked['messages'][0]['content']: return h.send(403, b'{"error": "no"}')
    with serving(mood, lambda asked: 'yes') as (server, url):
        def made(**kw): return RememberingGenerator(url, 'reader', kept, api_key=KEY, sleep=lambda s: None, **kw)
        g = made()
        first = g.complete([user(t) for t in ('a', 'bad', 'b', 'a')]), g.choose([user('a')])
        asked = server.n
        raw = kept.read_bytes(); kept.write_bytes(raw + b'["torn", "ye')
        again = made()
        assert (again.complete([user(t) for t in ('a', 'b')]), again.choose([user('a')]).votes.tolist(), server.n) == ([first[0][0], first[0][2]], first[1].votes.tolist(), asked)
        assert kept.read_bytes() == raw and KEY.encode() not in raw and again.about() == http(url).about()
        assert again.complete([user('bad')])[0].error == '403: no' and server.n == asked + 1 # what failed is asked again
        again.complete([user('a')], max_tokens=7); made(extra=dict(seed=1)).complete([user('a')]); assert server.n == asked + 3 # another question
    kept.write_text('{"mine": 1}\nnotes\n')
    with pytest.raises(BadInput, match='holds no answers'): made()
    assert kept.read_text() == '{"mine": 1}\nnotes\n'

# --- what models, texts and explanations do

def window(tok, texts, length=24, source=None, on=None):
    "A record whose windows to judge by are texts of one's own; the feature fires at the last token of the first half of them."
    on = len(texts)//2 if on is None else on
    rows = [tok(t, add_special_tokens=False)['input_ids'][:length] for t in texts]
    ids, use = (np.array([r + [0]*(length - len(r)) for r in a]) for a in (rows, [[1]*len(r) for r in rows]))
    acts = np.zeros(ids.shape, np.float32)
    for i in range(on): acts[i, len(rows[i]) - 1] = 1 + i
    ex = Examples(ids, acts, use.astype(bool), np.full(len(ids), -1), np.arange(len(ids)), np.arange(len(ids)), np.zeros(len(ids), int), np.where(np.arange(len(ids)) < on, 0, -1))
    return FeatureRecord(0, ex, ex, on, .1, dict(train=[0, 0], test=[0, 0]), type('Source', (), dict(tokenizer=tok, made={})))

@pytest.fixture(scope='module')
def bytes_tok(): return train_tokenizer(['Is there it? Yes No 0 1 2 3 4 5 6 7 8 9 <user> <assistant>']*3, 300)

HOSTILE = ['one\n2. two', 'a\r\nb\u2028c', '<<not>> marked', '1 < 2 > 0', '“é” and 漢字', ' {explanation} {n}', 'say "fox"', '[1, 1, 1, 1]', 'x\ty', '[EXPLANATION]: me']

@pytest.mark.parametrize('text', ['', ' \n ', 'two\n\nlines of "it"', '<<marked>> {examples}', 'Examples:\n1. x', '[0, 0]', '“é”\u2028漢'])
def test_no_text_and_no_explanation_breaks_a_prompt(bytes_tok, text):
    r, e, seen = window(bytes_tok, HOSTILE), Explanation(text), []
    for scorer in (ChatDetection, ChatFuzzing, Intruder, ChatSimulation):
        g = Saying(lambda p: '1' if 'Answer:' in p else [0]*int(re.search(r'list of (\d+)', p)[1]))
        s = scorer(g, **(dict(windows=3) if scorer is Intruder else {})).score(r, e)
        if text.strip() or scorer is Intruder:
            assert s.failures == 0 and s.n > 0 and not math.isnan(s.score)
            for p in g.asked:
                if scorer is ChatSimulation: tokens = json.loads(p.split('Tokens: ')[1]); assert '\n' not in p.split('Tokens: ')[1] and len(tokens) == int(re.search(r'list of (\d+)', p)[1]); continue
                rows = p[p.rindex('Examples:\n'):].split('\n\n')[0].split('\n')[1:]
                assert [int(x.split('. ')[0]) for x in rows] == list(range(1, len(rows) + 1)) and rows
                assert all(x.isprintable() or '\t' in x for x in rows), rows
                if scorer is ChatFuzzing: assert all(x.count('<<') == x.count('>>') >= 1 for x in rows)
                if scorer is not Intruder: assert p.count('\n') == len(rows) + 4, p # an explanation is one line
        else: assert math.isnan(s.score) and s.failures == len(r.test if scorer is not ChatFuzzing else r.test.active.nonzero()[0]) and 'the explanation is empty' in s.more['why'] and not g.asked

def test_marks_are_those_of_the_feature_also_in_characters_of_several_tokens(bytes_tok):
    r = window(bytes_tok, ['“é', 'a <b', 'x\n', 'plain', 'text', 'more'])
    p = ChatExplainer(Saying(str)).shown(r)
    rows = re.findall(r'^\d\. (.*)$', p, re.M)
    assert [re.findall('<<(.*?)>>', x) for x in rows] == [['é'], ['b'], ['↵']] and rows[1].startswith('a ‹<<b>> (b ')
    assert [int(re.search(r'(\d+)\)$', x)[1]) for x in rows] == [4, 7, 10] # tenths of the strongest, upwards

def test_explanations_are_read_strictly_and_what_is_none_has_a_reason(records):
    r = records[FOX]
    for answer, text, why in (('[EXPLANATION]: Foxes,\nwild ones.\n\nHope it helps', 'Foxes, wild ones.', None), ('It is foxes.', '', 'no [EXPLANATION]:'), ('[EXPLANATION]:', '', 'nothing after [EXPLANATION]:'), ('', '', 'no [EXPLANATION]:'), ('[EXPLANATION]: ' + 'a '*5000, ('a '*5000).strip(), None)):
        e = ChatExplainer(Saying(lambda p: answer)).explain(r)
        assert (e.text, e.meta.get('failed')) == (text, why) and e.weights is None and len(json.dumps(e.meta)) < 800
    g = Saying(lambda p: '[EXPLANATION]: x')
    ChatExplainer(g).explain(r); ChatExplainer(g, contrastive=True, cot=True, examples=3, silent=2).explain(r)
    assert 'silent:' not in g.asked[0] and 'Think aloud' not in g.asked[0] and len(re.findall(r'^\d+\. ', g.asked[0], re.M)) == min(20, r.train.active.sum())
    assert 'it is silent:' in g.asked[1] and 'Think aloud' in g.asked[1] and len(re.findall(r'^\d+\. ', g.asked[1], re.M)) == 5
    shown = set(re.findall(r'^\d+\. (.*)$', g.asked[1], re.M)[3:])
    assert shown <= set(chat._texts(r, r.train[~r.train.active])) # none of those to judge by
    nothing = FeatureRecord(0, r.train[~r.train.active], r.test, 0, 0., {}, r.source)
    assert ChatExplainer(g).explain(nothing).meta == dict(failed='it does not fire in the texts to explain from') and len(g.asked) == 2

def test_a_feature_without_two_kinds_of_windows_has_no_score(bytes_tok):
    g = Saying(lambda p: '1' if 'Answer:' in p else [0]*int(re.search(r'list of (\d+)', p)[1]))
    for on in (0, 6):
        r = window(bytes_tok, ['abc', 'de', 'fgh', 'ij', 'klm', 'no'], on=on)
        for s in (ChatDetection(g), ChatFuzzing(g), Intruder(g), ChatSimulation(g, draws=0)):
            got = s.score(r, Explanation('x'))
            if on and isinstance(s, (ChatFuzzing, ChatSimulation)): assert not math.isnan(got.score) # these need no silent windows
            else: assert math.isnan(got.score) and got.more['why'] and got.failures == 0

def test_no_windows_are_no_score_and_no_question(bytes_tok):
    r = window(bytes_tok, TEXTS); none = FeatureRecord(0, r.train, r.test[np.zeros(0, int)], 0, 0., {}, r.source)
    for g in (Saying(says), HFGenerator(tiny(bytes_tok), bytes_tok)):
        for s in (ChatDetection(g), ChatFuzzing(g), Intruder(g), ChatSimulation(g), *([Surprisal(g)] if isinstance(g, HFGenerator) else [])):
            got = s.score(none, Explanation('x'))
            assert math.isnan(got.score) and (got.n, got.failures) == (0, 0) and got.more['why'], s
        assert g.counts['requests'] == 0 and not getattr(g, 'asked', [])

def test_what_cannot_be_marked_wrongly_is_a_failure(bytes_tok):
    r = window(bytes_tok, ['a fox', 'b', 'the fox', 'c', 'fox', 'd'], on=6) # a window of one token, at which it fires
    got = ChatFuzzing(Saying(says), draws=0).score(r, Explanation('"x" "d"'))
    assert got.n + got.failures == 6 and got.failures == got.more['failed']['no token to mark wrongly'] > 0
    got = ChatFuzzing(Saying(lambda p: 'no')).score(r, Explanation('"x"'))
    assert got.n == 0 and got.failures == 6 and got.more['why'].startswith('6 of 6 examples failed, most often: no list of marks')

def test_two_windows_are_judged_as_a_hundred_are(bytes_tok):
    r = window(bytes_tok, ['a fox', 'a dog'])
    for s in (ChatDetection(Saying(says)), ChatDetection(Saying(says), batch=1), ChatSimulation(Saying(lambda p: [0]*(int(re.search(r'list of (\d+)', p)[1]) - 1) + [10*('x"' in p.split('Tokens')[1])]), draws=0)):
        got = s.score(r, Explanation('"fox"'))
        assert got.score > .9 and (got.n, got.failures) == (2, 0)

def test_an_intruder_is_found_by_what_it_lacks_and_by_chance_when_nobody_looks(records):
    def fewest(p):
        rows = re.findall(r'^\d+\. (.*)$', p, re.M)
        return str(1 + min(range(len(rows)), key=lambda i: 'fox' in rows[i].split()))
    r, dice = records[FOX], np.random.default_rng(0)
    g = Saying(fewest); s = Intruder(g)
    a, b = s.score(r, Explanation('x')), s.score(r, Explanation('y'))
    assert a == b and a is not b and a.score == 1 and a.more == dict(chance=.2, auroc=1.) and len(g.asked) == a.n == 50 # the control is not asked about again
    found = Intruder(Saying(lambda p: str(dice.integers(1, 6))), trials=50).score(r)
    assert found.score < .4 and .3 < found.more['auroc'] < .7 and found.low < found.score < found.high
    assert json.dumps(s.config) and '_last' not in s.config
    lost = Intruder(Saying(lambda p: (_ for _ in ()).throw(ValueError('no'))) ).score(r)
    assert math.isnan(lost.score) and lost.failures == 50 and lost.more['why'].endswith('most often: no')
    with pytest.raises(BadInput, match='3 to 9'): Intruder(g, windows=10)

def test_mistakes_are_told_before_work(records, bytes_tok):
    g = Saying(says)
    for says_, f in (('give a generator', lambda: ChatExplainer(None)), (r'no place for \{examples\}', lambda: ChatExplainer(g, prompt='x')), (r'no place for \{explanation\}', lambda: ChatSimulation(g, prompt='{tokens}')), (r'no place for \{example\}', lambda: ChatDetection(g, by='logprobs', prompt=chat.DETECT)),
                     ('batch=0', lambda: ChatDetection(g, batch=0)), ("'logits'", lambda: ChatFuzzing(g, by='logits')), ('cannot tell what a text costs', lambda: Surprisal(g)), ('examples=0', lambda: ChatExplainer(g, examples=0)),
                     ('no tokenizer was given', lambda: ChatDetection(g).score(Records(records.features, length=16)[0], Explanation('x')))):
        with pytest.raises(BadInput, match=says_): f()
    a, b = ChatDetection(g), ChatDetection(g, prompt=chat.DETECT + ' ')
    assert a.config != b.config and a.config['by'] == 'votes' and json.dumps(a.config) and a.config['generator'] == dict(kind='Saying')

# --- a model on this machine

def tiny(tok, kind='neox', room=512):
    "A random model."
    torch.manual_seed(0)
    if kind == 'neox': return new_lm(tok, 32, 2, 2, room, initializer_range=.5)
    from transformers import LlamaConfig, LlamaForCausalLM
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=room, initializer_range=.5, eos_token_id=tok.eos_token_id, bos_token_id=tok.bos_token_id)).eval()

TEXTS = ['a fox ran', 'the fox', 'fox and dog', 'one dog', 'no cat here', 'the end']

def test_a_local_model_is_asked_by_probabilities_and_a_random_one_has_an_answer_to_everything(bytes_tok):
    r, e, g = window(bytes_tok, TEXTS), Explanation('"fox"'), HFGenerator(tiny(bytes_tok, room=1024), bytes_tok, 4)
    for s in (ChatDetection(g), ChatFuzzing(g), Intruder(g, windows=3), ChatSimulation(g, draws=0), Surprisal(g)):
        got = s.score(r, e)
        assert got.failures == 0 and not math.isnan(got.score) and getattr(s, 'by', 'logprobs') == 'logprobs' and 'voted' not in got.more, s
    d, by_hand = ChatDetection(g).score(r, e), g.choose([user(chat.DETECT_ONE.replace('{explanation}', '"fox"').replace('{example}', t)) for t in TEXTS]).shares[:, 0]
    assert d.score == chat.metrics.auroc(by_hand, r.test.active)
    rows, errors = ChatSimulation(g)._foretold('"fox"', [['a', ' fox']]) # the mean of the digits by their probabilities
    p = g.choose([user(chat.SIMULATE_ONE.replace('{explanation}', '"fox"').replace('{text}', t)) for t in ('<<a>>', 'a <<fox>>')], list('0123456789')).shares
    assert errors == [None] and np.allclose(rows[0], p @ np.arange(10))
    cost = lambda prefix: g.nll(prefix, [f' {t}' for t in TEXTS])[0]
    saved = cost(chat.SURPRISE.replace('{explanation}', 'something.')) - cost(chat.SURPRISE.replace('{explanation}', '"fox"'))
    got = Surprisal(g).score(r, e)
    assert np.isclose(got.score, chat.metrics.auroc(saved, r.test.active)) and np.isclose(got.more['saved'], saved[:3].mean()) and np.isclose(got.more['saved_silent'], saved[3:].mean())
    said = ChatExplainer(g, max_tokens=5).explain(r) # a base model goes on behind the word, and its first line is taken
    assert said.meta.get('failed') or said.text

def test_a_text_that_is_too_long_for_the_model_is_one_failure_and_the_others_are_judged(bytes_tok):
    long = ' '.join(['fox']*12)
    r, e = window(bytes_tok, [*TEXTS[:3], long, *TEXTS[3:]], 40, on=3), Explanation('"fox"')
    room = max(len(bytes_tok(chat.DETECT_ONE.format(explanation='"fox"', example=t) + ' Yes')['input_ids']) for t in TEXTS) + 2
    s = ChatDetection(HFGenerator(tiny(bytes_tok, room=room), bytes_tok)).score(r, e)
    assert (s.n, s.failures) == (6, 1) and not math.isnan(s.score) and 'room for' in next(iter(s.more['failed']))
    room = max(len(bytes_tok(chat.SURPRISE.format(explanation=x) + ' ' + t)['input_ids']) for t in TEXTS for x in ('"fox"', 'something.')) + 3
    s = Surprisal(HFGenerator(tiny(bytes_tok, room=room), bytes_tok)).score(r, e)
    assert (s.n, s.failures) == (6, 1) and not math.isnan(s.score) and 'shorten it' in next(iter(s.more['failed']))
    small = HFGenerator(tiny(bytes_tok, room=16), bytes_tok)
    for scorer in (ChatDetection(small), ChatFuzzing(small), Intruder(small, windows=3), ChatSimulation(small), Surprisal(small)):
        s = scorer.score(r, e)
        assert math.isnan(s.score) and s.n == 0 and s.failures and 'room for 16' in s.more['why'], scorer
    assert 'room for 16' in ChatExplainer(small).explain(r).meta['failed']

WORDS = MEANINGS[:4] + 'that to we and of as her he on his known well step it heard said here know be exact'.split() # four that are features, and twenty common ones
ASKED = '{example} | Is there {explanation}?'

def taught(windows, steps=1800):
    "A small GPT-NeoX and its tokenizer, taught to say Yes or No to whether a word occurs in a window. Each window comes with six questions, half of them to be denied."
    rng, there = np.random.default_rng(0), [set(w.split()) for w in windows]
    tok = train_tokenizer([ASKED + ' Yes No']*5 + windows[:3000], 2000)
    has = {w: [i for i, t in enumerate(there) if w in t] for w in WORDS}
    model = new_lm(tok, 48, 2, 4, 96, initializer_range=.2).train()
    answers = torch.tensor([tok(f' {o}')['input_ids'] for o in ('No', 'Yes')]).squeeze(1)
    opt = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0.)
    slower = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1, (s + 1)/50, 2*(1 - s/steps)))
    def one(word):
        i = rng.choice(has[word])
        yes, no = [w for w in WORDS if w in there[i]], [w for w in WORDS if w not in there[i]]
        return f'{windows[i]} |' + ''.join(f" Is there {rng.choice(yes if y else no)}? {'Yes' if y else 'No'}" for y in rng.random(6) < .5)
    for _ in range(steps):
        x = sites.tokenize(tok, [one(w) for w in rng.choice(WORDS, 24)], 'right')
        said = torch.isin(x['input_ids'], answers)
        row, at = (x['attention_mask'].bool() & (said | torch.nn.functional.pad(said, (1, -1)))).nonzero(as_tuple=True) # the answer, and how it goes on
        logits = sites.forward(model.base_model, x, grad=True).last_hidden_state[row, at - 1] @ model.get_output_embeddings().weight.T
        loss = torch.nn.functional.cross_entropy(logits, x['input_ids'][row, at])
        opt.zero_grad(); torch.autograd.backward(loss); opt.step(); slower.step()
    return HFGenerator(model.eval(), tok, 32)

@pytest.fixture(scope='module')
def yes_no(records, known): # two minutes on one core
    judged = {t for f in range(4) for t in records[f].test.texts(known[1])}
    windows = [' '.join(ws[i:i + 16]) for t in World(0).documents(6000, seed=7).text for ws in [words(t)] for i in range(0, len(ws) - 8, 16)]
    return taught([w for w in windows if w not in judged])

@pytest.mark.slow
def test_a_model_taught_to_say_yes_detects_by_probabilities_alone_on_windows_it_has_not_seen(records, known, yes_no):
    d = ChatDetection(yes_no, prompt=ASKED, draws=0)
    own = [d.score(records[f], Explanation(WORDS[f])) for f in range(4)]
    assert np.mean([s.score for s in own]) > .93 and min(s.score for s in own) > .85 and min(s.more['balanced_accuracy'] for s in own) > .8 and not any(s.failures for s in own)
    told, true = [], []
    for f in range(4):
        others, texts, y = [w for w in WORDS if w != WORDS[f]], records[f].test.texts(known[1]), records[f].test.active
        told.append([d.score(records[f], Explanation(w)) for w in others])
        true.append(np.mean([chat.metrics.auroc(np.array([w in t.split() for t in texts]), y) for w in others])) # of a reader who is always right
    yes, rank = (np.array([np.mean(list(map(get, s))) for s in told]) for get in (lambda s: s.more['balanced_accuracy'], lambda s: s.score))
    print('own', [round(s.score, 3) for s in own], 'others: by yes and no', yes.round(3), 'by probabilities', rank.round(3), 'always right', np.round(true, 3))
    assert (abs(yes - .5) < .06).all() and (abs(yes - true) < .03).all()
    assert (rank < [s.score - .3 for s in own]).all() # not .5: that there are no foxes in a text on routers is known to whoever was asked about routers

# --- an endpoint that others wrote

@pytest.mark.slow
def test_transformers_serve_judges_and_explains_as_the_same_model_does_here(records, yes_no, tmp_path):
    "It detects; it was never taught to explain or to write lists, and what it writes then is a counted failure, the same through both doors."
    t = copy.deepcopy(yes_no.tokenizer); t.chat_template = '{% for m in messages %}{{ m.content }}{% endfor %}'
    r, here = records[FOX], HFGenerator(yes_no.model, t)
    with transformers_serve(tmp_path, yes_no.model, t) as g:
        own, other = (ChatDetection(g, by='logprobs', prompt=ASKED).score(r, Explanation(w)) for w in ('fox', 'router'))
        short = dict(prompt='{examples}', examples=1, max_tokens=8)
        said, lists = ([m(h) for h in (g, here)] for m in (lambda h: ChatExplainer(h, **short).explain(r), lambda h: ChatDetection(h, 1, 'votes', '{explanation} {examples}', max_tokens=8, draws=0).score(r, Explanation('fox'))))
    mine = ChatDetection(here, prompt=ASKED).score(r, Explanation('fox'))
    print(own, other, mine, said[0], lists[0], g)
    assert own.failures == other.failures == 0 and own.n == len(r.test) and abs(own.more['balanced_accuracy'] - mine.more['balanced_accuracy']) < .02
    assert own.score > .8 > .6 > abs(other.score - .5) + .5 or g.gives_logprobs # 5.23 takes no notice of logprobs: then these are votes
    assert g.gives_logprobs or own.more['voted'] == own.n
    assert said[0].text == '' and said[0].meta == said[1].meta and lists[0].failures == len(r.test) and lists[0].more == lists[1].more
    assert not [f for f in tmp_path.rglob('*') if f.is_file() and KEY.encode() in f.read_bytes()]
