"Servers for tests: one that answers only from what it is sent, and misbehaves; and `transformers serve`, which others wrote."
import contextlib, functools, importlib.util, json, os, re, socket, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from saebook.generators import HTTPGenerator

KEY = 'sk-proj-THISisTHEkey/0123456789+abc'

def user(text): return [dict(role='user', content=text)]

def judge(prompt):
    "Marks each numbered example that has one of the quoted words in it."
    words = re.findall('"([^"]+)"', prompt.split('Examples:')[0])
    return [int(any(w in e.split() for w in words)) for e in re.findall(r'^\d+\. (.*)$', prompt.split('Examples:')[1], re.M)]

class Server(BaseHTTPRequestHandler):
    "What it does to call number n is a function `mood(n, asked)`, which returns None (a right answer) or does something else."
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        s = self.server
        asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with s.lock: s.n += 1; n = s.n; s.seen.append((self.path, dict(self.headers), asked))
        if s.mood(self, n, asked) is None: self.answer(s.says(asked))
    def do_GET(self): self.server.got.append(self.path); self.send(200, b'{}')
    def answer(self, text, **more): self.send(200, json.dumps(dict(id='x', object='chat.completion', choices=[dict(index=0, message=dict(role='assistant', content=text), finish_reason='stop', **more)])).encode())
    def send(self, code, body, length=None, **headers):
        self.close_connection = True
        with contextlib.suppress(OSError): # the client may have gone
            self.send_response(code)
            for k, v in dict(content_length=str(length or len(body)), **headers).items(): self.send_header(k.replace('_', '-'), v)
            self.end_headers(); self.wfile.write(body)
        return True
    def log_message(self, *a): pass

@contextlib.contextmanager
def serving(mood=lambda h, n, asked: None, says=lambda asked: str(judge(asked['messages'][-1]['content']))):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Server)
    server.__dict__.update(mood=mood, says=says, n=0, lock=threading.Lock(), seen=[], got=[], block_on_close=False)
    threading.Thread(target=functools.partial(server.serve_forever, .02), daemon=True).start()
    try: yield server, f'http://127.0.0.1:{server.server_port}/v1'
    finally: server.shutdown(); server.server_close()

def http(url, **kw): return HTTPGenerator(url, 'reader', **dict(dict(api_key=KEY, timeout=5, sleep=lambda s: None), **kw))

def moody(h, n, asked):
    "Every seventh call is one too many; others break, are cut off, come late, or have a list that is too short."
    if n % 7 == 0: return h.send(429, b'{"error": {"message": "slow down"}}', Retry_After='2')
    if n % 7 == 2: return h.send(500, b'oops')
    if n % 7 == 4: return h.send(200, b'{"choices": [{"message": {"content": "[0, 1')
    if n % 14 == 6: time.sleep(.1)

# --- an endpoint that others wrote

LLAMA = "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system message') }}{% endif %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"

@contextlib.contextmanager
def transformers_serve(path, model, tokenizer):
    "`transformers serve` on a model of this machine, kept in the folder `path`: an `HTTPGenerator` that asks it. Skips where its extras are absent."
    missing = [m for m in ('fastapi', 'uvicorn', 'openai', 'pydantic', 'rich', 'accelerate') if importlib.util.find_spec(m) is None]
    if missing: pytest.skip(f"transformers serve needs {', '.join(missing)}: pip install 'transformers[serving]'")
    model.save_pretrained(path/'model'); tokenizer.save_pretrained(path/'model')
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith('_proxy')} | dict(HF_HUB_OFFLINE='1', HF_HOME=str(path/'home'))
    with open(path/'log.txt', 'w') as log:
        p = subprocess.Popen([sys.executable, '-c', 'from transformers.cli.transformers import main; main()', 'serve', str(path/'model'), '--host', '127.0.0.1', '--port', str(port), '--device', 'cpu', '--dtype', 'float32'], stdout=log, stderr=log, env=env)
        try:
            g = HTTPGenerator(f'http://127.0.0.1:{port}/v1', str(path/'model'), KEY, timeout=60, retries=300, max_wait=1., concurrency=2)
            g.check() # it takes its time to start: no connection is a reason to try again
            yield g
        finally: p.terminate(); p.wait(30)
