"""Answers from several Ray workers: one queue of small chunks of prompts, and whoever is free takes the next.

A slow worker takes fewer chunks, a dead one's chunk goes back into the queue. An answer does not depend on the chunk it is computed in
(models/kv_cache.py), so the result is that of one process. ``RayScorer`` stands where a ``Scorer`` stands: ``score(benchmark, scorer)``.
Change here: how work is shared out. Not here: how an answer is computed (models/gauntlet/scoring.py), connecting to Ray (ray.py).
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import REPO
from models.gauntlet.prompts import Encoder

CHUNK_TOKENS = 20_000  # of prompts; beginnings are shared within a chunk
MAX_DEATHS = 3  # workers that may die before scoring fails


class RayScorer:
    """``load``: makes the Scorer inside a worker, from what it carries (paths, not weights). Needs a connected Ray (ray_connection.py).

    The cores of the cluster are shared out among the workers, each takes ``gpus``; ``encoder`` and ``max_seq_len`` are those of the Scorers.
    ``chunks_done`` says how many chunks each worker answered. Raises MoelineError when the cluster is too small for the workers, more than
    ``MAX_DEATHS`` of them die, or one cannot load the model.
    """

    def __init__(self, load: Callable[[], Any], encoder: Encoder, *, max_seq_len: int, workers: int, gpus: float = 0.0) -> None:
        import ray

        there = ray.cluster_resources()
        cores = int(there.get("CPU", 0))
        if not 1 <= workers <= cores or workers * gpus > there.get("GPU", 0):
            raise MoelineError(
                f"Asked for {workers} scoring workers of a core and {gpus:g} GPUs each; Ray has {cores} cores and {there.get('GPU', 0):g} GPUs. Ask for fewer."
            )
        self.encoder, self.max_seq_len, self.threads, self.gpus = encoder, max_seq_len, cores // workers, gpus
        self._load = [ray.put(load)]  # in a list Ray leaves it closed until the worker, which knows by then where the code lies, asks for it
        self._deaths = 0
        self.workers = [self._start() for _ in range(workers)]
        self.chunks_done = [0] * workers

    def _start(self) -> Any:
        import ray
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the worker learns where the code lies before importing it
        return ray.remote(num_cpus=self.threads, num_gpus=self.gpus)(_Worker).remote(str(REPO), self._load, self.threads)

    def continuation_scores(self, pairs: Iterable[Any], progress: Callable[[int, int], None] | None = None) -> dict[Any, Any]:
        """As Scorer.continuation_scores."""
        distinct = sorted(set(pairs))
        chunks = list(_chunks(distinct, lambda pair: len(pair[0]) + len(pair[1])))
        found: dict[Any, Any] = {}
        for answer in self._share_out("continuation_scores", [(chunk,) for chunk in chunks]).values():
            found.update(answer)
            if progress is not None:
                progress(len(found), len(distinct))
        return found

    def generate(self, contexts: Sequence[Any], max_new_tokens: int, stops: Sequence[str], *, encoder: Encoder | None = None) -> list[str]:
        """As Scorer.generate."""
        import ray

        given = None if encoder is None else ray.put(encoder)  # sent to a worker once
        return self._texts("generate", contexts, lambda context: len(context) + max_new_tokens, max_new_tokens, stops, encoder=given)

    def sample(self, draws: Sequence[Any], max_new_tokens: int, stops: Sequence[str], sampling: Any) -> list[str]:
        """As Scorer.sample."""
        return self._texts("sample", draws, lambda draw: len(draw[0]) + max_new_tokens, max_new_tokens, stops, sampling)

    def _texts(self, what: str, asked: Sequence[Any], size: Callable[[Any], int], *arguments: Any, **named: Any) -> list[str]:
        chunks = list(_chunks(sorted(set(asked)), size))
        answers = self._share_out(what, [(chunk, *arguments) for chunk in chunks], **named)
        text = {one: output for number, chunk in enumerate(chunks) for one, output in zip(chunk, answers[number], strict=True)}
        return [text[one] for one in asked]

    def _share_out(self, what: str, chunks: list[tuple[Any, ...]], **named: Any) -> dict[int, Any]:
        import ray

        waiting, answers = deque(range(len(chunks))), {}
        running: dict[Any, tuple[int, int]] = {}  # future -> (worker, chunk)
        idle = list(range(len(self.workers)))
        while waiting or running:
            while waiting and idle:
                worker, chunk = idle.pop(), waiting.popleft()
                running[self.workers[worker].answer.remote(what, *chunks[chunk], **named)] = (worker, chunk)
            (ready,), _ = ray.wait(list(running), num_returns=1)
            worker, chunk = running.pop(ready)
            try:
                answers[chunk] = ray.get(ready)
                self.chunks_done[worker] += 1
            except ray.exceptions.RayActorError as error:
                self._deaths += 1
                if self._deaths > MAX_DEATHS:
                    reason = str(error).strip().splitlines()[-1]
                    raise MoelineError(f"{self._deaths} scoring workers died, the last one with: {reason}") from error
                waiting.appendleft(chunk)
                self.workers[worker] = self._start()
            idle.append(worker)
        return answers

    def close(self) -> None:
        """End the workers."""
        import ray

        for worker in self.workers:
            ray.kill(worker)


def _chunks(sorted_prompts: list[Any], size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Neighbours (which begin alike), about ``CHUNK_TOKENS`` at a time."""
    chunk: list[Any] = []
    filled = 0
    for prompt in sorted_prompts:
        if chunk and filled + size(prompt) > CHUNK_TOKENS:
            yield chunk
            chunk, filled = [], 0
        chunk.append(prompt)
        filled += size(prompt)
    if chunk:
        yield chunk


class _Worker:
    """Runs in a Ray worker: a Scorer that answers one chunk at a time."""

    def __init__(self, repo: str, load: list[Any], threads: int) -> None:
        sys.path.insert(0, repo)
        import ray
        import torch

        torch.set_num_threads(threads)
        self.scorer = ray.get(load[0])()

    def answer(self, what: str, *arguments: Any, **named: Any) -> Any:
        return getattr(self.scorer, what)(*arguments, **named)
