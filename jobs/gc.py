"""moeline gc: what killed processes left behind goes, and nothing that anybody uses: no row, no version, no model, no record.

Whether something is used is asked of what cannot be out of date: a file lock, which the kernel drops with its holder, or the table's own log. Only
temporary files have no such owner; they go when they are older than anybody takes to write one.
Change here: what is left behind, and how it is told from what is in use. Not here: the command (gc_command.py), history (history.py), older versions of
tables (purge.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expectations.tables import TABLES
from jobs import history
from jobs.environment import Environment
from jobs.services import compaction, delta, ledger, locks, table_files, table_store
from jobs.services.training import LOCK
from jobs.tools import attempt_lock

HOUR = 3600.0
_LOG_FILE = re.compile(r"\d{20}\.(json|crc|checkpoint(\.\d+\.\d+)?\.parquet)|_last_checkpoint")
# What write_whole, write_private, the sample corpus and the training data call a file until it is whole.
_TEMPORARY = re.compile(r"\..+\.tmp|\.(.+\.)?[0-9a-f]{32}|\.(platform|plan|passwords|users|server|token|password|log4j2)\b.*\.[a-z0-9_]{8}|[0-9a-f]{32}\.tmp")
_OF_ONE_WORK = ("run--", "artifact--", "attempt--")  # locks whose number grows with the work done


@dataclass
class Found:
    """What goes (``bytes`` and number by kind) and what stays for a reason. With ``dry_run`` it is only counted."""

    dry_run: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    kept: list[str] = field(default_factory=list)

    def remove(self, kind: str, path: Path) -> None:
        size = _size(path)
        if not self.dry_run:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.bytes += size


def collect(env: Environment, *, older_than_seconds: float = HOUR, dry_run: bool = False, history_seconds: float | None = None) -> dict[str, Any]:
    """Charge dead attempts, end orphaned processes, remove what dead processes left; returns the numbers by kind, ``bytes`` and ``kept`` (reasons).

    ``older_than_seconds``: age from which a temporary file is nobody's any more; ``history_seconds``: that from which what only tells of ended work goes
    (None: it stays). Safe beside everything else, twice, and killed at any moment.
    """
    from jobs.services import platform

    found, before = Found(dry_run), time.time() - older_than_seconds if older_than_seconds else float("inf")
    if not dry_run:
        if charged := ledger.reconcile(env):
            found.counts["attempts charged"] = len(charged)
        if ended := platform.reap(env):
            found.counts["processes ended"] = ended
    _working_folders(env, found)
    for name in TABLES:
        _unnamed_files(env, name, found)
    for root in table_store.roots(env):
        for file in compaction.spare_checkpoints(root, before):
            found.remove("spare checkpoints of tables' logs", file)
    _checkpoints(env, found)
    _temporary_files(env, found, before)
    _locks(env, found)
    _spark_scratch(env, found)
    if history_seconds is not None:
        history.clear(env, found, time.time() - history_seconds)
    return {"counts": found.counts, "bytes": found.bytes, "kept": found.kept, "dry_run": dry_run}


def _working_folders(env: Environment, found: Found) -> None:
    """Staged rows and scratch space that no process works in any more. An attempt holds its lock before it has a folder."""
    for folder in sorted((env.warehouse / "_staging").glob("*")):
        lock = locks.held_file(env, "forget") if folder.name.startswith("forget-") else locks.file_of(env, attempt_lock(folder.name))
        with locks.not_in_use(lock) as free:
            if free:
                found.remove("working folders", folder)
            else:
                found.kept.append(f"{folder.name} of _staging: it is being worked in")


def _unnamed_files(env: Environment, name: str, found: Found) -> None:
    """Files in a table's folder that no commit names."""
    root = table_store.root(env, name)
    if not table_store.is_there(root):
        return
    with locks.not_in_use(locks.held_file(env, delta.writers_lock(name))) as alone:
        if not alone:
            found.kept.append(f"files of {name} that no commit names: it is being written")
            return
        newest = table_files.newest(root)
        named = set() if newest is None else newest.live | newest.older
        for file in table_store.files(root):
            if file.name.startswith(f"{table_files.LOG}/"):
                if not _LOG_FILE.fullmatch(file.path.name):
                    found.remove("unfinished commits", file.path)
            elif file.name not in named:
                found.remove("rows never published", file.path)


def _checkpoints(env: Environment, found: Found) -> None:
    """Unfinished checkpoints of trainings that nobody runs."""
    unfinished: dict[Path, list[Path]] = {}
    for folder in sorted(env.artifacts.rglob(".unfinished-*")):
        unfinished.setdefault(folder.parent, []).append(folder)
    for parent, folders in unfinished.items():
        lock = next((place / LOCK for place in (parent, parent.parent) if (place / LOCK).exists()), parent / LOCK)
        with locks.not_in_use(lock) as free:
            if not free:
                found.kept.append(f"the unfinished checkpoint in {os.path.relpath(parent, env.home)}: its training runs")
                continue
            for folder in folders:
                found.remove("unfinished checkpoints", folder)


def _temporary_files(env: Environment, found: Found, before: float) -> None:
    roots = [env.artifacts, *(env.warehouse / name for name in ("_results", "_forgotten"))]
    roots += [env.home / name for name in ("attempts", "progress", "recipes", "airflow", "spark", "mlflow", "ray")]
    files = [file for root in roots if root.is_dir() for file in root.rglob("*") if _TEMPORARY.fullmatch(file.name) and file.is_file()]
    files += [file for file in sorted(env.home.glob("*")) if _TEMPORARY.fullmatch(file.name)]
    files += [file for file in sorted(Path(tempfile.gettempdir()).glob("moeline-model-*")) if file.lstat().st_uid == os.geteuid()]
    for file in dict.fromkeys(files):
        with contextlib.suppress(FileNotFoundError):
            if file.lstat().st_mtime <= before:
                found.remove("temporary files", file)
            else:
                found.kept.append(f"{os.path.relpath(file, env.home)}: too young to be nobody's")


def _locks(env: Environment, found: Found) -> None:
    """Lock files of single pieces of work that nobody holds; who waits for one notices that it is gone (locks.locked)."""
    for file in sorted(locks.file_of(env, "any").parent.glob("*")):
        if file.name.startswith(_OF_ONE_WORK):
            with locks.not_in_use(file) as free:
                if free:
                    found.remove("locks", file)


def _spark_scratch(env: Environment, found: Found) -> None:
    """Scratch folders of Spark and its daemons' sockets: nobody's once no engine can be running."""
    from jobs.services import platform
    from jobs.services.platform import engines, services

    folders = sorted((env.home / "spark" / "local").glob("*"))
    if (env.home / "spark" / "server.properties").is_file():  # a platform ran here: it has a folder for sockets
        folders += sorted((services.runtime_folder(env.home) / engines.SPARK_SOCKETS).glob(".*.sock"))
    if folders and (platform.status(env)["running"] or any(alive for _, _, alive in ledger.open_attempts(env))):
        found.kept.append("Spark's scratch folders: the platform or a stage runs")
        return
    for folder in folders:
        found.remove("Spark's scratch folders", folder)


def _size(path: Path) -> int:
    files: Iterable[Path] = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            about = file.lstat() if isinstance(file, Path) else file.stat()  # a store knows no links
            total += about.st_size if not stat.S_ISDIR(about.st_mode) else 0
    return total
