"""What is asked: a suite (Foundry's task or gauntlet YAML, lm_eval's tasks beside them), narrowed by --tasks and --max-items.

Anything that makes it less than the whole suite is said in ``partial``, and then no mean is called core_average.
Change here: how a suite is chosen. Not here: Foundry's formats (models/gauntlet/tasks.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from models.gauntlet import own_data, tasks
from models.gauntlet.tasks import Benchmark

LM_EVAL = "lm_eval/"
_ORDER_SEED = 1234


@dataclass(frozen=True)
class Questions:
    """``kept``: label -> item ids asked, in file order. ``lm_eval``: names of lm_eval tasks. ``partial``: why this is not the whole suite."""

    suite: str
    benchmarks: tuple[Benchmark, ...]
    kept: dict[str, tuple[str, ...]]
    lm_eval: tuple[str, ...]
    partial: tuple[str, ...]


def load(suite: str, data: Path, *, only: Sequence[str] = (), max_items: int | None = None) -> Questions:
    """Read the suite and its data. Raises MoelineError naming a missing file, an unknown task or a data set that is not there."""
    if max_items is not None and max_items < 1:
        raise MoelineError(f"--max-items {max_items} must be at least 1.")
    try:
        file = _suite_file(suite, data)
        tasks_yaml, gauntlet_yaml = _yaml_pair(file)
        entries, elsewhere = _entries(tasks_yaml)
        folder = data / "local_data" if (data / "local_data").is_dir() else data
        declared = [task.label for task, _ in tasks.declared(tasks_yaml, folder, gauntlet_yaml)] if entries else []
        wanted, lm_eval = _selected(declared, elsewhere, only, file)
        benchmarks = tasks.load_foundry(tasks_yaml, folder, gauntlet_yaml, only=wanted) if wanted else []
    except ValueError as error:  # models know nothing of jobs' errors
        raise MoelineError(f"Suite {suite}: {str(error).replace('only=', '--tasks')}") from error
    kept = {b.task.label: _kept(b, max_items) for b in benchmarks}
    partial = []
    if left := sorted(set(declared) - set(wanted)):
        partial.append(f"--tasks leaves out {', '.join(left)}")
    if any(len(kept[b.task.label]) < len(b.items) for b in benchmarks) or (max_items and lm_eval):
        partial.append(f"--max-items {max_items}")
    return Questions(file.name, tuple(benchmarks), kept, lm_eval, tuple(partial))


def _suite_file(suite: str, data: Path) -> Path:
    """A path, or a name such as ``eval_gauntlet_v0.3`` or ``v0.3`` looked for in the data folder's yamls/."""
    if Path(suite).is_file():
        return Path(suite)
    names = [suite, f"{suite}.yaml", f"eval_gauntlet_{suite}.yaml", f"tasks_{suite}.yaml"]
    places = [data, data / "yamls", data.parent / "yamls"]
    for place in places:
        for name in names:
            if Path(name).name == name and (place / name).is_file():
                return place / name
    known = sorted({f.name for place in places for f in place.glob("*.yaml")})
    raise ValueError(f"there is no such file, and no YAML of this name in {data}/yamls (found: {', '.join(known) or 'none'}).")


def _yaml_pair(file: Path) -> tuple[Path, Path | None]:
    """(tasks YAML, gauntlet YAML or None): a gauntlet names benchmarks, its tasks file beside it says how they are asked."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"cannot read {file}: {error}") from None
    if not isinstance(content, dict) or {"icl_tasks", "lm_eval"} & set(content):
        return file, None
    if not {"eval_gauntlet", "categories"} & set(content):
        raise ValueError(f"{file} has neither icl_tasks nor eval_gauntlet. Give a task or gauntlet YAML in Foundry's format.")
    beside = file.with_name(file.name.replace("eval_gauntlet", "tasks", 1))
    if beside == file or not beside.is_file():
        raise ValueError(f"{file} is a gauntlet, but its tasks file {beside} is not there. Name it like the gauntlet, with tasks for eval_gauntlet.")
    return beside, file


def _entries(tasks_yaml: Path) -> tuple[list[Any], list[str]]:
    """(Foundry's entries, names of the lm_eval tasks) of a tasks YAML."""
    import yaml

    content = yaml.safe_load(tasks_yaml.read_text(encoding="utf-8"))
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    names = content.get("lm_eval", []) if isinstance(content, dict) else []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{tasks_yaml}: lm_eval must be a task name or a list of them, found {names!r:.200}.")
    return (entries if isinstance(entries, list) else []), names


def _selected(declared: Sequence[str], elsewhere: Sequence[str], only: Sequence[str], file: Path) -> tuple[list[str], tuple[str, ...]]:
    if not only:
        return list(declared), tuple(elsewhere)
    wanted: list[str] = []
    for name in only:
        wanted += tasks.SELECTIONS.get(name, (name,))
    foundry = [name for name in wanted if not name.startswith(LM_EVAL)]
    if unknown := sorted(set(foundry) - set(declared)):
        raise ValueError(f"{file.name} has no task {', '.join(unknown)}. It has {', '.join(sorted(declared)) or 'none'}; lm_eval's are named {LM_EVAL}NAME.")
    return [label for label in declared if label in set(foundry)], tuple(dict.fromkeys(n.removeprefix(LM_EVAL) for n in wanted if n.startswith(LM_EVAL)))


def _kept(benchmark: Benchmark, max_items: int | None) -> tuple[str, ...]:
    """Ids asked, in file order; with a limit those first in hash order, so that more items are a superset of fewer."""
    ids = [item.item_id for item in benchmark.items]
    if max_items is None or len(ids) <= max_items:
        return tuple(ids)
    chosen = set(sorted(ids, key=lambda i: own_data.stable_order(i, _ORDER_SEED))[:max_items])
    return tuple(i for i in ids if i in chosen)


def digest(questions: Questions) -> str:
    """sha256 hex of which items are asked."""
    import hashlib

    return hashlib.sha256(json.dumps([questions.kept, questions.lm_eval], sort_keys=True).encode()).hexdigest()
