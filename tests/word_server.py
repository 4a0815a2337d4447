"""A chat server on this machine that orders candidates by the words they share with the history: a rule in place of a
language model, behind real HTTP."""

import json
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROMPT_TOKENS, COMPLETION_TOKENS = 100, 7


class WordServer:
    """Every request is kept as it came: ``bodies`` (bytes), ``headers``, ``paths``, ``times``.

    script: what to answer instead, one entry a request from the first on, None: the rule. An entry is a text (what the
    model says), a number (a status), a dict (the message), bytes (the body as it is), or a function of the handler.
    always: the same for all requests after the script.
    """

    def __init__(self, script=(), always=None):
        self.script, self.always = list(script), always
        self.bodies, self.headers, self.paths, self.times = [], [], [], []
        self.delay_s = 0.0
        self.most_at_once = self._at_once = 0
        self.lock = threading.Lock()

    def prompts(self):
        return [json.loads(body)["messages"][0]["content"] for body in self.bodies]

    def answer(self, handler):
        body = handler.rfile.read(int(handler.headers["content-length"]))
        with self.lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.paths.append(handler.path)
            self.times.append(time.perf_counter())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self.delay_s)
        step = self.script[number] if number < len(self.script) else self.always
        prompt = json.loads(body)["messages"][0]["content"]
        with self.lock:
            self._at_once -= 1
        if callable(step):
            step(handler)
        elif isinstance(step, bytes):
            send(handler, 200, step)
        elif isinstance(step, int):
            send(handler, step, error("no"))
        elif isinstance(step, dict):
            send(handler, 200, completion(step))
        else:
            content = json.dumps(order_by_words(prompt)) if step is None else step
            send(handler, 200, completion({"role": "assistant", "content": content}))


def order_by_words(prompt):
    """Numbers from 1, most shared words first (a word counts as often as the history has it), then as given."""
    told, _, candidates = prompt.partition("Candidates:")
    known = Counter(word for line in re.findall(r'^- .*?"(.*)"$', told, re.M) for word in words(line))
    texts = re.findall(r'^\[(\d+)\] "(.*)"$', candidates, re.M)
    assert [int(number) for number, _ in texts] == list(range(1, len(texts) + 1))
    return sorted(range(1, len(texts) + 1), key=lambda n: -sum(known[word] for word in words(texts[n - 1][1])))


def words(text):
    return re.findall(r"\w+", text.lower())


def completion(message):
    answer = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "words",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": COMPLETION_TOKENS,
            "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
        },
    }
    return json.dumps(answer).encode()


def error(message, **more):
    return json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None} | more}).encode()


def send(handler, status, body, kind="application/json", **headers):
    handler.send_response(status)
    handler.send_header("content-type", kind)
    handler.send_header("content-length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(server):
    """Give the base_url under which the server answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            server.answer(self)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1"
    finally:
        http.shutdown()
        http.server_close()
