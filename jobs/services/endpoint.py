"""A served model behind an OpenAI-compatible address (…/v1): it continues texts, so it can answer generation tasks and nothing else.

Looks to the Gauntlet like a scorer whose tokens are characters: prompts are never cut short, and an answer may be as many tokens long as the
longest right answer has characters. Change here: the protocol, retries. Not here: what is asked (jobs/evaluating), what is right (models/gauntlet).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from jobs.contract import MoelineError
from models.gauntlet.sampling import Draw, Sampling, uniform

CHARACTERS = 1 << 20  # the longest prompt, in characters
_STOPS = 4  # the protocol takes no more; the answer is cut at all of them when it is judged
_ATTEMPTS = 5
_AT_ONCE = 8


class CharacterEncoder:
    """Every character is a token, so that texts survive being assembled from tokens."""

    eos_id: int | None = None

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


class EndpointScorer:
    """Continuations from ``url``. The key is read from the environment variable ``key_variable`` and shown nowhere.

    ``model``: its name there ("": the first it lists). Raises MoelineError when the server refuses, or does not answer after some tries.
    """

    def __init__(self, url: str, *, model: str = "", key_variable: str = "OPENAI_API_KEY", timeout_seconds: float = 300.0, wait_seconds: float = 1.0) -> None:
        self.encoder, self.max_seq_len = CharacterEncoder(), CHARACTERS
        self.url, self.wait_seconds = url.rstrip("/"), wait_seconds
        key = os.environ.get(key_variable, "")
        self.client = httpx.Client(timeout=timeout_seconds, headers={"Authorization": f"Bearer {key}"} if key else {})
        self.model = model or self._first_model()

    def _first_model(self) -> str:
        try:
            return str(self._ask("GET", "/models")["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise MoelineError(f"{self.url}/models lists no model. Name it with --served-model.") from None

    def generate(self, contexts: Sequence[tuple[int, ...]], max_new_tokens: int, stops: Sequence[str]) -> list[str]:
        """Greedy continuation of every context."""
        return self._complete_all([(context, {"temperature": 0}) for context in contexts], max_new_tokens, stops)

    def sample(self, draws: Sequence[Draw], max_new_tokens: int, stops: Sequence[str], sampling: Sampling) -> list[str]:
        """A sampled continuation for every draw: with a seed of its own, which a server may ignore. The protocol knows no top_k."""
        settings = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        seeds = [int(uniform(draw, 0, sampling.seed) * (1 << 31)) for draw in draws]
        return self._complete_all([(draw[0], {**settings, "seed": seed}) for draw, seed in zip(draws, seeds, strict=True)], max_new_tokens, stops)

    def _complete_all(self, asked: Sequence[tuple[Sequence[int], dict[str, Any]]], max_new_tokens: int, stops: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(lambda one: self._complete(self.encoder.decode(one[0]), max_new_tokens, stops, one[1]), asked))

    def _complete(self, prompt: str, max_new_tokens: int, stops: Sequence[str], settings: dict[str, Any]) -> str:
        body: dict[str, Any] = {"model": self.model, "prompt": prompt, "max_tokens": max_new_tokens, **settings}
        if stops:
            body["stop"] = list(stops[:_STOPS])
        found = self._ask("POST", "/completions", body)
        try:
            text = found["choices"][0]["text"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise MoelineError(f"{self.url}/completions answered without a text: {str(found)[:200]}. Is it an OpenAI-compatible server?")
        return text

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """JSON of a request; a busy or failing server is asked again, waiting longer each time."""
        problem = ""
        for attempt in range(_ATTEMPTS):
            try:
                response = self.client.request(method, f"{self.url}{path}", json=body)
                if response.status_code < 400:
                    return response.json()
                problem = f"HTTP {response.status_code}: {' '.join(response.text.split())[:200]}"
                if response.status_code != 429 and response.status_code < 500:
                    break
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
                if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
                    break
            if attempt + 1 < _ATTEMPTS:
                time.sleep(self.wait_seconds * 2**attempt)
        raise MoelineError(f"Asked {self.url}{path}: {problem}. What was answered so far is kept; the same command goes on.")
