"""Append-only tables stay few files, and every table's log few checkpoints, however many runs there were.

Each attempt appends a file of a few rows to ``costs`` and ``checks``; a reader pays about a millisecond per file, and delta-rs writes a checkpoint that
names all of them every hundred commits: both grow with the square of the runs (decision 34). Published partitions are left alone: their files are few,
large, and named by recorded results.
Change here: when files are joined, which checkpoints stay. Not here: who asks for it (delta.append, jobs/gc.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from expectations.tables import TABLES
from jobs.environment import Environment
from jobs.services import locks, table_files

FILES = 128  # joining so many takes as long as reading them twice; so a reader never opens many more
_NEWEST = 2  # a reader may have just been told of the one before the newest


def join_files(env: Environment, name: str) -> bool:
    """Rewrite an append-only table of FILES files or more as one, in one commit that changes no row; whether this process did it.

    Appending goes on meanwhile. Nothing is awaited: while another process joins, or if it was faster, this one leaves it. A process killed here leaves
    a file that no commit names, which `moeline gc` removes.
    """
    from deltalake import CommitProperties
    from deltalake.exceptions import CommitFailedError

    from jobs.services import delta

    if TABLES[name].partition:
        return False
    with locks.not_in_use(locks.held_file(env, f"join--{name}")) as alone:
        table = delta.open_table(env, name) if alone else None
        if table is None or len(table.file_uris()) < FILES:
            return False
        try:
            with locks.locked(env, delta.writers_lock(name), shared=True):
                table.optimize.compact(commit_properties=CommitProperties(max_commit_retries=FILES))
        except CommitFailedError:  # a migration changed the table
            return False
    return True


def spare_checkpoints(root: Path, before: float) -> list[Path]:
    """Checkpoints of a table's log that nobody needs and that are older than ``before`` (Unix seconds).

    The two newest stay, and of the others the last one below every power of two: together they are about as large as twice the newest, and the commits
    between them are there for who reads an older version.
    """
    found = table_files.checkpoints(root)
    stay = {*sorted(found)[-_NEWEST:], *_last_of_powers(found)}
    return [found[at] for at in sorted(found) if at not in stay and found[at].stat().st_mtime <= before]


def _last_of_powers(versions: Iterable[int]) -> set[int]:
    last: dict[int, int] = {}
    for version in sorted(versions):
        last[version.bit_length()] = version
    return set(last.values())
