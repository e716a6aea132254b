"""Served models: generation tasks over a real server on loopback; everything else is refused before anything is asked."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import evaluation_suite
import pytest

from jobs.contract import MoelineError
from jobs.evaluating import command
from jobs.services.endpoint import EndpointScorer
from models.gauntlet.sampling import Sampling


class Server(ThreadingHTTPServer):
    """Answers "<number> indeed" to a prompt "... <number> =", but odd numbers wrongly; fails the first ``failures`` times."""

    def __init__(self, failures=0, status=503):
        self.failures, self.status, self.asked, self.keys, self.name = failures, status, [], set(), "served"
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, {"data": [{"id": self.server.name}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.add(self.headers["Authorization"])
        if self.server.failures > 0:
            self.server.failures -= 1
            self.answer(self.server.status, {"error": "busy"})
            return
        self.server.asked.append(body)
        number = int(body["prompt"].split()[-2])
        self.answer(200, {"choices": [{"text": f" {number if number % 2 == 0 else 'unknown'} indeed"}]})


@pytest.fixture
def data(tmp_path):
    return evaluation_suite.write(tmp_path / "data")


def options(url, data, out, **settings):
    return command.Options(model=url, suite="small", data=data, out=out, **settings)


def test_generation_tasks_are_asked_greedily_and_judged(data, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    server = Server()
    result = command.run(options(server.url, data, tmp_path / "out", tasks=("said",), key_variable="A_KEY"), cache_folder=tmp_path / "cache")
    assert result["scores"][0]["accuracy"] == 0.5 and len(server.asked) == 8
    assert {(b["model"], b["temperature"]) for b in server.asked} == {("served", 0)} and server.keys == {"Bearer secret"}
    assert all("<script>" in body["prompt"] and body["prompt"].endswith("=") for body in server.asked)
    assert not (tmp_path / "cache").exists()  # nobody can see whether its weights have changed
    assert all("secret" not in file.read_text(errors="ignore") for file in (tmp_path / "out").iterdir())
    again = command.run(options(server.url, data, tmp_path / "out", tasks=("said",), reuse_answers=True), cache_folder=None)
    assert again["run"]["from_journal"] == 8 and len(server.asked) == 8


def test_other_tasks_are_refused_in_a_sentence(data, tmp_path):
    server = Server()
    with pytest.raises(MoelineError, match="not log-probabilities of given answers, so quiz, copy, pairs cannot be scored"):
        command.run(options(server.url, data, tmp_path / "out"), cache_folder=None)
    assert server.asked == []


def test_a_busy_server_is_asked_again_and_a_refusing_one_is_not():
    busy, refusing = Server(failures=2), Server(failures=99, status=401)
    prompt = tuple(map(ord, "is 4 ="))
    assert EndpointScorer(busy.url, wait_seconds=0.01).generate([prompt], 5, ("\n",)) == [" 4 indeed"]
    with pytest.raises(MoelineError, match=r"HTTP 401.*busy"):
        EndpointScorer(refusing.url, wait_seconds=0.01).generate([prompt], 5, ())
    assert refusing.failures == 98


def test_samples_are_asked_with_the_tasks_settings_and_a_seed_for_each():
    server = Server()
    prompt = tuple(map(ord, "is 4 ="))
    draws = [(prompt, f"item\0{number}") for number in range(3)]
    asked = EndpointScorer(server.url, model="served").sample(draws, 5, (), Sampling(samples=3, temperature=0.8, top_p=0.9))
    assert asked == [" 4 indeed"] * 3
    assert {(b["temperature"], b["top_p"]) for b in server.asked} == {(0.8, 0.9)} and len({b["seed"] for b in server.asked}) == 3


def test_a_server_that_is_not_there_is_named():
    server = Server()
    server.shutdown()
    server.server_close()
    with pytest.raises(MoelineError, match=r"/models: Connect.*goes on"):
        EndpointScorer(server.url, wait_seconds=0.01)
