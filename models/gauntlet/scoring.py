"""Scoring: what a model answers. Foundry's rules (llm-foundry 8c8dd48), computed without Foundry's waste.

multiple choice and schema: lowest perplexity, i.e. highest mean log-probability per token, ties to the lowest index. language modeling:
the teacher-forced argmax equals every token of the continuation. generation: greedy; the normalised output starts with an answer.
Our own tasks (not Foundry's) subtract what an option scores without its context: pointwise mutual information (Holtzman et al. 2021,
"Surface form competition"), because lines and sentences differ far more in how common they are than in how well they fit.

Speed changes no score: a context is computed once and its choices continue from its cached keys and values, batches hold contexts of like
length, and only the positions that predict a continuation meet the vocabulary. Batches are formed from a sorted list of distinct
contexts, so the order in which items come cannot change a single bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models.gauntlet.answers import generation_is_right
from models.gauntlet.prompts import Encoder, Request, assemble
from models.gauntlet.tasks import GENERATION, LANGUAGE_MODELING, Benchmark

_LOGITS_AT_ONCE = 1 << 24  # float32 logits held at a time (64 MiB)


@dataclass(frozen=True)
class Response:
    """One answer. Log-probabilities in nats, one per option: summed over the option's tokens, and per token.

    ``mean_logprobs`` is what decides: where the task has an ``unconditional_context``, that of the option after it is subtracted.
    ``prediction`` is the option chosen (language modeling, generation: 0 right, -1 not). ``gold`` is -1 for generation.
    """

    item_id: str
    kind: str
    subset: str
    prompt: str
    prompt_hash: str
    n_prompt_tokens: int
    choices: tuple[str, ...]
    sum_logprobs: tuple[float, ...]
    mean_logprobs: tuple[float, ...]
    output: str
    prediction: int
    gold: int
    correct: bool
    truncated: bool


@dataclass(frozen=True)
class ContinuationScore:
    """``sum_logprob`` nats over ``n_tokens``; ``greedy`` the argmax token at every position of the continuation."""

    sum_logprob: float
    n_tokens: int
    greedy: tuple[int, ...]


Pair = tuple[tuple[int, ...], tuple[int, ...]]  # (context, continuation) token ids
_Group = tuple[tuple[int, ...], list[tuple[int, ...]]]  # a context and continuations of it


class Scorer:
    """A causal language model that answers.

    ``model`` has ``hidden(tokens_BT) -> (B, T, D)`` and ``lm_head``; if its ``hidden`` also takes a KV cache, give the cache's class as
    ``cache_type`` and prefixes are shared. ``batch_tokens`` bounds the padded positions of a forward pass.
    """

    def __init__(self, model: Any, encoder: Encoder, *, max_seq_len: int, batch_tokens: int = 16_384, cache_type: Callable[[], Any] | None = None) -> None:
        if batch_tokens < 1 or max_seq_len < 2:
            raise ValueError(f"batch_tokens {batch_tokens} must be at least 1 and max_seq_len {max_seq_len} at least 2.")
        self.model, self.encoder, self.max_seq_len, self.batch_tokens, self.cache_type = model, encoder, max_seq_len, batch_tokens, cache_type
        self.device = next(model.parameters()).device

    def continuation_scores(self, pairs: Iterable[Pair], progress: Callable[[int, int], None] | None = None) -> dict[Pair, ContinuationScore]:
        """Log-probability and greedy tokens of every distinct continuation after its context."""
        import torch

        groups = self._groups(pairs)
        results: dict[Pair, ContinuationScore] = {}
        done = 0
        with torch.inference_mode():
            for batch in self._batches(groups):
                single = self.cache_type is None or all(len(continuations) == 1 for _, continuations in batch)
                rows = [(context, continuation) for context, continuations in batch for continuation in continuations]
                hidden, targets = self._whole(rows) if single else self._from_prefix(batch)
                results.update(zip(rows, self._project(hidden, targets, [len(c) for _, c in rows]), strict=True))
                done += len(batch)
                if progress is not None:
                    progress(done, len(groups))
        return results

    def _groups(self, pairs: Iterable[Pair]) -> list[_Group]:
        """Distinct contexts by length, each with its continuations; a context with very many stands several times."""
        groups: list[_Group] = []
        for context, continuation in sorted(set(pairs), key=lambda pair: (len(pair[0]), pair[0], len(pair[1]), pair[1])):
            positions = len(context) + len(continuation)  # of the longest so far
            if groups and groups[-1][0] == context and positions * (len(groups[-1][1]) + 1) <= self.batch_tokens:
                groups[-1][1].append(continuation)
            else:
                groups.append((context, [continuation]))
        return groups

    def _batches(self, groups: Iterable[_Group]) -> Iterator[list[_Group]]:
        """Neighbours in length whose padded positions stay within ``batch_tokens``; always at least one group."""
        batch: list[_Group] = []
        n_rows = longest = 0
        for context, continuations in groups:
            alone = self.cache_type is None or len(continuations) == 1
            if batch and alone != (self.cache_type is None or len(batch[0][1]) == 1):
                yield batch
                batch, n_rows, longest = [], 0, 0
            here = max(len(c) for c in continuations)
            positions = max(longest, len(context) + here) * (n_rows + len(continuations))
            if batch and positions > self.batch_tokens:
                yield batch
                batch, n_rows, longest = [], 0, 0
            batch.append((context, continuations))
            n_rows += len(continuations)
            longest = max(longest, len(context) + here)
        if batch:
            yield batch

    def _padded(self, rows: Sequence[Sequence[int]]) -> Any:
        import torch

        tokens_BT = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for row, ids in zip(tokens_BT, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return tokens_BT.to(self.device)

    def _whole(self, rows: list[Pair]) -> tuple[Any, Any]:
        """Hidden states (N, D) before every continuation token and those tokens (N): one row per continuation, right-padded."""
        import torch

        hidden_BTD = self.model.hidden(self._padded([(*context, *continuation[:-1]) for context, continuation in rows]))
        at = [(b, len(context) - 1 + i) for b, (context, continuation) in enumerate(rows) for i in range(len(continuation))]
        row, column = torch.tensor(at, device=self.device).T
        return hidden_BTD[row, column], self._targets(rows)

    def _targets(self, rows: list[Pair]) -> Any:
        import torch

        return torch.tensor([token for _, continuation in rows for token in continuation], device=self.device)

    def _from_prefix(self, batch: list[_Group]) -> tuple[Any, Any]:
        """As ``_whole``, with every context computed once: its last state predicts all first tokens, its cache is continued."""
        import torch

        cache = self.cache_type()  # type: ignore[misc] - only called when there is one
        lengths_B = torch.tensor([len(context) for context, _ in batch], device=self.device)
        prefix_BTD = self.model.hidden(self._padded([context for context, _ in batch]), cache=cache, lengths_B=lengths_B)
        last_BD = prefix_BTD[torch.arange(len(batch), device=self.device), lengths_B - 1]
        rows = [(context, continuation) for context, continuations in batch for continuation in continuations]
        counts_B = torch.tensor([len(continuations) for _, continuations in batch], device=self.device)
        pieces = last_BD.repeat_interleave(counts_B, dim=0)[:, None]
        if any(len(continuation) > 1 for _, continuation in rows):
            # The last token of a continuation predicts nothing; a one-token continuation still needs one (unused) position.
            lengths_C = torch.tensor([max(1, len(continuation) - 1) for _, continuation in rows], device=self.device)
            tokens_CT = self._padded([continuation[:-1] or continuation for _, continuation in rows])
            pieces = torch.cat((pieces, self.model.hidden(tokens_CT, cache=cache.expand(counts_B), lengths_B=lengths_C)), dim=1)
        row, column = torch.tensor([(b, i) for b, (_, continuation) in enumerate(rows) for i in range(len(continuation))], device=self.device).T
        return pieces[row, column], self._targets(rows)

    def _project(self, hidden_ND: Any, targets_N: Any, lengths: list[int]) -> list[ContinuationScore]:
        import torch

        step = max(1, _LOGITS_AT_ONCE // self.model.lm_head.weight.shape[0])
        logprobs: list[float] = []
        greedy: list[int] = []
        for start in range(0, len(targets_N), step):
            logits_NV = self.model.lm_head(hidden_ND[start : start + step]).float()
            chosen_N = torch.log_softmax(logits_NV, dim=-1).gather(1, targets_N[start : start + step, None])[:, 0]
            logprobs += chosen_N.double().tolist()
            greedy += logits_NV.argmax(-1).tolist()
        scores, at = [], 0
        for length in lengths:
            scores.append(ContinuationScore(sum(logprobs[at : at + length]), length, tuple(greedy[at : at + length])))
            at += length
        return scores

    def generate(self, contexts: Sequence[tuple[int, ...]], max_new_tokens: int, stops: Sequence[str]) -> list[str]:
        """Greedy continuation of every context as text: ends at EOS, at one of ``stops`` or after ``max_new_tokens``."""
        import torch

        outputs: dict[tuple[int, ...], str] = {}
        waiting = sorted(set(contexts), key=lambda c: (len(c), c))
        with torch.inference_mode():
            while waiting:
                size = max(1, min(len(waiting), self.batch_tokens // (len(waiting[0]) + max_new_tokens)))
                batch, waiting = waiting[:size], waiting[size:]
                for context, ids in zip(batch, self._greedy(batch, max_new_tokens, stops), strict=True):
                    outputs[context] = self.encoder.decode(ids)
        return [outputs[context] for context in contexts]

    def _greedy(self, contexts: list[tuple[int, ...]], max_new_tokens: int, stops: Sequence[str]) -> list[list[int]]:
        import torch

        new: list[list[int]] = [[] for _ in contexts]
        alive = [True] * len(contexts)
        cache = self.cache_type() if self.cache_type is not None else None
        lengths_B = torch.tensor([len(c) for c in contexts], device=self.device)
        tokens_BT = self._padded(contexts)
        for _ in range(max_new_tokens):
            if cache is not None:
                hidden_BTD = self.model.hidden(tokens_BT, cache=cache, lengths_B=lengths_B)
            else:
                sequences = [(*context, *ids) for context, ids in zip(contexts, new, strict=True)]
                hidden_BTD, lengths_B = self.model.hidden(self._padded(sequences)), torch.tensor([len(s) for s in sequences], device=self.device)
            next_B = self.model.lm_head(hidden_BTD[torch.arange(len(contexts), device=self.device), lengths_B - 1]).argmax(-1)
            for b, token in enumerate(next_B.tolist()):
                if alive[b] and token == self.encoder.eos_id:
                    alive[b] = False
                elif alive[b]:
                    new[b].append(token)
                    alive[b] = not any(stop in self.encoder.decode(new[b]) for stop in stops)
            if not any(alive):
                break
            tokens_BT, lengths_B = next_B[:, None], torch.ones_like(lengths_B)
        return new


def prompt_hash(request: Request) -> str:
    """First 16 hex digits of the sha256 of every token id the model reads for this item."""
    return hashlib.sha256(repr((request.contexts, request.continuations)).encode()).hexdigest()[:16]


def _respond(request: Request, scores: dict[Pair, ContinuationScore], encoder: Encoder, unconditional: tuple[int, ...] = ()) -> Response:
    answered = [scores[pair] for pair in zip(request.contexts, request.continuations, strict=True)]
    sums = tuple(s.sum_logprob for s in answered)
    without = [scores[unconditional, c].sum_logprob if unconditional else 0.0 for c in request.continuations]
    means = tuple((s.sum_logprob - prior) / s.n_tokens for s, prior in zip(answered, without, strict=True))
    if not all(map(math.isfinite, sums)):
        raise ValueError(f"Item {request.item_id}: a log-probability is {sums}, not a number. The weights are broken (or training diverged).")
    if request.kind == LANGUAGE_MODELING:
        right = answered[0].greedy == request.continuations[0]
        prediction, output = (0 if right else -1), encoder.decode(answered[0].greedy)
    else:
        prediction = max(range(len(means)), key=lambda i: (means[i], -i))
        right, output = prediction == request.gold, request.options[prediction]
    return _response(request, sums, means, output, prediction, right)


def _response(request: Request, sums: tuple[float, ...], means: tuple[float, ...], output: str, prediction: int, right: bool) -> Response:
    return Response(
        item_id=request.item_id, kind=request.kind, subset=request.subset, prompt=request.prompt, prompt_hash=prompt_hash(request),
        n_prompt_tokens=max(map(len, request.contexts)), choices=request.answers if request.kind == GENERATION else request.options,
        sum_logprobs=sums, mean_logprobs=means, output=output, prediction=prediction, gold=request.gold, correct=right, truncated=request.truncated,
    )  # fmt: skip


def score(
    benchmark: Benchmark, scorer: Scorer, *, keep: Callable[[str], bool] | None = None, progress: Callable[[int, int], None] | None = None
) -> list[Response]:
    """The model's answers to a benchmark's items (those whose id ``keep`` accepts), in row order.

    Raises ValueError naming the task when an answer does not fit the model's sequences, or a log-probability is not a number.
    """
    task = benchmark.task
    requests = list(assemble(benchmark, scorer.encoder, scorer.max_seq_len, keep))
    if task.kind == GENERATION:
        outputs = scorer.generate([r.contexts[0] for r in requests], requests[0].max_new_tokens, task.early_stopping) if requests else []
        rights = [generation_is_right(task, output, r.answers) for r, output in zip(requests, outputs, strict=True)]
        return [_response(r, (), (), o, 0 if ok else -1, ok) for r, o, ok in zip(requests, outputs, rights, strict=True)]
    pairs = [pair for r in requests for pair in zip(r.contexts, r.continuations, strict=True)]
    unconditional = tuple(scorer.encoder.encode(task.unconditional_context, False)) if task.unconditional_context else ()
    if unconditional:
        pairs += [(unconditional, continuation) for r in requests for continuation in r.continuations]
    scores = scorer.continuation_scores(pairs, progress)
    return [_respond(r, scores, scorer.encoder, unconditional) for r in requests]
