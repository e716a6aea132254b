"""moeline audit: items ranked by how likely their key is wrong, a sheet for a person to judge, and scores with and without what was rejected.

A file of answers (.csv or .parquet) is one of: responses.parquet of ``moeline evaluate`` (one model each, named by its folder, and by as many
folders above it as tell it from the others); long, with the columns item_id, model, prediction, gold and, if there, task, question and n_options
(how many answers an item offers); wide, with item_id, gold (and the same) and one column per model.
The key of an item is never changed; verdicts only leave items out of the scores shown beside the full ones.

Change here: file formats, the review sheet. Not here: how items are ranked (models/gauntlet/audit.py).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.services.results import write_whole

VERDICTS = ("ok", "wrong_key", "several_right", "none_right", "unclear")  # all but the first reject the item
SHEET = "review_sheet.csv"
_ABOUT_ITEM = ("item_id", "task", "benchmark", "category", "gold", "question", "choices", "prompt", "item", "n_options")
_COLUMNS = ("row", "verdict", "note", "suspicion", "task", "item_id", "key", "alternative", "agreement", "reasons", "question")


def audit(files: Sequence[str], *, out: str | None = None, verdicts: str | None = None, top: int = 200) -> dict[str, Any]:
    """What ``moeline audit --json`` prints. Raises MoelineError when files cannot be read, keys contradict, or a verdict is unknown."""
    from models.gauntlet import audit as ranking

    answers: dict[tuple[str, str], dict[str, Any]] = {}
    given = [file / "responses.parquet" if file.is_dir() else file for file in map(Path, files)]
    names = _names(given)
    for file in given:
        for row in _answers(file, names[file]):
            _add(answers, row, str(file))
    questions = [ranking.Question(task, item, q["key"], q["answers"], q["n_options"]) for (task, item), q in sorted(answers.items())]
    try:
        ranked = ranking.rank(questions)
    except ValueError as problem:
        raise MoelineError(f"Cannot audit {', '.join(files)}: {problem}") from None
    items = [
        {"row": _row_id(s.task, s.item_id), "suspicion": round(s.suspicion, 4), "task": s.task, "item_id": s.item_id, "key": s.key,
         "alternative": s.alternative,
         "agreement": round(s.agreement, 4), "reasons": "; ".join(s.reasons), "question": answers[s.task, s.item_id]["question"]} for s in ranked
    ]  # fmt: skip
    found: dict[str, Any] = {"n_items": len(items), "items": items[:top]}
    if out is not None:
        found["sheet"] = str(_write_sheet(Path(out), items[:top]))
    judged = _read_verdicts(Path(verdicts), {i["row"]: (i["task"], i["item_id"]) for i in items}) if verdicts else {}
    rejected = {item for item, verdict in judged.items() if verdict != "ok"}
    found |= {"judged": len(judged), "rejected": len(rejected), "scores": _scores(questions, rejected)}
    weak = [s["model"] for s in found["scores"] if s["accuracy"] < 0.5]
    found["warning"] = f"{len(weak)} of the models give the key to fewer than half of the items: only strong models tell a wrong key." if weak else ""
    return found


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """What the one model of each file is called: its folder, with folders above it where another file's would be called alike."""
    parts = {f: (f.resolve().parent if f.name == "responses.parquet" else f.resolve().with_suffix("")).parts for f in files}

    def name(own: tuple[str, ...]) -> str:
        others = set(parts.values()) - {own}
        return "/".join(next((own[-n:] for n in range(1, len(own)) if not any(other[-n:] == own[-n:] for other in others)), own))

    return {file: name(own) for file, own in parts.items()}


def _add(answers: dict[tuple[str, str], dict[str, Any]], row: Mapping[str, Any], file: str) -> None:
    new = {"key": row["gold"], "answers": {}, "question": row["question"], "n_options": 0}
    known = answers.setdefault((row["task"], row["item_id"]), new)
    known["n_options"] = max(known["n_options"], row["n_options"])
    if known["key"] != row["gold"]:
        raise MoelineError(f"{file}: item {row['item_id']} has the key {row['gold']!r}, before it was {known['key']!r}. Audit one version of a benchmark.")
    if row["model"] in known["answers"]:
        raise MoelineError(f"{file}: {row['model']} answers item {row['item_id']} of {row['task'] or 'the task'} twice. Keep one answer.")
    known["answers"][row["model"]] = row["prediction"]


def _answers(file: Path, name: str) -> Iterable[dict[str, Any]]:
    """Rows of task, item_id, model, prediction, gold, question, n_options (0: not known), whatever the format. ``name``: of a file's one model."""
    rows = _table(file)
    columns = set(rows[0]) if rows else set()
    if {"mean_logprobs", "correct", "prediction"} <= columns:
        return [_of_response(row, name) for row in rows if row["correct"] is not None]  # None: nobody says right or wrong, as of lm_eval's perplexities
    if not {"item_id", "gold"} <= columns or columns <= set(_ABOUT_ITEM):
        raise MoelineError(f"{file} has the columns {', '.join(sorted(columns)) or 'none'}. Needed: item_id, gold, and model and prediction, or one per model.")
    long = {"model", "prediction"} <= columns
    found = []
    for row in rows:
        same: dict[str, Any] = {"task": str(row.get("task") or row.get("benchmark") or ""), "item_id": str(row["item_id"]), "gold": str(row["gold"]).strip()}
        same |= {"question": str(row.get("question") or row.get("prompt") or ""), "n_options": _n_options(row.get("n_options"), file)}
        given = {str(row["model"]): row["prediction"]} if long else {name: row[name] for name in row if name not in _ABOUT_ITEM}
        found += [{**same, "model": model, "prediction": "" if answer is None else str(answer).strip()} for model, answer in given.items()]
    return found


def _n_options(given: Any, file: Path) -> int:
    text = "" if given is None else str(given).strip()
    if text and not (text.isascii() and text.isdigit()):
        raise MoelineError(f"{file}: n_options is {text[:30]!r}. Write how many answers the item offers, or nothing.")
    return int(text or 0)


def _of_response(row: Mapping[str, Any], model: str) -> dict[str, Any]:
    """An option is its place (0 the first), which the question shows; a written answer is its text."""
    choices, options = [str(c) for c in row.get("choices") or []], len(row["mean_logprobs"]) > 1
    gold = str(row["gold"]) if options else (choices[0].strip() if choices else "") or "right"
    given = gold if row["correct"] else str(row["prediction"]) if options else str(row.get("output") or "").strip().lower()
    if given == gold and not row["correct"]:
        given = f"{given} (judged wrong)"  # a text that reads like the key and is not taken for it
    shown = "".join(f"\n[{place}] {choice}" for place, choice in enumerate(choices)) if options else ""
    return {
        "task": row["benchmark"], "item_id": row["item_id"], "model": model, "prediction": given, "gold": gold,
        "question": f"{_prompt(row)[-1500:]}{shown}", "n_options": len(row["mean_logprobs"]) if options else 0,
    }  # fmt: skip


def _prompt(row: Mapping[str, Any]) -> str:
    """Of a row of responses, whose column ``item`` is JSON."""
    item = row.get("item") or ""
    try:
        return str(row.get("prompt") or json.loads(item)["prompt"])
    except (ValueError, TypeError, KeyError):
        return str(item)


def _table(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".parquet":
            return list(pq.read_table(file).to_pylist())
        return list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as problem:
        raise MoelineError(
            f"{file} cannot be read ({str(problem).splitlines()[0]}). Give a .csv or .parquet of answers, or a folder of `moeline evaluate`."
        ) from None


def _row_id(task: str, item_id: str) -> str:
    return "r" + hashlib.sha256(f"{task}\0{item_id}".encode()).hexdigest()[:16]


def spreadsheet_safe(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: a quote before what could begin one, and no control characters."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return f"'{clean}" if clean.lstrip()[:1] in ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20") else clean


def _write_sheet(folder: Path, items: Sequence[Mapping[str, Any]]) -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for item in items:
        writer.writerow({"verdict": "", "note": "", **{k: spreadsheet_safe(str(v)) for k, v in item.items()}})
    write_whole(folder / SHEET, text.getvalue().encode("utf-8-sig"))
    return folder / SHEET


def _read_verdicts(file: Path, known: Mapping[str, tuple[str, str]]) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for line, row in enumerate(_table(file), 2):
        if "row" not in row or "verdict" not in row:
            raise MoelineError(f"{file} has no columns row and verdict. Fill in the column verdict of {SHEET} and give that file (comma-separated).")
        verdict = (row["verdict"] or "").strip()
        if not verdict:
            continue
        if verdict not in VERDICTS:
            raise MoelineError(f"{file} line {line}: unknown verdict {verdict!r}. Write one of {', '.join(VERDICTS)}, or nothing.")
        if row["row"] not in known or known[row["row"]] in found:
            raise MoelineError(f"{file} line {line}: row {row['row']!r} is {'there twice' if row['row'] in known else 'no item of these answers'}.")
        found[known[row["row"]]] = verdict
    return found


def _scores(questions: Sequence[Any], rejected: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """Share of keys each model gives, on all items and without the rejected ones, best first; over all, and of every benchmark."""
    found = []
    for model in sorted({m for q in questions for m in q.answers}):
        every = [((q.task, q.item_id), q.answers[model] == q.key) for q in questions if model in q.answers]
        tasks = sorted({item[0] for item, _ in every})
        by_task = [{"benchmark": task, **_share([one for one in every if one[0][0] == task], rejected)} for task in tasks]
        found.append({"model": model, **_share(every, rejected), "benchmarks": by_task})
    return sorted(found, key=lambda s: -s["accuracy"])


def _share(every: Sequence[tuple[tuple[str, str], bool]], rejected: set[tuple[str, str]]) -> dict[str, Any]:
    kept = [right for item, right in every if item not in rejected]
    p, n = sum(right for _, right in every) / len(every), len(every)
    without = sum(kept) / len(kept) if kept else None
    error = math.sqrt(without * (1 - without) / len(kept)) if without is not None else None
    return {"n": n, "accuracy": p, "stderr": math.sqrt(p * (1 - p) / n), "n_without": len(kept), "accuracy_without": without, "stderr_without": error}


def _both(s: Mapping[str, Any]) -> str:
    without = "none left" if s["accuracy_without"] is None else f"{100 * s['accuracy_without']:6.2f} ± {100 * s['stderr_without']:.2f} ({s['n_without']})"
    return f"{100 * s['accuracy']:6.2f} ± {100 * s['stderr']:.2f} ({s['n']}) | {without}"


def render(found: Mapping[str, Any]) -> str:
    """The audit as text for a terminal."""

    def plain(text: str) -> str:
        return "".join(c if c.isprintable() else " " for c in text)

    lines = [f"{found['n_items']} items; the likeliest wrong keys first (a ranking for a person to judge; nothing is relabelled):"]
    lines += [plain(f"{i['suspicion']:.3f}  {i['task']} {i['item_id']}: {i['reasons']}") for i in found["items"][:20]]
    lines += ["", f"{found['judged']} judged, {found['rejected']} rejected. Share of keys given, all items | without the rejected:"]
    lines += [plain(f"{_both(s)}  {s['model']}") for s in found["scores"]]
    changed = [(one, s["model"]) for s in found["scores"] for one in s["benchmarks"] if one["n_without"] < one["n"]]
    if changed and len({one["benchmark"] for s in found["scores"] for one in s["benchmarks"]}) > 1:
        lines += ["", "By benchmark, where items were rejected:"]
        lines += [plain(f"{_both(one)}  {one['benchmark']}, {model}") for one, model in sorted(changed, key=lambda c: c[0]["benchmark"])]
    if found.get("sheet"):
        lines.append(f"Review sheet: {found['sheet']} (fill in verdict: {', '.join(VERDICTS)}; then --verdicts {SHEET})")
    return "\n".join([*lines, *([found["warning"]] if found["warning"] else [])]) + "\n"
