"""What is asked: a suite (Foundry's task or gauntlet YAML, tasks of lm_eval among its entries), narrowed by --tasks and --max-items.

Anything that makes it less than the whole suite is said in ``partial``, and then no mean is called core_average.
Change here: how a suite is chosen. Not here: Foundry's formats (models/gauntlet/tasks.py), entries for lm_eval (lm_eval_tasks.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.contract import MoelineError
from jobs.evaluating import lm_eval_tasks
from models.gauntlet import own_data, tasks
from models.gauntlet.gauntlet import Gauntlet, read_gauntlet, read_yaml
from models.gauntlet.tasks import Benchmark

_ORDER_SEED = 1234


@dataclass(frozen=True)
class Questions:
    """``kept``: label -> item ids asked, in file order. ``partial``: why this is not the whole suite. ``gauntlet``: where the suite is one.

    ``lm_eval``: entries that name a task of lm_eval, which is no part of the suite's averages.
    """

    suite: str
    benchmarks: tuple[Benchmark, ...]
    kept: dict[str, tuple[str, ...]]
    partial: tuple[str, ...]
    gauntlet: Gauntlet | None = None
    lm_eval: tuple[lm_eval_tasks.Entry, ...] = ()

    @property
    def sampled(self) -> bool:
        """Whether some items of a benchmark are left out."""
        return any(len(self.kept[b.task.label]) < len(b.items) for b in self.benchmarks)


def load(
    suite: str, data: Path, *, only: Sequence[str] = (), max_items: int | None = None, mode: tasks.Mode = tasks.EXACT, include: Path | None = None
) -> Questions:
    """Read the suite and its data. Raises MoelineError naming a missing file, an unknown task or a data set that is not there.

    ``include``: a folder of task files for lm_eval.
    """
    if max_items is not None and max_items < 1:
        raise MoelineError(f"--max-items {max_items} must be at least 1.")
    try:
        file = _suite_file(suite, data)
        tasks_yaml, gauntlet_yaml = _yaml_pair(file)
        folder = data / "local_data" if (data / "local_data").is_dir() else data
        outside, foundry = _lm_eval_entries(tasks_yaml)
        declared = [task.label for task, _ in tasks.declared(tasks_yaml, folder, gauntlet_yaml, left_out=lm_eval_tasks.KEY)] if foundry else []
        wanted = _selected([*declared, *(entry.label for entry in outside)], only, file)
        outside = tuple(entry for entry in outside if entry.label in wanted)
        wanted = [label for label in wanted if label in declared]
        gauntlet = read_gauntlet(gauntlet_yaml) if gauntlet_yaml else None
        benchmarks = tasks.load_foundry(tasks_yaml, folder, gauntlet_yaml, only=wanted, mode=mode, left_out=lm_eval_tasks.KEY) if wanted else []
        if outside:
            lm_eval_tasks.manager([entry.task for entry in outside], include)
    except ValueError as error:  # models know nothing of jobs' errors
        raise MoelineError(f"Suite {suite}: {str(error).replace('only=', '--tasks')}") from error
    kept = {b.task.label: _kept(b, max_items) for b in benchmarks}
    partial = []
    if left := sorted(set(declared) - set(wanted)):
        partial.append(f"--tasks leaves out {', '.join(left)}")
    if any(len(kept[b.task.label]) < len(b.items) for b in benchmarks):
        partial.append(f"--max-items {max_items}")
    return Questions(file.name, tuple(benchmarks), kept, tuple(partial), gauntlet, outside)


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
    content = read_yaml(file)
    if "icl_tasks" in content:
        return file, None
    if not {"eval_gauntlet", "categories"} & set(content):
        raise ValueError(f"{file} has neither icl_tasks nor eval_gauntlet. Give a task or gauntlet YAML in Foundry's format.")
    beside = file.with_name(file.name.replace("eval_gauntlet", "tasks", 1))
    if beside == file or not beside.is_file():
        raise ValueError(f"{file} is a gauntlet, but its tasks file {beside} is not there. Name it like the gauntlet, with tasks for eval_gauntlet.")
    return beside, file


def _lm_eval_entries(tasks_yaml: Path) -> tuple[tuple[lm_eval_tasks.Entry, ...], bool]:
    """(entries that name a task of lm_eval, whether there are others)."""
    listed = read_yaml(tasks_yaml).get("icl_tasks") or []
    listed = listed if isinstance(listed, list) else [listed]
    theirs = [raw for raw in listed if isinstance(raw, dict) and lm_eval_tasks.KEY in raw]
    return lm_eval_tasks.entries(theirs, str(tasks_yaml)), len(theirs) < len(listed) or not listed


def _selected(declared: Sequence[str], only: Sequence[str], file: Path) -> list[str]:
    """The declared labels that ``only`` names (all, if it names none), in YAML order."""
    wanted = {label for name in only or declared for label in tasks.SELECTIONS.get(name, (name,))}
    if unknown := sorted(wanted - set(declared)):
        raise ValueError(f"{file.name} has no task {', '.join(unknown)}. It has {', '.join(sorted(declared))}.")
    return [label for label in declared if label in wanted]


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

    asked = {**questions.kept, **{entry.label: asdict(entry) for entry in questions.lm_eval}}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
