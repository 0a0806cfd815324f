"Language models that answer: a server that answers only from what it is sent, and misbehaves; `transformers serve`; a model taught to say yes and no; what becomes of a key."
import contextlib, copy, json, logging, math, os, pickle, re, signal, socket, threading, time, traceback

import numpy as np, pytest, torch
from serving import KEY, LLAMA, http, judge, moody, serving, transformers_serve, user

from saebook import sites
from saebook.core import BadInput, write_json
from saebook.generators import Choices, Completion, Generator, HFGenerator, HTTPGenerator, parse_choice, parse_explanation, parse_votes, plain_chat
from saebook.lm import new_lm, train_tokenizer
from saebook.metrics import auroc

# --- a server that answers only from the request

def detect(generator, texts, words, size=5):
    "Marks of `texts` and why some have none."
    parts = [texts[i:i+size] for i in range(0, len(texts), size)]
    said = 'The feature is active on texts with ' + ' or '.join(f'"{w}"' for w in words)
    got = generator.complete([[dict(role='system', content='You mark examples.'), *user(f'{said}.\nExamples:\n' + '\n'.join(f'{i}. {t}' for i, t in enumerate(p, 1)))] for p in parts])
    marks, why = [], []
    for c, p in zip(got, parts, strict=True):
        v, r = (None, c.error) if c.error else parse_votes(c.text, len(p))
        marks += v or [math.nan]*len(p); why += [r] if v is None else []
    return np.array(marks), why

@pytest.fixture(scope='module')
def examples(): # every text has a word that tells it, and half of each kind a word that tells nothing
    y = np.random.default_rng(0).permutation([1, 0]*20)
    odd = np.zeros(40, int)
    for v in (0, 1): odd[np.flatnonzero(y == v)[::2]] = 1
    return [f"the {'river' if a else 'stone'} lay {'early' if b else 'late'} in the light" for a, b in zip(y, odd)], y

@pytest.mark.parametrize('words, accuracy', [(['river', 'sea'], 1.), (['early'], .5), (['stone'], 0.)], ids=['right', 'unrelated', 'inverted'])
def test_an_explanation_is_as_right_as_it_is_through_all_that_a_server_does(examples, words, accuracy):
    texts, y = examples
    waits = []
    with serving(moody) as (server, url):
        g = http(url, retries=12, sleep=waits.append)
        marks, why = detect(g, texts, words)
    assert not why and (marks == y).mean() == accuracy
    assert g.counts == dict(requests=server.n, retries=len(waits), failures=0) and server.n == 8 + len(waits) > 8
    for path, headers, asked in server.seen:
        assert path == '/v1/chat/completions' and headers['Authorization'] == f'Bearer {KEY}' and headers['Content-Type'] == 'application/json'
        assert {k: asked[k] for k in ('model', 'stream', 'max_tokens', 'temperature')} == dict(model='reader', stream=False, max_tokens=256, temperature=0.)
        assert [m['role'] for m in asked['messages']] == ['system', 'user'] and not {'logprobs', 'top_logprobs'} & set(asked)

def test_what_fails_is_reported_and_nothing_is_left_out(examples):
    texts, y = examples
    def mood(h, n, asked):
        if n == 2: return h.answer(str(judge(asked['messages'][-1]['content'])[:-1])) is None
        if n == 3: return h.answer('I would rather not.') is None
        return moody(h, 0 if n == 5 else 1, asked)
    with serving(mood) as (server, url):
        g = http(url, retries=0, concurrency=1)
        marks, why = detect(g, texts, ['river'])
    assert why == ['4 marks for 5 examples', 'no list of marks', '429: slow down'] and g.counts == dict(requests=8, retries=0, failures=1)
    assert np.isnan(marks).sum() == 15 and (marks == y)[~np.isnan(marks)].all() and len(marks) == 40

def test_waits_grow_and_keep_to_what_the_endpoint_asks_for():
    def waits(seed=0, **headers):
        out = []
        with serving(lambda h, n, asked: h.send(503, b'{}', **headers)) as (_, url): c, = http(url, retries=5, seed=seed, sleep=out.append, max_wait=20).complete([user('x')])
        assert c.error.endswith('(asked 6 times)') and c.error.startswith('503')
        return out
    own = waits()
    assert own == waits() != waits(seed=1) and all(.25*2**n <= w <= .5*2**n for n, w in enumerate(own))
    assert all(7 <= w <= 7 + .5*2**n for n, w in enumerate(waits(Retry_After='7')))
    assert waits(Retry_After='86400') == [20]*5 == waits(Retry_After='Wed, 21 Oct 2099 07:28:00 GMT')
    assert waits(Retry_After='soon') == waits(Retry_After='Wed, 21 Oct 2015 07:28:00 GMT') == own

@pytest.mark.parametrize('code, body, told, requests', [
    (401, b'{"error": {"message": "Incorrect API key provided: %s"}}', '401: Incorrect API key provided: (removed)', 1),
    (404, b'{"detail": "no such model"}', '404: no such model', 1), (400, b'<html>', '400: <html>', 1), (302, b'', '302: the address has moved to http://elsewhere.example/', 1),
    (429, b'', '429: Too Many Requests (asked 3 times)', 3), (502, b'x'*3_000_000, '502: Bad Gateway (asked 3 times)', 3),
    (200, b'{"error": {"code": 401, "message": "who are you?"}}', 'no answer, but: who are you?', 1), (200, b'{"error": {"code": 429, "message": "slow"}}', 'no answer, but: slow (asked 3 times)', 3),
    (200, b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}', "an answer without text (finish_reason 'length')", 1), (200, b'['*100_000, 'an answer that is not JSON, or not all of it (asked 3 times)', 3),
    (200, b'['*900 + b']'*900, 'no answer, but: a list (asked 3 times)', 3), (200, b'{"error": {"a":'*300 + b'1' + b'}}'*300, 'no answer, but: an object with a (asked 3 times)', 3),
    (200, b'{"choices": []}', 'no answer, but: an object with choices (asked 3 times)', 3), (200, b'\xff', 'an answer that is not JSON, or not all of it (asked 3 times)', 3)])
def test_every_refusal_is_told_in_a_sentence(code, body, told, requests):
    body = body.replace(b'%s', KEY.encode())
    with serving(lambda h, n, asked: h.send(code, body, Location='http://elsewhere.example/')) as (server, url):
        c, = http(url, retries=2).complete([user('x')])
    assert (c, server.n) == (Completion(error=told), requests)

def test_silence_and_broken_connections_are_failures_of_one_chat():
    def mood(h, n, asked):
        word = asked['messages'][0]['content']
        if word == 'silent': time.sleep(1.5); return True
        if word == 'drip': # alive byte by byte, and never done
            h.send(200, b'{', 1000)
            for _ in range(15):
                with contextlib.suppress(OSError): h.wfile.write(b' '); h.wfile.flush()
                time.sleep(.1)
            return True
        if word == 'short': return h.send(200, b'{"choices"', 1000)
        if word == 'hang up': h.connection.close(); return True
    start = time.monotonic()
    with serving(mood, lambda asked: 'fine') as (_, url):
        g = http(url, retries=1, timeout=.5, concurrency=6)
        got = g.complete([user(w) for w in ('ok', 'silent', 'drip', 'short', 'hang up', 'ok')])
    assert time.monotonic() - start < 8
    assert [c.text for c in got] == ['fine', '', '', '', '', 'fine'] and [bool(c.error) for c in got] == [False, True, True, True, True, False]
    assert got[1].error == got[2].error == 'no answer within 0.5 s (asked 2 times)' and g.counts == dict(requests=10, retries=4, failures=4)

def test_nobody_there_is_told_before_work_is_lost():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    with pytest.raises(BadInput, match='does not answer as .reader.*Connection refused'): http(f'http://127.0.0.1:{port}/v1', retries=1).check()
    with serving(says=lambda asked: 'yes') as (_, url): http(url).check()

def test_ctrl_c_stops_what_was_not_sent():
    with serving(lambda h, n, asked: time.sleep(.2), lambda asked: 'x') as (server, url):
        g = http(url, concurrency=1)
        def interrupt(): time.sleep(.5); os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt): g.complete([user('x')]*100)
        time.sleep(.5)
        assert server.n < 10

# --- log-probabilities, given, ignored, refused

def logged(*top): return dict(logprobs=dict(content=[dict(token=top[0][0], logprob=top[0][1], top_logprobs=[dict(token=t, logprob=l) for t, l in top])]))

def test_a_choice_takes_log_probabilities_where_they_are_and_votes_where_they_are_not():
    def mood(h, n, asked):
        word = asked['messages'][0]['content']
        assert asked['logprobs'] is True and asked['top_logprobs'] == 20
        if word == 'both': return h.answer('Yes', **logged((' Yes', -.1), ('no', -3.), ('NO', -3.), ('x', -6.))) is None
        if word == 'one': return h.answer('No', **logged(('No', -.01), ('Maybe', -8.))) is None
        if word == 'ignored': return h.answer('**No**, I think.') is None
        if word == 'odd': return h.answer('yes', logprobs=dict(content=[dict(token='yes')])) is None
        if word == 'fails': return h.send(403, b'{"error": "not you"}')
        return h.answer('Who knows?') is None
    with serving(mood) as (_, url): c = http(url).choose([user(w) for w in ('both', 'one', 'ignored', 'odd', 'fails', 'nothing')])
    assert np.allclose(c.logprobs[:2], [[-.1, math.log(2*math.exp(-3))], [-8, -.01]]) and np.isnan(c.logprobs[2:]).all()
    assert c.voted.tolist() == [False, False, True, True, False, False] and c.votes[:4].tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]] and np.isnan(c.votes[4:]).all()
    assert c.errors == [None]*4 + ['403: not you', "neither Yes nor No: 'Who knows?'"]
    assert np.allclose(c.shares[:4].sum(1), 1) and np.isnan(c.shares[4:]).all() and c.shares[2, 1] == 1

def test_an_endpoint_that_refuses_log_probabilities_is_asked_without():
    def mood(h, n, asked): return h.send(400, b'{"error": {"message": "logprobs are not supported"}}') if 'logprobs' in asked else None
    with serving(mood, lambda asked: 'No.') as (server, url):
        g = http(url, concurrency=1)
        c = g.choose([user('x')]*5)
        stubborn = http(url, extra=dict(logprobs=True)).complete([user('x')], logprobs=2)[0] # asked for them whatever it says
    assert c.logprobs is None and c.voted.all() and c.votes[:, 1].all() and g.gives_logprobs is False
    assert stubborn.error == '400: logprobs are not supported' and server.n == 8 and g.counts == dict(requests=6, retries=0, failures=0)

def test_further_keys_of_a_request_replace_the_usual_and_none_leaves_one_out():
    with serving(says=lambda asked: 'x') as (server, url): http(url, extra=dict(max_tokens=None, max_completion_tokens=9, seed=3)).complete([user('x')])
    asked = server.seen[0][2]
    assert 'max_tokens' not in asked and (asked['max_completion_tokens'], asked['seed']) == (9, 3)

# --- a key

def test_the_key_is_sent_and_is_nowhere_else(tmp_path, monkeypatch, caplog, capfd):
    "Everything that can be written down is, also of an endpoint that says the key back."
    caplog.set_level(logging.DEBUG)
    def mood(h, n, asked):
        if asked['messages'][0]['content'] == 'say it': return h.answer(f'Your key is {KEY}.', **logged((KEY, -.1))) is None
        return h.send(*((401, f'{{"error": "bad key {KEY}"}}'.encode()) if n % 2 else (500, KEY.encode())), Location=f'http://x.example/?k={KEY}')
    monkeypatch.setenv('SOME_KEY', KEY)
    with serving(mood) as (server, url):
        g = HTTPGenerator(url, 'reader', key_env='SOME_KEY', retries=1, max_wait=.01)
        got = g.complete([user(w) for w in ('say it', 'a', 'b', 'c')], logprobs=2)
        try: HTTPGenerator(url, 'reader', KEY, retries=0).check()
        except BadInput: (tmp_path/'traceback.txt').write_text(traceback.format_exc())
    assert {h['Authorization'] for _, h, _ in server.seen} == {f'Bearer {KEY}'} and got[0].text == 'Your key is (removed).' and all(c.error for c in got[1:])
    write_json(tmp_path/'answers.json', [vars(c) for c in got]); write_json(tmp_path/'about.json', g.about())
    (tmp_path/'repr.txt').write_text(f'{g!r} {g} {vars(g)} {got}'); (tmp_path/'g.pkl').write_bytes(pickle.dumps(g)); torch.save(dict(copy=copy.deepcopy(g).__getstate__()), tmp_path/'g.pt')
    for bad in (f'{KEY}\nx', f'{KEY}é'):
        try: HTTPGenerator(url, 'reader', bad)
        except BadInput: (tmp_path/f'bad{len(bad)}.txt').write_text(traceback.format_exc())
    (tmp_path/'log.txt').write_text(caplog.text + ''.join(capfd.readouterr()))
    files = [f for f in tmp_path.rglob('*') if f.is_file()]
    assert len(files) == 9 and not [f.name for f in files if b'THISisTHEkey' in f.read_bytes()]
    assert pickle.loads((tmp_path/'g.pkl').read_bytes())._key.given # from the environment again

def test_the_key_of_another_service_is_not_taken_unasked(monkeypatch):
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    with serving(says=lambda asked: 'x') as (server, url): HTTPGenerator(url, 'reader').complete([user('x')])
    assert 'Authorization' not in server.seen[0][1]

def test_a_redirect_is_not_followed_with_the_key():
    with serving() as (other, there), serving(lambda h, n, asked: h.send(307, b'', Location=there + '/chat/completions')) as (_, url): c, = http(url).complete([user('x')])
    assert c.error.startswith('307: the address has moved to http://127.0.0.1') and not other.seen and not other.got

def test_a_proxy_is_used_for_others_and_not_for_this_machine(monkeypatch):
    for k in ('NO_PROXY', 'no_proxy', 'HTTP_PROXY'): monkeypatch.delenv(k, raising=False)
    with serving(says=lambda asked: 'by proxy') as (proxy, at), serving(says=lambda asked: 'direct') as (_, url):
        monkeypatch.setenv('http_proxy', at[:-3])
        for here in (url, url.replace('127.0.0.1', 'localhost')): assert http(here).complete([user('x')])[0].text == 'direct'
        assert not proxy.seen and http('http://llm.example/v1').complete([user('x')])[0].text == 'by proxy'
        assert proxy.seen[0][0] == 'http://llm.example/v1/chat/completions'
        monkeypatch.setenv('no_proxy', 'llm.example')
        assert http('http://llm.example/v1', retries=0, timeout=2).complete([user('x')])[0].error.startswith('no connection')

@pytest.mark.parametrize('url', ['file:///etc/passwd', 'ftp://x/v1', 'example.org', 'http://', 'http://a b/', 'http://x:port/v1', 'https://ann:pw-secret@x/v1', 'https://x/v1?key=pw-secret', 'http://x/\r\nHost: y', 'http://ä.de/', 3])
def test_an_address_that_is_none_is_refused_without_its_secrets(url):
    with pytest.raises(BadInput, match='base_url') as e: http(url)
    assert 'pw-secret' not in str(e.value)

# --- reading

@pytest.mark.parametrize('text, n, votes', [('[1,0]', 2, [1, 0]), ('```json\n[ 1 ,\n0 ]\n```', 2, [1, 0]), ('[1, 0] … [1, 0]', 2, [1, 0]), ('[1, 0] … [0, 1]', 2, None), ('[1, 0, 1]', 2, None), ('[1, 0', 2, None), ('[1 0]', 2, None), ('[1, -1]', 2, None),
    ('[1, .5]', 2, None), ('[true, false]', 2, None), ('[1, 2]', 2, None), ('1, 0', 2, None), ('[1, 0,]', 2, None), ('[١, ٠]', 2, None), ('[]', 0, None), ('', 1, None), ('[1]', 1, [1]), ('[[1, 0]]', 2, [1, 0])])
def test_votes_are_read_strictly(text, n, votes):
    got, why = parse_votes(text, n)
    assert got == votes and (why is None) == (got is not None)

def test_reading_a_hostile_text_takes_no_time():
    start = time.monotonic()
    for t in ('[' + '1,'*200_000, '['*200_000, '1, '*200_000 + ']', '*'*200_000, '[EXPLANATION]: '*20_000, ' '*200_000, '[1' + ' '*200_000): parse_votes(t, 5), parse_explanation(t), parse_choice(t)
    assert time.monotonic() - start < 5

def test_explanations_and_choices_are_read_from_what_models_write():
    assert parse_explanation('**[EXPLANATION]:** Rivers\nand lakes.\n\nNote: x') == ('Rivers and lakes.', None)
    assert parse_explanation('[EXPLANATION]: first\n[EXPLANATION]: second')[0] == 'second' and parse_explanation('[EXPLANATION]: \n ')[0] is None
    assert parse_explanation('[EXPLANATION]: "a" or "b"')[0] == '"a" or "b"'
    assert [parse_choice(t, ('1', '10'))[0] for t in ('10', '1', '[1]', '100', 'Answer: 10.')] == [1, 0, 0, None, 1]

# --- a model on this machine

WORDS = 'river stone lamp apple horse table cloud silver window garden music winter'.split()

@pytest.fixture(scope='module')
def tok():
    t = train_tokenizer(['. '.join(WORDS) + ' Is there it? Yes No <user> <assistant> '*3]*5, 400)
    t.pad_token = None # many base models have none
    return t

def tiny(tok, kind='neox', room=64):
    "A random model whose positions matter."
    torch.manual_seed(0)
    if kind == 'neox': return new_lm(tok, 32, 2, 2, room, initializer_range=.5)
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
    if kind == 'gpt2': return GPT2LMHeadModel(GPT2Config(vocab_size=len(tok), n_embd=32, n_layer=2, n_head=2, n_positions=room, initializer_range=.5, eos_token_id=tok.eos_token_id, bos_token_id=tok.bos_token_id)).eval()
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=room, initializer_range=.5, eos_token_id=tok.eos_token_id, bos_token_id=tok.bos_token_id)).eval()

lengths = [' '.join(WORDS[:n]) for n in (1, 12, 3, 7, 2)]

@pytest.mark.parametrize('kind', ['neox', 'gpt2', 'llama'])
def test_batches_change_nothing_and_the_figures_are_the_models_own(tok, kind):
    model = tiny(tok, kind)
    many, one, options = HFGenerator(model, tok, 4), HFGenerator(model, tok, 1), ('Yes', 'river stone', 'lamp apple horse')
    chats = [user(t) for t in lengths]
    a, b = many.choose(chats, options), one.choose(chats, options)
    assert np.allclose(a.logprobs, b.logprobs, atol=1e-4) and a.errors == [None]*5 and isinstance(many, Generator)
    for t, row in zip(lengths, a.logprobs): # by hand, an option at a time
        for o, l in zip(options, row):
            p, x = (tok(s, return_tensors='pt')['input_ids'] for s in (t, f'{t} {o}'))
            with torch.no_grad(): logp = model(x).logits.log_softmax(-1)
            assert abs(sum(logp[0, i - 1, x[0, i]].item() for i in range(p.shape[1], x.shape[1])) - l) < 1e-3
    for t, c, d in zip(lengths, many.complete(chats, 6, logprobs=3), one.complete(chats, 6)):
        assert c.text == d.text and len(c.token_logprobs) <= 6 and all(abs(x['logprob'] - x['top'][0][1]) < 1e-5 for x in c.token_logprobs)
    assert np.allclose(many.nll(lengths, lengths[::-1])[0], one.nll(lengths, lengths[::-1])[0], atol=1e-3)
    nats, n = many.nll('', lengths)
    assert np.allclose(nats, -np.array([sum(model(torch.tensor([[tok.eos_token_id, *ids]])).logits.log_softmax(-1)[0, i, t].item() for i, t in enumerate(ids)) for ids in tok(lengths)['input_ids']]), atol=1e-3)
    assert n.tolist() == [len(ids) for ids in tok(lengths)['input_ids']] and not model.training

def test_drawn_texts_are_drawn_again_from_the_seed_and_leave_the_callers_dice_alone(tok):
    model = tiny(tok).train()
    torch.manual_seed(1); a = torch.rand(1); torch.manual_seed(1)
    got = [[c.text for c in HFGenerator(model, tok, seed=s).complete([user(t) for t in lengths], 12, 1.)] for s in (0, 0, 1)]
    assert got[0] == got[1] != got[2] and torch.rand(1) == a and model.training

def test_a_chat_template_is_used_and_one_without_system_messages_is_given_none(tok):
    t = copy.deepcopy(tok); t.chat_template = LLAMA
    g = HFGenerator(tiny(tok, 'llama'), t)
    chat = [dict(role='system', content='Say it.'), *user('river?')]
    assert g._prompt(chat) == (f'{tok.bos_token}<user> Say it.\n\nriver?\n<assistant> ', False)
    ids = tok(f'{tok.bos_token}<user> Say it.\n\nriver?\n<assistant> Yes')['input_ids']
    assert g._candidates(chat, ('Yes', 'No'))[0][0] == ids and ids[0] == tok.bos_token_id
    assert HFGenerator(tiny(tok), tok)._prompt(chat) == ('Say it.\n\nUser: river?\n\nAssistant:', True) and plain_chat(user('As it is')) == 'As it is'
    assert HFGenerator(tiny(tok), tok, render=lambda c: 'mine')._prompt(chat)[0] == 'mine'

def test_what_is_too_long_has_an_error_and_the_others_their_answers(tok):
    g = HFGenerator(tiny(tok, 'gpt2', 32), tok)
    chats = [user('river'), user('river '*50), user('stone')]
    c, d = g.choose(chats), g.complete(chats, 8)
    assert [e is None for e in c.errors] == [True, False, True] == [x.error is None for x in d] and np.isnan(c.shares[1]).all() and np.allclose(c.shares[[0, 2]].sum(1), 1)
    assert g.counts == dict(requests=6, retries=0, failures=2) and 'room for 32' in c.errors[1]
    with pytest.raises(BadInput, match='text 1 with its prefix has .* room for 32'): g.nll(['', 'river '*50], ['stone', 'stone'])
    with pytest.raises(BadInput, match='text 0 has no tokens'): g.nll('a', [''])
    assert g.complete([]) == [] and g.choose([]).votes.shape == (0, 2) and g.nll('', [])[0].shape == (0,)

def test_two_generators_are_told_apart_by_what_they_are_asked_with(tok):
    a = HFGenerator(tiny(tok), tok).about()
    assert a == HFGenerator(tiny(tok), tok, batch_size=3).about() != HFGenerator(tiny(tok, 'gpt2'), tok).about() and json.dumps(a)
    assert http('http://localhost:1/v1').about() == http('http://localhost:1/v1/', api_key='other', retries=0).about() != HTTPGenerator('http://localhost:1/v1', 'm').about()

def asked(rng, n, held, words=WORDS[:10]):
    "Questions of the form that the model below is taught, and their answers; a quarter of all sets of three words are kept for judging (`held`)."
    while n:
        s, yes = rng.choice(len(words), 3, False), rng.random() < .5
        if (sum(2**int(i) for i in s)*37 % 101 < 25) != held: continue
        q = rng.choice(s) if yes else rng.choice([i for i in range(len(words)) if i not in s])
        yield f"{' '.join(words[i] for i in s)}. Is there {words[q]}?", yes
        n -= 1

def taught(tok, steps=800):
    "A small GPT-NeoX, taught to say Yes or No to whether a word occurs in a sentence."
    rng, model = np.random.default_rng(0), new_lm(tok, 48, 2, 4, 64, initializer_range=.2).train()
    said = torch.tensor([tok(f' {o}')['input_ids'] for o in ('No', 'Yes')]).squeeze(1)
    opt = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(steps):
        texts, yes = zip(*asked(rng, 64, False))
        loss = torch.nn.functional.cross_entropy(sites.forward(model, sites.tokenize(tok, texts, 'left'), grad=True).logits[:, -1][:, said], torch.tensor(yes).long())
        opt.zero_grad(); loss.backward(); opt.step()
        if loss < .02: break
    return model.eval()

@pytest.mark.slow # half a minute on one core
def test_a_model_taught_to_say_yes_detects_by_log_probabilities_alone(tok):
    g = HFGenerator(taught(tok), tok, 32)
    texts, yes = zip(*asked(np.random.default_rng(1), 300, True))
    c = g.choose([user(t) for t in texts])
    by_chance = [re.sub(r'there \w+', f'there {w}', t) for t, w in zip(texts, np.random.default_rng(2).choice(WORDS[:10], 300))]
    own, control = (auroc(x.shares[:, 0], np.array(yes)) for x in (c, g.choose([user(t) for t in by_chance])))
    right = (c.votes[:, 0] == yes).mean()
    print(f'accuracy {right:.3f}, AUROC {own:.3f}, with a word by chance {control:.3f}')
    assert right > .9 and own > .95 and .4 < control < .6 and not c.voted.any()

# --- an endpoint that others wrote

@pytest.mark.slow
def test_transformers_serve_is_asked_like_any_other(tok, tmp_path):
    t = copy.deepcopy(tok); t.chat_template = LLAMA
    model = tiny(tok, 'llama', 256)
    with transformers_serve(tmp_path, model, t) as g:
        chats, started = [user(t) for t in lengths], g.counts['retries']
        got, mine, c = g.complete(chats, 8), HFGenerator(model, t).complete(chats, 8), g.choose(chats)
    assert [x.error for x in got] == [None]*5 and g.counts['retries'] == started, (tmp_path/'log.txt').read_text()[-3000:]
    assert [x.text.strip() for x in got] == [x.text for x in mine] # the same model through two doors
    assert c.logprobs is None or not np.isnan(c.logprobs).all() # 5.23 takes no notice of logprobs; whichever way, each chat has a choice or a reason
    assert all((e is None) != np.isnan(v).any() for e, v in zip(c.errors, c.votes)) and not [f for f in tmp_path.rglob('*') if f.is_file() and KEY.encode() in f.read_bytes()]
