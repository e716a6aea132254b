"""The files that make up a Delta table up to one version: its log, what the version reads, and what its older versions read.

Read from the log itself: every commit up to a version is there for ten years (delta.py), and a commit never changes once it is written. A table is named by
its folder, a path of this machine or of a store (table_store.py).
Change here: which files a version needs. Not here: reading rows (delta.py), copying (jobs/backup.py).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jobs.contract import MoelineError

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
LOG = "_delta_log"


@dataclass(frozen=True)
class TableFiles:
    """Names below the table's folder. ``live``: what ``version`` reads; ``older``: what only earlier versions read, some of it perhaps removed since.

    ``removed_at``: of files of ``older``, when the commit that replaced them was made (Unix seconds), as far as the log goes back.
    """

    version: int
    log: tuple[str, ...]
    live: frozenset[str]
    older: frozenset[str]
    removed_at: Mapping[str, float]


def checkpoints(root: Path) -> dict[int, Path]:
    """Checkpoints of a table's log, by the version they are of."""
    return {int(match[1]): file for file in (root / LOG).glob("*") if (match := _CHECKPOINT.fullmatch(file.name))}


def newest(root: Path) -> TableFiles | None:
    """The table's newest version, or None where no commit was written yet. Raises MoelineError for a table that is not kept as ours are."""
    names = sorted(file.name for file in (root / LOG).glob("*"))
    commits = {int(match[1]): name for name in names if (match := _COMMIT.fullmatch(name))}
    if not commits:
        return None
    version = max(commits)
    checkpoints = {int(match[1]): name for name in names if (match := _CHECKPOINT.fullmatch(name)) and int(match[1]) <= version}
    first, live, seen, removed_at = min(commits), set[str](), set[str](), dict[str, float]()
    if first > 0:  # somebody cleaned the log up: it starts from a checkpoint
        usable = [at for at in checkpoints if at >= first - 1]
        if not usable:
            raise MoelineError(f"The log of {root} starts at version {first} without a checkpoint: the table cannot be read. Restore it from a backup.")
        first = min(usable) + 1
        live = _of_checkpoint(root, root / LOG / checkpoints[first - 1])[0]
    missing = [at for at in range(first, version) if at not in commits]
    if missing:
        raise MoelineError(f"The log of {root} has no version {missing[0]}: the table cannot be read. Restore it from a backup.")
    for at in range(first, version + 1):
        added, removed = _of_commit(root, root / LOG / commits[at])
        live = (live - removed.keys()) | added
        seen |= added
        removed_at |= removed
    checkpoints = {at: name for at, name in checkpoints.items() if at >= first - 1}
    for name in checkpoints.values():
        seen.update(*_of_checkpoint(root, root / LOG / name))
    log = [*(name for at, name in commits.items() if at >= first), *checkpoints.values()]
    gone_since = {name: at for name, at in removed_at.items() if name not in live}
    return TableFiles(version, tuple(f"{LOG}/{name}" for name in sorted(log)), frozenset(live), frozenset(seen - live), gone_since)


def rows(root: Path) -> tuple[int, int]:
    """(version, rows) of the newest version, opened as every reader opens it; the rows are counted in the files, not taken from the log.

    Raises MoelineError when that is not the version, or not the files, that the log tells ``newest``.
    """
    import pyarrow.parquet as pq
    from deltalake import DeltaTable

    found, table = newest(root), DeltaTable(str(root))
    files = {Path(file) for file in table.file_uris()}
    if found is None or table.version() != found.version or files != {root / name for name in found.live}:
        raise MoelineError(f"{root} reads as version {table.version()} of {len(files)} files, and its log says otherwise: the table is not whole.")
    return table.version(), sum(pq.read_metadata(file).num_rows for file in files)


def rows_by_version(root: Path) -> dict[int, int | None]:
    """Rows of every version whose commit is there, counted in the files; None: a file of it was removed since (a forgotten document)."""
    import pyarrow.parquet as pq

    found = newest(root)
    if found is None:
        return {}
    first = min(int(match[1]) for name in found.log if (match := _COMMIT.fullmatch(Path(name).name)))
    start = root / LOG / f"{first - 1:020}.checkpoint.parquet"
    live = _of_checkpoint(root, start)[0] if first else set()
    counted: dict[str, int | None] = {}

    def rows_of(name: str) -> int | None:
        if name not in counted:
            counted[name] = None
            with contextlib.suppress(FileNotFoundError), (root / name).open("rb") as file:
                counted[name] = pq.read_metadata(file).num_rows
        return counted[name]

    rows, gone = sum(rows_of(name) or 0 for name in live), sum(rows_of(name) is None for name in live)
    told: dict[int, int | None] = {}
    for version in range(first, found.version + 1):
        added, removed = _of_commit(root, root / LOG / f"{version:020}.json")
        for names, sign in ((added - live, 1), (live & removed.keys(), -1)):
            rows += sign * sum(rows_of(name) or 0 for name in names)
            gone += sign * sum(rows_of(name) is None for name in names)
        live = (live - removed.keys()) | added
        told[version] = None if gone else rows
    return told


def _of_commit(root: Path, file: Path) -> tuple[set[str], dict[str, float]]:
    """(files added, files removed and when in Unix seconds) by one commit."""
    added, removed = set(), {}
    for line in file.read_text().splitlines():
        action = json.loads(line)
        if "add" in action:
            added.add(_name(root, action["add"]))
        if "remove" in action:
            removed[_name(root, action["remove"])] = action["remove"].get("deletionTimestamp", 0) / 1000.0
    return added, {name: at for name, at in removed.items() if name not in added}


def _of_checkpoint(root: Path, file: Path) -> tuple[set[str], set[str]]:
    """(files the version reads, files that older versions read) as a checkpoint holds them, which readers believe more than the commits before it."""
    import pyarrow.parquet as pq

    with file.open("rb") as opened:
        held = pq.read_table(opened, columns=["add", "remove"])
    sets = [{_name(root, action) for action in held[kind].to_pylist() if action} for kind in ("add", "remove")]
    return sets[0], sets[1]


def _name(root: Path, action: dict[str, Any]) -> str:
    path = str(action["path"])
    name = unquote(path)
    if "://" in path or name.startswith("/") or ".." in name.split("/") or action.get("deletionVector"):
        raise MoelineError(f"{root} names {path!r}, which is no plain file of its own: it was not written by moeline. Copy this table with its own tools.")
    return name
