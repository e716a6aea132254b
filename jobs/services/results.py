"""Recorded stage results: the last thing a stage writes, and the only thing that makes its tables visible to others.

One JSON file per run key, written whole (temporary name, fsync, rename). ``by_output`` holds one pointer per table version, so
that a reader given ``checkpoints@4`` finds the run that wrote it without scanning.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from jobs.contract import MoelineError, StageResult, TableVersion
from jobs.environment import Environment

Held = tuple[tuple[int, int, int], StageResult]  # which file it was read from (inode, time, size), and what it held


def _root(env: Environment) -> Path:
    return env.warehouse / "_results"


def write_whole(file: Path, data: bytes) -> None:
    """Write a file so that a reader (or a crash) sees all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def find(env: Environment, stage: str, run_key: str) -> StageResult | None:
    """The recorded result of this exact work, or None."""
    try:
        return StageResult.from_json((_root(env) / stage / f"{run_key}.json").read_text())
    except FileNotFoundError:
        return None


def record(env: Environment, result: StageResult) -> None:
    """Make a finished stage visible. Pointers first: one without its result is ignored."""
    for version in result.outputs.values():
        write_whole(_root(env) / "by_output" / f"{version}.json", json.dumps({"stage": result.stage, "run_key": result.run_key}).encode())
    write_whole(_root(env) / result.stage / f"{result.run_key}.json", result.to_json().encode())


def of_stage(env: Environment, stage: str, held: dict[str, Held] | None = None) -> list[StageResult]:
    """All recorded results of a stage, oldest first. ``held``: what an earlier call read, by file name, which is brought up to date."""
    before, found = held or {}, {}
    try:
        with os.scandir(_root(env) / stage) as folder:
            entries = [entry for entry in folder if entry.name.endswith(".json") and not entry.name.startswith(".")]
    except FileNotFoundError:
        entries = []
    for entry in entries:
        now = entry.stat()
        mark = (now.st_ino, now.st_mtime_ns, now.st_size)  # a result is replaced by renaming another file over it
        kept = before.get(entry.name)
        found[entry.name] = kept if kept is not None and kept[0] == mark else (mark, StageResult.from_json(Path(entry.path).read_text()))
    if held is not None:
        held.clear()
        held.update(found)
    # Seconds are too coarse for a stage that is run again at once; the versions of its tables tell which came later.
    return sorted(
        (r for _, r in found.values()), key=lambda r: (r.finished_at, [TableVersion.parse(r.outputs[name]).version for name in sorted(r.outputs)], r.run_key)
    )


def writer_of(env: Environment, version: TableVersion) -> StageResult:
    """The result that wrote a table version; raises MoelineError when none is recorded."""
    try:
        pointer = json.loads((_root(env) / "by_output" / f"{version}.json").read_text())
        found = find(env, pointer["stage"], pointer["run_key"])
    except FileNotFoundError:
        found = None
    if found is None:
        raise MoelineError(f"No recorded stage result names {version}; its stage did not finish. Run that stage again, or name another version.")
    return found


def newest(env: Environment, stage: str, *, interval: str | None = None, recipe: str | None = None, config: str | None = None) -> StageResult | None:
    """The result recorded last for a stage, of one day, one recipe, one ``config`` (contract.config_hash)."""
    matching = [
        r
        for r in of_stage(env, stage)
        if (interval is None or r.interval == interval) and (recipe is None or r.recipe == recipe) and (config is None or r.config_hash == config)
    ]
    return matching[-1] if matching else None


def newest_version(env: Environment, stage: str, table: str, config: str) -> TableVersion | None:
    """The highest version of ``table`` that a recorded result of ``stage`` with this config names."""
    versions = [r.table(table) for r in of_stage(env, stage) if r.config_hash == config and table in r.outputs]
    return max(versions, default=None)


def days_by_version(env: Environment, stage: str, table: str, up_to: TableVersion, config: str) -> dict[TableVersion, list[str]]:
    """Where to read every data day of ``table`` that a recorded result with this config vouches for, as of ``up_to``.

    A day is read at ``up_to``, unless another recipe has replaced its rows since: then at the version this config wrote. A day whose
    stage did not finish is not there.
    """
    known = [r for r in of_stage(env, stage) if r.interval and table in r.outputs and r.table(table) <= up_to]
    own, last = {}, {}
    for result in sorted(known, key=lambda r: r.table(table)):
        last[result.interval] = result
        if result.config_hash == config:
            own[result.interval] = result
    found: dict[TableVersion, list[str]] = {}
    for day, result in sorted(own.items()):
        version = up_to if last[day].run_key == result.run_key else result.table(table)
        found.setdefault(version, []).append(str(day))
    return found
