"""Code evaluation: the model continues a function, and the function is run against the item's tests (HumanEval, Chen et al. 2021).

Mode exact: Foundry's test_inputs and test_outputs, compared with ==. Mode fixed: the data set's own ``check``. A program passes when it ran
its tests to the end, shown by a word it can read only then: leaving early, however politely, is a failure. (Code written to find that word
could forge a pass; a model that does so has other problems than its score.) How many samples are drawn, and how, is the task's ``sampling``.
Change here: what a test program looks like. Not here: what it may do (sandbox.py), how a prompt is made (prompts.py).
"""

from __future__ import annotations

import ast
import keyword
import math
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.gauntlet import sandbox
from models.gauntlet.prompts import Request, assemble
from models.gauntlet.scoring import Response, Scorer, prompt_hash
from models.gauntlet.tasks import CODE, FIXED, Benchmark, Task

_AFTER_FUNCTION = re.compile(r"\n[A-Za-z0-9#`]")  # a line that starts at the margin is no longer the function


@dataclass(frozen=True)
class Verdict:
    """``reason``: "" when passed, else in words why not."""

    passed: bool
    reason: str


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that one of ``k`` samples passes, when ``correct`` of ``n`` did: 1 - C(n - correct, k) / C(n, k)."""
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples with {correct} right: need 0 <= right <= samples and 1 <= k <= samples.")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def check_code_row(task: Task, row: Mapping[str, Any], where: str) -> None:
    """ValueError when the row cannot be tested: another language, a name that is none, inputs and outputs that do not pair or are no expressions."""
    if row["language"] != "python":
        raise ValueError(f"Task {task.label}: language of {where} is {str(row['language'])[:30]!r}; only python can be run.")
    if not row["entry_point"].isidentifier() or keyword.iskeyword(row["entry_point"]):
        raise ValueError(f"Task {task.label}: entry_point of {where} is {row['entry_point'][:60]!r}, which is no Python name.")
    if len(row["test_inputs"]) != len(row["test_outputs"]) or (task.mode != FIXED and not row["test_inputs"]):
        raise ValueError(f"Task {task.label}: {where} has {len(row['test_inputs'])} test_inputs and {len(row['test_outputs'])} test_outputs.")
    for text in row["test_inputs"]:
        if not _is_expression(text):
            raise ValueError(f"Task {task.label}: {text[:60]!r} among test_inputs of {where} is no Python expression.")


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text.lstrip(" \t"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def completed(row: Mapping[str, Any], output: str) -> str:
    """The prompt with what the model wrote, up to where the function ends."""
    return f"{row['prompt']}{_AFTER_FUNCTION.split(output, maxsplit=1)[0]}"


def program(task: Task, row: Mapping[str, Any], output: str) -> str:
    """The script that tests ``output``: it reads one line of input after the tests, and prints it."""
    if task.mode == FIXED:
        tests = f"{row['test']}\n\ncheck({row['entry_point']})\n"
    else:
        tests = "".join(_test(row["entry_point"], *pair) for pair in zip(row["test_inputs"], row["test_outputs"], strict=True))
    ending = "import sys as _moeline_sys\n_moeline_sys.__stdout__.write('\\n' + _moeline_sys.__stdin__.readline())\n_moeline_sys.__stdout__.flush()\n"
    return f"{completed(row, output)}\n\n{tests}\n{ending}"


def _test(name: str, given: str, wanted: str) -> str:
    """One comparison. An output that is no expression, or has no value, stands for its own text (HumanEval/38), as in Foundry."""
    value = f"({wanted}\n)" if _is_expression(wanted) else ascii(wanted)
    return f"try:\n  _moeline_wanted = {value}\nexcept BaseException:\n  _moeline_wanted = {wanted!a}\nassert {name}(*({given}\n)) == _moeline_wanted\n"


def judge(
    task: Task, row: Mapping[str, Any], output: str, *, limits: sandbox.Limits | None = None, allow_weaker: Sequence[str] = (), where: str = "the item"
) -> Verdict:
    """Run ``output`` (what the model wrote after the prompt) against the row's tests. RuntimeError where code cannot be shut in."""
    check_code_row(task, row, where)
    word = secrets.token_hex(16)
    outcome = sandbox.run(program(task, row, output), stdin=f"{word}\n", limits=limits, allow_weaker=allow_weaker)
    if outcome.timed_out:
        return Verdict(False, "ran out of time")
    if outcome.status == 0 and outcome.output.rstrip("\n").endswith(word):
        return Verdict(True, "")
    if outcome.status == 0:
        return Verdict(False, "ended before its tests were done")
    last = outcome.errors.strip().splitlines()
    return Verdict(False, last[-1][:200] if last else f"ended with status {outcome.status}")


def score(
    benchmark: Benchmark, scorer: Scorer, *, keep: Callable[[str], bool] | None = None, progress: Callable[[int, int], None] | None = None,
    limits: sandbox.Limits | None = None, allow_weaker: Sequence[str] = (),
) -> list[Response]:  # fmt: skip
    """As ``scoring.score``, for a task of kind code_evaluation: the model writes, the sandbox runs."""
    task = benchmark.task
    if task.kind != CODE:
        raise ValueError(f"Task {task.label} is {task.kind}, not {CODE}.")
    rows = {item.item_id: item.row for item in benchmark.items}
    for item_id, row in rows.items():
        check_code_row(task, row, f"item {item_id}")
    requests = list(assemble(benchmark, scorer.encoder, scorer.max_seq_len, keep))
    outputs = _written(task, requests, scorer)
    responses = []
    for done, (request, samples) in enumerate(zip(requests, outputs, strict=True), start=1):
        verdicts: dict[str, Verdict] = {}  # the same program is run once
        for output in samples:
            if output not in verdicts:
                row, where = rows[request.item_id], f"item {request.item_id}"
                verdicts[output] = judge(task, row, output, limits=limits, allow_weaker=allow_weaker, where=where)
        responses.append(_response(task, request, samples, [verdicts[output].passed for output in samples]))
        if progress is not None:
            progress(done, len(requests))
    return responses


def is_greedy(task: Task) -> bool:
    """Whether code is written by the likeliest tokens: where the task says so, and a single sample of mode fixed."""
    return task.sampling.is_greedy or (task.mode == FIXED and task.sampling.samples == 1)


def _written(task: Task, requests: Sequence[Request], scorer: Scorer) -> list[list[str]]:
    """The samples of every request."""
    if not requests:
        return []
    sampling, longest = task.sampling, requests[0].max_new_tokens
    if is_greedy(task):
        return [[text] for text in scorer.generate([r.contexts[0] for r in requests], longest, task.early_stopping)]
    draws = [(r.contexts[0], f"{r.item_id}\0{number}") for r in requests for number in range(sampling.samples)]
    texts = iter(scorer.sample(draws, longest, task.early_stopping, sampling))
    return [[next(texts) for _ in range(sampling.samples)] for _ in requests]


def _response(task: Task, request: Request, samples: Sequence[str], passes: Sequence[bool]) -> Response:
    k, several = task.sampling.pass_at_k[0], len(samples) > 1
    right = any(passes[:k])
    return Response(
        item_id=request.item_id, kind=task.kind, subset=request.subset, prompt=request.prompt, prompt_hash=prompt_hash(request),
        n_prompt_tokens=len(request.contexts[0]), choices=request.answers, sum_logprobs=(), mean_logprobs=(), output=samples[0],
        prediction=0 if right else -1, gold=-1, correct=right, truncated=request.truncated, samples=tuple(samples) if several else (),
        passes=tuple(passes) if several else (), credit=pass_at_k(len(passes), sum(passes), k) if several else None,
    )  # fmt: skip


def pass_rates(task: Task, responses: Sequence[Response]) -> dict[str, Any]:
    """How the samples were drawn, and ``rates``: k -> mean pass@k over the items, for every k the task asks for."""
    passes, sampling = [r.passes or (r.correct,) for r in responses], task.sampling
    rates = {str(k): sum(pass_at_k(len(p), sum(p), k) for p in passes) / len(passes) for k in sampling.pass_at_k}
    how = {"temperature": 0.0} if is_greedy(task) else {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return {"benchmark": task.label, "samples": sampling.samples, **how, "rates": rates}
