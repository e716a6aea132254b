"""The command: identify the model, ask what no journal or cache can answer, score, write.

Answers come in portions of items that take some seconds; each portion is on disk before the next is asked, so a kill loses that much.
Change here: the order of things, progress. Not here: prompts and scores (models/gauntlet), what a file looks like (writing.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.evaluating import answers, lm_eval_tasks, model, questions, writing
from models.gauntlet import averages, code_evaluation, own_rules
from models.gauntlet.gauntlet import Gauntlet, gauntlet_rows, gauntlet_scored
from models.gauntlet.scoring import Response, score
from models.gauntlet.tasks import CODE, EXACT, FIXED, GENERATION, Benchmark, Mode

MODES = (EXACT, FIXED)
FIRST_PORTION, LARGEST_PORTION = 16, 4096  # items
PORTION_SECONDS = 5.0
_URLS = ("http://", "https://")


@dataclass(frozen=True)
class Options:
    """What the command line gives. ``lm_eval_include`` is for tasks of lm_eval.

    For a served model only: ``served_model``, ``key_variable``, ``reuse_answers`` (also of runs that came to their end).
    """

    model: str
    suite: str
    data: Path
    out: Path
    tasks: tuple[str, ...] = ()
    max_items: int | None = None
    mode: Mode = EXACT
    batch_tokens: int = 16_384
    max_seq_len: int | None = None
    tokenizer: Path | None = None
    workers: int = 1
    served_model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    lm_eval_include: Path | None = None
    reuse_answers: bool = False


@dataclass
class _Asker:
    """Asks the model, which is loaded when the first question needs it."""

    evaluated: model.EvaluatedModel
    options: Options
    connect: Callable[[], contextlib.AbstractContextManager[None]]
    until: contextlib.ExitStack
    counts: dict[str, int] = field(default_factory=lambda: {"asked": 0, "from_journal": 0, "from_cache": 0})

    @cached_property
    def scorer(self) -> Any:
        if self.evaluated.kind == model.ENDPOINT:
            from jobs.services.endpoint import EndpointScorer

            return EndpointScorer(self.evaluated.name, model=self.evaluated.served_model, key_variable=self.options.key_variable)
        if self.options.workers == 1:
            return self.evaluated.scorer(self.options.batch_tokens)
        from jobs.services.ray_scoring import RayScorer

        self.until.enter_context(self.connect())
        found = RayScorer(
            model.Loader(self.evaluated, self.options.batch_tokens), self.evaluated.encoder(), max_seq_len=self.evaluated.max_seq_len,
            workers=self.options.workers, gpus=1.0 if self.evaluated.device == "cuda" else 0.0,
        )  # fmt: skip
        self.until.callback(found.close)
        return found


def _ask(benchmark: Benchmark, scorer: Any, ids: Collection[str], progress: Callable[[int, int], None]) -> list[Response]:
    """The one place that asks; in which mode is a property of the task."""
    ask = code_evaluation.score if benchmark.task.kind == CODE else score
    return ask(benchmark, scorer, keep=ids.__contains__, progress=progress)


def _score(benchmark: Benchmark, responses: Sequence[Response]) -> averages.Score:
    """The one place that scores."""
    asked = {r.item_id for r in responses}
    return averages.score_benchmark(benchmark.task, [i for i in benchmark.items if i.item_id in asked], responses)


def run(
    options: Options, *, cache_folder: Path | None, tokenizers: Path | None = None, home: Path | None = None, echo: Callable[[str], None] = lambda _: None,
    connect: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate and write ``options.out``; returns the content of scores.json. Raises MoelineError with what to do.

    ``connect`` gives a connection to Ray, taken only when several workers have something to answer.
    """
    started = time.monotonic()
    if options.mode not in MODES:
        raise MoelineError(f"--mode {options.mode!r} is unknown. Modes: {', '.join(MODES)}.")
    if options.batch_tokens < 1:
        raise MoelineError(f"--batch-tokens {options.batch_tokens} must be at least 1.")
    if options.workers < 1 or (options.workers > 1 and options.model.startswith(_URLS)):
        raise MoelineError(f"--workers {options.workers}: give 1 or more, and 1 for a served model, which has its own processes.")
    asked = questions.load(options.suite, options.data, only=options.tasks, max_items=options.max_items, mode=options.mode, include=options.lm_eval_include)
    if not (asked.benchmarks or asked.lm_eval):
        raise MoelineError(f"Suite {options.suite} asks for nothing.")
    evaluated = _model(options, asked, tokenizers, home)
    try:
        asked = replace(asked, benchmarks=own_rules.applied(asked.benchmarks, evaluated.own_rules))
    except ValueError as error:
        raise MoelineError(f"Model {evaluated.name}, {error}") from error
    # Nobody can see the weights of a served model, so its answers are never taken for those of another day.
    cache = answers.Cache(None if evaluated.kind == model.ENDPOINT else cache_folder)
    progress = writing.Progress(sum(map(len, asked.kept.values())), echo)
    with answers.Journal(options.out) as journal, contextlib.ExitStack() as until:
        asker = _Asker(evaluated, options, connect, until)
        try:
            responses = _all_answers(asked, asker, journal, cache, progress)
            scores = [_score(b, responses[b.task.label]) for b in asked.benchmarks]
            outside = lm_eval_tasks.answer(
                asked.lm_eval, evaluated, lambda: asker.scorer, include=options.lm_eval_include, max_items=options.max_items, max_seq_len=options.max_seq_len,
                journal=journal, cache=cache, counts=asker.counts, echo=echo,
            )  # fmt: skip
            written = [code_evaluation.pass_rates(b.task, responses[b.task.label]) for b in asked.benchmarks if b.task.kind == CODE]
            result = {**_result(options, evaluated, asked, scores), "pass_at_k": written, "lm_eval": outside.results}
        except ValueError as error:  # models know nothing of jobs' errors
            raise MoelineError(f"Evaluation of {evaluated.name} stopped: {error}") from error
        result["run"] = {**asker.counts, "seconds": round(time.monotonic() - started, 2)}
        writing.write(options.out, result, asked, responses, outside.items)
        if evaluated.kind == model.ENDPOINT:
            journal.finish()
    return result


def _model(options: Options, asked: questions.Questions, tokenizers: Path | None, home: Path | None) -> model.EvaluatedModel:
    if not options.model.startswith(_URLS):
        return model.find(Path(options.model), tokenizer=options.tokenizer, max_seq_len=options.max_seq_len, known_tokenizers=tokenizers, home=home)
    from jobs.services.endpoint import CHARACTERS, EndpointScorer

    refused = [b.task.label for b in asked.benchmarks if b.task.kind not in (GENERATION, CODE)] + [entry.label for entry in asked.lm_eval]
    if refused:
        raise MoelineError(
            f"{options.model} is a served model: it gives texts, not log-probabilities of given answers, so {', '.join(refused)} cannot be scored. "
            "Name the generation tasks with --tasks, or evaluate the model's folder."
        )
    served = options.served_model or EndpointScorer(options.model, key_variable=options.key_variable).model  # the first listed may change from day to day
    return model.EvaluatedModel(
        name=options.model, kind=model.ENDPOINT, folder=None, tokenizer=None, weights_digest="", tokenizer_digest=served, served_model=served,
        max_seq_len=options.max_seq_len or CHARACTERS, device="served", dtype="",
    )  # fmt: skip


def _all_answers(
    asked: questions.Questions, asker: _Asker, journal: answers.Journal, cache: answers.Cache, progress: writing.Progress
) -> dict[str, list[Response]]:
    """Responses by label in file order: from the cache, from the journal, and the rest from the model."""
    mode, found = asker.options.mode, {}
    before = journal.entries(unfinished_only=asker.evaluated.kind == model.ENDPOINT and not asker.options.reuse_answers)
    for benchmark in asked.benchmarks:
        label = benchmark.task.label
        key, kept = answers.benchmark_key(benchmark, asker.evaluated.identity(), mode), asked.kept[label]
        cached, written = cache.load(key), before.get(key, {})
        known = {i: written.get(i) or cached[i] for i in kept if i in written or i in cached}
        asker.counts["from_journal"] += sum(1 for i in kept if i in written)
        asker.counts["from_cache"] += sum(1 for i in kept if i in cached and i not in written)
        progress.skip(len(known), label)
        for portion in _portions([i for i in kept if i not in known]):
            fresh = _ask(benchmark, asker.scorer, set(portion), progress.within(len(portion)))
            journal.append(key, fresh)
            known |= {r.item_id: r for r in fresh}
            asker.counts["asked"] += len(fresh)
            progress.done(len(portion))
        if any(i not in cached for i in kept):
            cache.store(key, known)
        found[label] = [known[i] for i in kept]
    return found


def _portions(items: Sequence[str]) -> Iterator[Sequence[str]]:
    """``items`` in order, as many at a time as will take about PORTION_SECONDS, going by how long the caller took over the last ones."""
    size, at = FIRST_PORTION, 0
    while at < len(items):
        began = time.monotonic()
        yield items[at : at + size]
        at += size
        faster = PORTION_SECONDS / max(time.monotonic() - began, 1e-3)
        size = max(1, min(int(size * min(faster, 4.0)), LARGEST_PORTION))


def _result(options: Options, evaluated: model.EvaluatedModel, asked: questions.Questions, scores: Sequence[averages.Score]) -> dict[str, Any]:
    scores, categories, named = _averaged(asked, scores) if scores else (scores, [], [])
    return {
        "model": evaluated.name, "kind": evaluated.kind, "weights_digest": evaluated.weights_digest, "tokenizer_digest": evaluated.tokenizer_digest,
        "max_seq_len": evaluated.max_seq_len, "device": evaluated.device, "dtype": evaluated.dtype, "suite": asked.suite,
        "own_rules": dict(evaluated.own_rules), "questions_digest": questions.digest(asked),
        "mode": options.mode, "partial": list(asked.partial), "average": _told(named[0]) if named else None,
        "averaging": _averaging(asked), "gauntlet_averages": {row.category: row.score for row in (*categories, *named)} if asked.gauntlet else {},
        "averages": [_told(s) for s in named], "categories": [_told(s) for s in categories], "scores": [_told(s) for s in scores],
    }  # fmt: skip


def _told(score: averages.Score) -> dict[str, Any]:
    """As scores.json holds it. This command knows no training corpus, so nobody looked for contamination: null, not 0 of them."""
    return asdict(score) | {"accuracy_clean": None, "n_contaminated": None}


_Rows = Sequence[averages.Score]


def _averaged(asked: questions.Questions, scores: _Rows) -> tuple[_Rows, _Rows, _Rows]:
    """(scores, category means, averages of categories).

    With a gauntlet all is as its YAML says, in its order. Without one nothing is weighted, and the one average is called so.
    """
    if asked.gauntlet is None:
        name = f"{'partial/' if asked.partial else ''}unweighted_average"
        return scores, averages.by_category(scores), [averages.overall(scores, expected=[b.task.label for b in asked.benchmarks], name=name)]
    rows = gauntlet_rows(asked.gauntlet, scores, partial=bool(asked.partial), sampled=asked.sampled)
    named = [replace(row, benchmark="**") for row in rows if row.category.removeprefix("partial/") in asked.gauntlet.averages]
    return gauntlet_scored(asked.gauntlet, scores), rows[: len(rows) - len(named)], named


def _averaging(asked: questions.Questions) -> dict[str, Any]:
    """How scores and averages are made of accuracies."""
    plan = asked.gauntlet or Gauntlet({}, {})
    names = ("weighting", "subtract_random_baseline", "rescale_accuracy")
    return {"by": "gauntlet YAML" if asked.gauntlet else "no gauntlet YAML: all alike", **{name: getattr(plan, name) for name in names}}
