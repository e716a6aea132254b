"""What an evaluation leaves: scores.json, responses.parquet and report.md, each written whole; and its progress on stderr.

Change here: columns, the report's layout. Not here: the numbers (models/gauntlet/averages.py).
Texts of items and labels are strangers' texts: in the report nothing of them can become a tag, a link or a table cell.
"""

from __future__ import annotations

import html
import io
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.evaluating.lm_eval_results import Judged
from jobs.evaluating.questions import Questions
from jobs.services.results import write_whole
from models.gauntlet import calibration
from models.gauntlet.scoring import Response

SCORES, RESPONSES, REPORT = "scores.json", "responses.parquet", "report.md"
MAX_PROMPT_CHARS = 3000  # what a response keeps of a prompt: its end, which the model read last
MAX_CHOICE_CHARS = 600
_EXAMPLES = 3
_EXAMPLE_CHARS = 160
_SECONDS_BETWEEN_LINES = 2.0
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~:@$^=])")


class Progress:
    """Lines "items done / all, elapsed, time left" on stderr, a few seconds apart. Answers found, not asked, do not count into the rate."""

    def __init__(self, total: int, echo: Callable[[str], None]) -> None:
        self.total, self.echo, self.label = total, echo, ""
        self.finished = self.found = 0
        self.started, self.last = time.monotonic(), float("-inf")

    def skip(self, items: int, label: str) -> None:
        """A benchmark begins, of which ``items`` are answered already."""
        self.label = label
        self.found += items
        self.finished += items

    def within(self, items: int) -> Callable[[int, int], None]:
        """A callback (part, all) for a portion of ``items``."""
        return lambda part, whole: self._say(self.finished + items * part / max(1, whole))

    def done(self, items: int) -> None:
        self.finished += items
        self._say(self.finished)

    def _say(self, now: float) -> None:
        elapsed = time.monotonic() - self.started
        if now < self.total and elapsed - self.last < _SECONDS_BETWEEN_LINES:
            return
        self.last = elapsed
        asked = now - self.found
        left = f"{(self.total - now) * elapsed / asked:.0f} s left" if asked > 0 else "time left unknown"
        self.echo(f"{self.label}: {int(now):,} of {self.total:,} items, {elapsed:.0f} s, {left}")


def write(out: Path, result: Mapping[str, Any], asked: Questions, responses: Mapping[str, Sequence[Response]], outside: Sequence[Judged] = ()) -> None:
    """Write the three files into ``out``; scores.json last, so that its presence says the others are there. ``outside``: items lm_eval judged."""
    kinds = {b.task.label: b.task for b in asked.benchmarks}
    digest = result["weights_digest"][:16]
    rows = [_row(label, kinds[label].category, kinds[label].num_fewshot, r, digest) for label, answered in responses.items() for r in answered]
    theirs = [_row(one.benchmark, one.category, one.shots, one.response, digest, lm_eval=one.metrics) for one in outside]
    write_whole(out / RESPONSES, _parquet([*rows, *theirs]))
    write_whole(out / REPORT, report(result, responses, calibration.tasks(rows)).encode())
    write_whole(out / SCORES, json.dumps(result, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")


def _row(benchmark: str, category: str, shots: int, response: Response, weights_digest: str, **more: Any) -> dict[str, Any]:
    """A row has the columns of table ``responses``, and the number of tokens of every choice."""
    item = {"prompt": response.prompt[-MAX_PROMPT_CHARS:], "prompt_chars": len(response.prompt), "shots": shots, "subset": response.subset}
    item |= {**response.about_samples(MAX_CHOICE_CHARS), **more}
    per_token = zip(response.sum_logprobs, response.mean_logprobs, strict=True)
    return {
        "benchmark": benchmark, "category": category, "item_id": response.item_id, "kind": response.kind, "prompt_hash": response.prompt_hash,
        "n_prompt_tokens": response.n_prompt_tokens, "n_choice_tokens": [round(s / m) if m else 0 for s, m in per_token],
        "choices": [c[:MAX_CHOICE_CHARS] for c in response.choices], "sum_logprobs": list(response.sum_logprobs),
        "mean_logprobs": list(response.mean_logprobs), "output": response.output[:MAX_CHOICE_CHARS], "prediction": response.prediction,
        "gold": response.gold, "correct": response.correct, "truncated": response.truncated, "weights_digest": weights_digest, "item": json.dumps(item),
        "confidence": response.confidence,
    }  # fmt: skip


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = {"sum_logprobs": pa.float64(), "mean_logprobs": pa.float64(), "choices": pa.string(), "n_choice_tokens": pa.int64()}
    types = {"confidence": pa.float64(), **{name: pa.list_(inside) for name, inside in lists.items()}}
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target)
    return target.getvalue()


def plain(text: object) -> str:
    """``text`` as text in Markdown and in the HTML made of it, on one line: no tag, link, emphasis, cell or invisible character survives."""
    visible = "".join(c if c.isprintable() else " " for c in str(text))
    return html.escape(_MARKDOWN.sub(r"\\\1", visible))


def report(result: Mapping[str, Any], responses: Mapping[str, Sequence[Response]], summaries: Sequence[calibration.TaskSummary] = ()) -> str:
    """The Markdown report."""
    lines = [f"# {plain(result['model'])} on {plain(result['suite'])}", ""]
    lines += [f"- {name}: {plain(result[key])}" for name, key in (("weights", "weights_digest"), ("tokenizer", "tokenizer_digest"), ("mode", "mode"))]
    lines += [f"- longest sequence: {result['max_seq_len']} tokens, on {plain(result['device'])} in {plain(result['dtype'])}"]
    lines += [f"- **partial**: {plain(reason)}; no core_average" for reason in result["partial"]]
    lines += [f"- {plain(s['category'])}: {s['score']:.4f}" for s in (*result["averages"], *result["categories"])]
    if result["scores"]:
        lines += [
            "",
            "| category | benchmark | shots | items | accuracy | standard error | chance | best constant | score |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        lines += [_score_line(s) for s in (*result["scores"], *result["categories"], *result["averages"])]
        lines += ["", _averaging(result["averaging"]), ""]
    if below := [s["benchmark"] for s in result["scores"] if s["accuracy"] <= s["best_constant"]]:
        lines += ["", f"At or below the best constant answer, so nothing is shown there: {', '.join(map(plain, below))}."]
    lines += _pass_at_k(result.get("pass_at_k") or ())
    lines += _calibration(summaries)
    lines += _lm_eval(result.get("lm_eval") or ())
    lines += _examples(responses)
    return "\n".join(lines) + "\n"


def _averaging(how: Mapping[str, Any]) -> str:
    score = (
        "(accuracy - baseline) / (1 - baseline)" if how["rescale_accuracy"] else "accuracy - baseline" if how["subtract_random_baseline"] else "the accuracy"
    )
    weights = {"EQUAL": "all benchmarks of a category alike", "SAMPLE_SZ": "by their items", "LOG_SAMPLE_SZ": "by the logarithm of their items"}
    weighed = f"benchmarks weigh {weights[how['weighting']]}, categories of an average alike"
    return f"Accuracy, errors and baselines in 0 to 1; a score is {score}; {weighed} ({plain(how['by'])})."


def _pass_at_k(written: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for one in written:
        how = f"{one['samples']} samples an item at temperature {one['temperature']:g}" if one["temperature"] else "one sample an item, the likeliest tokens"
        rates = ", ".join(f"pass@{k} {rate:.4f}" for k, rate in one["rates"].items())
        lines += ["", f"{plain(one['benchmark'])}: {plain(rates)} ({plain(how)})."]
    return lines


def _calibration(summaries: Sequence[calibration.TaskSummary]) -> list[str]:
    known = [f"{plain(s.benchmark)} {s.ece:.3f}" for s in summaries if s.ece is not None]
    lines = ["", f"Calibration error (0: as often right as it is sure, 10 buckets): {', '.join(known)}."] if known else []
    if unknown := [f"{plain(s.benchmark)} ({s.without_ece})" for s in summaries if s.ece is None]:
        lines += ["", f"No calibration error: {', '.join(unknown)}."]
    return lines


def _score_line(s: Mapping[str, Any]) -> str:
    name = {"*": "mean", "**": "all"}.get(s["benchmark"], s["benchmark"])
    numbers = " | ".join(f"{s[k]:.4f}" for k in ("accuracy", "stderr", "chance", "best_constant", "score"))
    return f"| {plain(s['category'])} | {plain(name)} | {s['shots']} | {s['n']} | {numbers} |"


def _lm_eval(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics of lm_eval have their own table: other rules, other scales, and some are better when they are lower."""
    if not results:
        return []
    lines = ["", "## Tasks of lm_eval", "", "By lm_eval's own metrics, as its hf backend would give them; no part of any average above.", ""]
    lines += ["| task | shots | items | metric | filter | value | standard error | better |", "|---|--:|--:|---|---|--:|--:|---|"]
    for one in results:
        for m in one["metrics"]:
            error = "none" if m["stderr"] is None else f"{m['stderr']:.4f}"
            better = {True: "higher", False: "lower"}.get(m["higher_is_better"], "")
            about = f"| {plain(one['benchmark'])} | {plain(one['shots'])} | {plain(one['n'])} of {plain(one['n_all'])}"
            lines.append(f"{about} | {plain(m['name'])} | {plain(m['filter'])} | {m['value']:.4f} | {error} | {better} |")
    return lines


def _examples(responses: Mapping[str, Sequence[Response]]) -> list[str]:
    lines = []
    for label, answered in responses.items():
        if wrong := [r for r in answered if not r.correct][:_EXAMPLES]:
            lines += ["", f"## {plain(label)}: wrong answers", ""]
            lines += [f"- item {plain(r.item_id)}: … {plain(r.prompt[-_EXAMPLE_CHARS:])} → {plain(r.output[:_EXAMPLE_CHARS])}" for r in wrong]
    return lines
