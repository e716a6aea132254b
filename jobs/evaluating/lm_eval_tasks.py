"""Tasks of lm-evaluation-harness inside a suite: asked of our scorer, made and judged by lm_eval's own code.

    icl_tasks:
    - lm_eval_task: arc_easy        # any task, group or tag that `moeline lm-eval ls tasks` lists, or one in --lm-eval-include
      num_fewshot: 5                # optional: one number, or several as in Foundry's tasks; else what the task says

Their numbers are those of `lm_eval --model hf`. They are lm_eval's metrics, not Foundry's: they stand apart and enter no average.
Change here: what an entry may say, how answers are kept. Not here: what is made of lm_eval's results (lm_eval_results.py), lm_eval's rules for
tokens, cuts and stops (models/gauntlet/lm_eval_model.py).
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs import lm_eval_command
from jobs.contract import MoelineError
from jobs.evaluating import answers, lm_eval_results
from jobs.evaluating.lm_eval_results import PREFIX
from jobs.evaluating.model import EvaluatedModel
from models.gauntlet.scoring import Response

KEY = "lm_eval_task"  # an entry of a suite with this key is one of these
_SETTINGS = (KEY, "num_fewshot")


@dataclass(frozen=True)
class Entry:
    """``label`` is lm_eval/TASK, with /K-shot where a task is asked with several numbers of shots. ``num_fewshot`` None: what the task says."""

    label: str
    task: str
    num_fewshot: int | None = None


def entries(raw: Sequence[Mapping[str, Any]], where: str) -> tuple[Entry, ...]:
    """The entries of a suite that name a task of lm_eval. Raises ValueError for one that is not understood."""
    found: list[Entry] = []
    for one in raw:
        name, shots = one[KEY], one.get("num_fewshot")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}: {KEY} is {str(name)[:100]!r}; it must be the name of a task.")
        if unknown := sorted(map(str, set(one) - set(_SETTINGS))):
            raise ValueError(f"{where}: {KEY} {name[:100]} has unknown settings {unknown}. Known: {', '.join(_SETTINGS)}; all else is the task's own.")
        counts = shots if isinstance(shots, list) else [shots]
        if not counts or any(k is not None and (type(k) is not int or k < 0) for k in counts) or (len(counts) > 1 and None in counts):
            raise ValueError(f"{where}: num_fewshot of {KEY} {name[:100]} is {str(shots)[:50]!r}; it must be whole numbers.")
        found += [Entry(f"{PREFIX}{name}" + (f"/{k}-shot" if len(counts) > 1 else ""), name, k) for k in counts]
    labels = [entry.label for entry in found]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{where} asks {', '.join(twice)} twice.")
    return tuple(found)


@functools.lru_cache(maxsize=4)
def _manager(include: str | None, installed: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include, include_defaults=installed)


def manager(names: Iterable[str], include: Path | None) -> Any:
    """lm_eval's TaskManager that knows ``names``. Only registered names count: a suite cannot name a file, whose code would be run.

    Raises MoelineError naming an unknown task and what comes closest. ``include``: a folder of task files, whose Python is run.
    """
    lm_eval_command.require()
    if include is not None and not include.is_dir():
        raise MoelineError(f"--lm-eval-include {include} is not a folder. Give the one with the task files.")
    place = None if include is None else str(include.resolve())
    if place is not None:
        own = _manager(place, False)  # reading lm_eval's own 14,000 files takes seconds; they are needed only for what is not here
        if set(names) <= set(own.all_subtasks):
            return own
    known = _manager(place, True)
    for name in names:
        if name not in known.all_tasks:
            close = difflib.get_close_matches(name, known.all_tasks, n=5, cutoff=0.5)
            raise MoelineError(
                f"lm_eval {metadata.version('lm_eval')} has no task {name[:100]!r}. Closest: {', '.join(close) or 'none'}. "
                "`moeline lm-eval ls tasks` lists all; task files of your own are found with --lm-eval-include DIR."
            )
    return known


@dataclass
class _Kept:
    """Journal and cache of one entry's answers, as lm_eval_model.Memory wants them. One Response a request, its id as item id."""

    identity: Mapping[str, Any]
    journal: answers.Journal
    before: Mapping[str, Mapping[str, Response]]
    cache: answers.Cache
    counts: dict[str, int]
    say: Callable[[str], None]
    not_cached: dict[str, dict[str, Response]] = field(default_factory=dict)

    def key(self, kind: str) -> str:
        what = {**self.identity, "request": kind, "code": answers.code_digest(), "lm_eval": metadata.version("lm_eval")}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def known(self, kind: str, ids: Iterable[str]) -> dict[str, Any]:
        ids = list(ids)
        written, cached = self.before.get(self.key(kind), {}), self.cache.load(self.key(kind))
        found = {i: written.get(i) or cached[i] for i in ids if i in written or i in cached}
        self.counts["from_journal"] += sum(i in written for i in found)
        self.counts["from_cache"] += sum(i not in written for i in found)
        self.not_cached[kind] = {i: response for i, response in found.items() if i not in cached}
        self.say(f"{len(ids)} {kind} requests, {len(found)} answered before")
        return {i: _answer_of(kind, response) for i, response in found.items()}

    def keep(self, kind: str, found: Mapping[str, Any]) -> None:
        responses = {i: _response_of(kind, i, answer) for i, answer in found.items()}
        self.journal.append(self.key(kind), responses.values())
        self.not_cached[kind] |= responses
        self.counts["asked"] += len(found)
        self.say(f"{len(found)} {kind} requests answered")

    def store(self) -> None:
        """Put what the cache did not have into it."""
        for kind, responses in self.not_cached.items():
            if responses:
                self.cache.store(self.key(kind), responses)


def _response_of(kind: str, i: str, answer: Any) -> Response:
    number, greedy = answer if kind == "loglikelihood" else (None if kind == "generate_until" else answer, False)
    return Response(
        item_id=i, kind=f"{PREFIX}{kind}", subset="", prompt="", prompt_hash=i[:16], n_prompt_tokens=0, choices=(), mean_logprobs=(), prediction=-1, gold=-1,
        sum_logprobs=() if number is None else (float(number),), output=answer if number is None else "", correct=greedy, truncated=False,
    )  # fmt: skip


def _answer_of(kind: str, response: Response) -> Any:
    if kind == "generate_until":
        return response.output
    return (response.sum_logprobs[0], response.correct) if kind == "loglikelihood" else response.sum_logprobs[0]


def answer(
    asked: Sequence[Entry], evaluated: EvaluatedModel, scorer: Callable[[], Any], *, include: Path | None, max_items: int | None, max_seq_len: int | None,
    journal: answers.Journal, cache: answers.Cache, counts: dict[str, int], echo: Callable[[str], None],
) -> lm_eval_results.Outcome:  # fmt: skip
    """Ask every entry and have lm_eval judge. ``max_items``: the first so many of every task, as lm_eval's --limit.

    ``max_seq_len`` None: as long as the model reads, which is what lm_eval does. Raises MoelineError naming the task that cannot be asked.
    """
    outcome = lm_eval_results.Outcome()
    if not asked:
        return outcome
    from models.gauntlet.lm_eval_model import lm_class

    known, before = manager([entry.task for entry in asked], include), journal.entries()
    arguments = {**lm_eval_command.arguments(evaluated, length=max_seq_len), "scorer": scorer}
    for entry in asked:
        lm = lm_class()(**arguments)
        identity = {"model": evaluated.identity(), "settings": lm.settings(), "entry": entry.label}
        lm.memory = _Kept(identity, journal, before, cache, counts, lambda text, label=entry.label: echo(f"{label}: {text}"))
        found = _evaluated(entry, lm, known, max_items)
        lm.memory.store()
        outcome.add(found, lm, suffix=entry.label.removeprefix(f"{PREFIX}{entry.task}"))
    return outcome


def _evaluated(entry: Entry, lm: Any, known: Any, max_items: int | None) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    try:
        with contextlib.redirect_stdout(sys.stderr), lm_eval_command.in_this_process():  # lm_eval prints while it resamples
            return simple_evaluate(model=lm, tasks=[entry.task], num_fewshot=entry.num_fewshot, limit=max_items, task_manager=known, log_samples=True)
    except MoelineError:
        raise
    except Exception as error:  # lm_eval, datasets and the tasks' own code raise anything
        raise MoelineError(
            f"{entry.label} cannot be evaluated: {type(error).__name__}: {' '.join(str(error).split())[:400]}. Its data set comes from where the task says; "
            "without a network it must lie in the datasets cache, or be a local file (dataset_path: json)."
        ) from error
