"""When a connection to Ray is tried again."""

from __future__ import annotations

import pytest

from jobs.contract import MoelineError
from jobs.services import ray_connection

TRACEBACK = "Initialization failure from server:\nTraceback (most recent call last):\nRuntimeError: Starting Ray client server failed."


@pytest.mark.parametrize(
    ("options", "error", "tries", "words"),
    [
        ({"address": "ray://head:10001"}, ConnectionAbortedError(TRACEBACK), 3, r"ray://head:10001 \(3 times\): Initialization .* server failed\.$"),
        ({"address": "ray://head:10001"}, ConnectionError("timed out\nmore"), 1, "ray://head:10001: timed out$"),
        ({"num_cpus": 1}, Exception(""), 3, r"this machine \(3 times\): Exception$"),
    ],
)
def test_what_does_not_start_is_tried_again_and_what_refuses_is_not(monkeypatch, options, error, tries, words):
    import ray

    asked = []

    def refuse(**given):
        asked.append(given)
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(MoelineError, match=words):
        ray_connection._init(options)
    assert len(asked) == tries and asked[0].items() >= options.items()


def test_a_client_server_that_starts_at_the_second_try_is_enough(monkeypatch):
    import ray

    answers = [ConnectionAbortedError(TRACEBACK), None]

    def init(**given):
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(ray, "init", init)
    ray_connection._init({"address": "ray://head:10001"})
    assert answers == []
