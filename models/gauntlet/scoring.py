"""Scoring: what a model answers. Foundry's rules (llm-foundry 8c8dd48), computed without Foundry's waste.

multiple choice and schema: lowest perplexity, i.e. highest mean log-probability per token, ties to the lowest index. language modeling:
the teacher-forced argmax equals every token of the continuation. generation: greedy; the normalised output starts with an answer.
Our own tasks (not Foundry's) subtract what an option scores without its context: pointwise mutual information (Holtzman et al. 2021,
"Surface form competition"), because lines and sentences differ far more in how common they are than in how well they fit.

Speed changes no score: what texts begin with alike is computed once and continued from its cached keys and values (prefix_tree.py), and
only the positions that predict a continuation meet the vocabulary. On CPU in float32, with a cache, an answer does not change by a bit with
the size of batches, the order of items or which others are asked (models/kv_cache.py says why); elsewhere only in its last digits.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.gauntlet.answers import generation_is_right
from models.gauntlet.prefix_tree import Edge, Positions, Walk, least_rows, prefix_tree
from models.gauntlet.prompts import Encoder, Request, assemble
from models.gauntlet.sampling import Draw, Sampling
from models.gauntlet.tasks import GENERATION, LANGUAGE_MODELING, Benchmark, Task

_LOGITS_AT_ONCE = 1 << 24  # float32 logits held at a time (64 MiB)


@dataclass(frozen=True)
class Response:
    """One answer. Log-probabilities in nats, one per option: summed over the option's tokens, and per token.

    ``mean_logprobs`` is what decides: where the task has an ``unconditional_context``, that of the option after it is subtracted.
    ``prediction`` is the option chosen (language modeling, generation: 0 right, -1 not). ``gold`` is -1 for generation.
    ``confidence`` (language modeling): probability of the least likely token of the model's own greedy answer.
    Of several samples (code evaluation) ``output`` is the first, ``samples`` are all and ``passes`` says which passed; ``credit`` is the estimated
    chance that one of k passes, which the accuracy averages, and ``correct`` whether one of the first k did.
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
    confidence: float | None = None
    samples: tuple[str, ...] = ()
    passes: tuple[bool, ...] = ()
    credit: float | None = None

    @property
    def value(self) -> float:
        """What the item adds to its benchmark's accuracy, 0 to 1."""
        return float(self.correct) if self.credit is None else self.credit

    def about_samples(self, max_chars: int) -> dict[str, Any]:
        """The samples as JSON, each cut to ``max_chars``; nothing where there is only one."""
        both = zip(self.samples, self.passes, strict=True)
        return {"credit": self.credit, "samples": [{"output": text[:max_chars], "passed": ok} for text, ok in both]} if self.samples else {}


@dataclass(frozen=True)
class ContinuationScore:
    """``sum_logprob`` nats over ``n_tokens``; ``greedy`` the argmax token at every position of the continuation.

    ``least_logprob``: the log-probability of the least likely of these argmax tokens.
    """

    sum_logprob: float
    n_tokens: int
    greedy: tuple[int, ...]
    least_logprob: float


Pair = tuple[tuple[int, ...], tuple[int, ...]]  # (context, continuation) token ids


class Scorer:
    """A causal language model that answers.

    ``model`` is a torch module with ``lm_head`` and ``hidden``. Without ``cache_type`` it is called as ``hidden(tokens_BT) -> (B, T, D)``
    on whole, right-padded texts: any causal model will do, and nothing but repeated texts is shared. With a ``cache_type`` (a class or
    function giving an empty models.kv_cache.KVCache) it is called as ``hidden(tokens_BT, cache=cache, lengths_B=lengths)``: row b continues
    row b of the cache by its first ``lengths[b]`` tokens, at the positions ``cache.plan(tokens_BT)``; every layer calls ``cache.attend``, and
    ``cache.advance(T, lengths)`` ends the pass. models.transformer.Transformer and models.huggingface_cache.CachedCausalLM do. A model that
    knows its own (``model.cache_type``: models.gauntlet.outside_models.OutsideModel) needs none given.

    ``batch_tokens`` bounds the cached positions of a pass. ``positions`` counts what the model has run.
    """

    def __init__(self, model: Any, encoder: Encoder, *, max_seq_len: int, batch_tokens: int = 16_384, cache_type: Callable[[], Any] | None = None) -> None:
        if batch_tokens < 1 or max_seq_len < 2:
            raise ValueError(f"batch_tokens {batch_tokens} must be at least 1 and max_seq_len {max_seq_len} at least 2.")
        self.model, self.encoder, self.max_seq_len, self.batch_tokens = model, encoder, max_seq_len, batch_tokens
        self.cache_type = cache_type or getattr(model, "cache_type", None)
        self.device = next(model.parameters()).device
        self.positions = Positions()

    def continuation_scores(self, pairs: Iterable[Pair], progress: Callable[[int, int], None] | None = None) -> dict[Pair, ContinuationScore]:
        """Log-probability and greedy tokens of every distinct continuation after its context."""
        import torch

        by_text: dict[tuple[int, ...], list[Pair]] = {}
        for context, continuation in sorted(set(pairs)):
            by_text.setdefault((*context, *continuation[:-1]), []).append((context, continuation))
        texts = sorted(by_text)
        asked = [by_text[text] for text in texts]
        tree = prefix_tree(texts, [min(len(context) for context, _ in p) - 1 for p in asked], shared=self.cache_type is not None)
        found: dict[Pair, list[tuple[float, int, float]]] = {}
        done = 0

        def read(edges: list[Edge], hidden_BTD: Any, cache: Any) -> None:
            nonlocal done
            self._read(edges, hidden_BTD, asked, found)
            if progress is not None and (ended := sum(len(edge.ends) for edge in edges)):
                done += ended
                progress(done, len(texts))

        with torch.inference_mode():
            Walk(self.model, self.cache_type, self.batch_tokens, self.device, read, self.positions).run(tree)
        return {pair: _continuation_score(steps) for pair, steps in found.items()}

    def _read(self, edges: list[Edge], hidden_BTD: Any, asked: list[list[Pair]], found: dict[Pair, list[tuple[float, int, float]]]) -> None:
        """Add the (log-probability, argmax, its log-probability) of every wanted token of these edges; each position meets the vocabulary once."""
        import torch

        places: dict[tuple[int, int], int] = {}
        wanted: list[tuple[int, int, Pair]] = []  # (index into places, target, pair)
        for row, edge in enumerate(edges):
            for position, number in edge.wanted:
                for context, continuation in asked[number]:
                    if position >= len(context) - 1:
                        place = places.setdefault((row, position - edge.start), len(places))
                        wanted.append((place, continuation[position - len(context) + 1], (context, continuation)))
        if not wanted:
            return
        row, column = torch.tensor(list(places), device=self.device).T
        place, target = torch.tensor([w[:2] for w in wanted], device=self.device).T
        logprobs, greedy, likeliest = self._project(hidden_BTD[row, column], place, target)
        for index, (at, _, pair) in enumerate(wanted):
            found.setdefault(pair, []).append((logprobs[index], greedy[at], likeliest[at]))

    def _project(self, hidden_ND: Any, place: Any, target: Any) -> tuple[list[float], list[int], list[float]]:
        """(log-probability of each ``target`` at its ``place``, ascending; argmax of each row of ``hidden_ND``; its log-probability)."""
        import torch

        step = max(least_rows(), _LOGITS_AT_ONCE // self.model.lm_head.weight.shape[0])
        logprobs: list[float] = []
        greedy: list[int] = []
        likeliest: list[float] = []
        order = place.argsort(stable=True)
        for start in range(0, len(hidden_ND), step):
            logits_NV = self._logits(hidden_ND[start : start + step])
            here = order[(place[order] >= start) & (place[order] < start + step)]
            at, which = place[here] - start, target[here]
            logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
            best_N = logits_NV.argmax(-1)
            logprobs += logprobs_NV[at, which].double().tolist()
            greedy += best_N.tolist()
            likeliest += logprobs_NV.gather(1, best_N[:, None])[:, 0].double().tolist()
        sorted_back = [0.0] * len(logprobs)
        for logprob, index in zip(logprobs, order.tolist(), strict=True):
            sorted_back[index] = logprob
        return sorted_back, greedy, likeliest

    def _logits(self, hidden_ND: Any) -> Any:
        """float32 (N, V), computed in a product of at least ``least_rows``."""
        import torch

        missing = max(0, least_rows() - len(hidden_ND))
        return self.model.lm_head(torch.nn.functional.pad(hidden_ND, (0, 0, 0, missing))).float()[: len(hidden_ND)]

    def generate(self, contexts: Sequence[tuple[int, ...]], max_new_tokens: int, stops: Sequence[str], *, encoder: Encoder | None = None) -> list[str]:
        """Greedy continuation of every context as text: ends at EOS, at one of ``stops`` or after ``max_new_tokens``.

        ``encoder`` (default: the scorer's own) says what EOS is and how tokens read.
        """
        from models.gauntlet.generation import Greedy

        scorer = copy.copy(self)
        scorer.encoder = encoder or self.encoder
        return Greedy(scorer, max_new_tokens, stops).continue_all(contexts)

    def sample(self, draws: Sequence[Draw], max_new_tokens: int, stops: Sequence[str], sampling: Sampling) -> list[str]:
        """A sampled continuation for every (context, name): the same text for the same draw, whichever others are asked."""
        from models.gauntlet.generation import Sampled

        return Sampled(self, max_new_tokens, stops, sampling).continue_draws(draws)


def _continuation_score(steps: Sequence[tuple[float, int, float]]) -> ContinuationScore:
    return ContinuationScore(sum(lp for lp, _, _ in steps), len(steps), tuple(t for _, t, _ in steps), min(best for _, _, best in steps))


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
        right, confidence = answered[0].greedy == request.continuations[0], math.exp(answered[0].least_logprob)
        prediction, output = (0 if right else -1), encoder.decode(answered[0].greedy)
    else:
        prediction = max(range(len(means)), key=lambda i: (means[i], -i))
        right, output, confidence = prediction == request.gold, request.options[prediction], None
    return replace(_response(request, sums, means, output, prediction, right), confidence=confidence)


def _response(request: Request, sums: tuple[float, ...], means: tuple[float, ...], output: str, prediction: int, right: bool) -> Response:
    return Response(
        item_id=request.item_id, kind=request.kind, subset=request.subset, prompt=request.prompt, prompt_hash=prompt_hash(request),
        n_prompt_tokens=max(map(len, request.contexts)), choices=request.answers if request.kind == GENERATION else request.options,
        sum_logprobs=sums, mean_logprobs=means, output=output, prediction=prediction, gold=request.gold, correct=right, truncated=request.truncated,
    )  # fmt: skip


def _written(task: Task, requests: Sequence[Request], scorer: Scorer) -> list[str]:
    """The answers to a generation task."""
    if not requests:
        return []
    longest, stops = requests[0].max_new_tokens, task.early_stopping
    if task.own_rules is None:
        return scorer.generate([r.contexts[0] for r in requests], longest, stops)
    return scorer.sample([(r.contexts[0], r.item_id) for r in requests], longest, stops, task.own_rules)


def score(
    benchmark: Benchmark, scorer: Scorer, *, keep: Callable[[str], bool] | None = None, progress: Callable[[int, int], None] | None = None
) -> list[Response]:
    """The model's answers to a benchmark's items (those whose id ``keep`` accepts), in row order.

    Raises ValueError naming the task when an answer does not fit the model's sequences, or a log-probability is not a number.
    """
    task = benchmark.task
    requests = list(assemble(benchmark, scorer.encoder, scorer.max_seq_len, keep))
    if task.kind == GENERATION:
        outputs = _written(task, requests, scorer)
        rights = [generation_is_right(task, output, r.answers) for r, output in zip(requests, outputs, strict=True)]
        return [_response(r, (), (), o, 0 if ok else -1, ok) for r, o, ok in zip(requests, outputs, rights, strict=True)]
    pairs = [pair for r in requests for pair in zip(r.contexts, r.continuations, strict=True)]
    unconditional = tuple(scorer.encoder.encode(task.unconditional_context, False)) if task.unconditional_context else ()
    if unconditional:
        pairs += [(unconditional, continuation) for r in requests for continuation in r.continuations]
    scores = scorer.continuation_scores(pairs, progress)
    return [_respond(r, scores, scorer.encoder, unconditional) for r in requests]
