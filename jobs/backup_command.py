"""The commands `moeline backup` and `moeline restore`: their options, and what a person is told.

Change here: options and words. Not here: what is copied (jobs/backup.py), how it comes back (jobs/restore.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.terminal import printed, say

BACKUP = (
    "Copy the home, while the platform runs, into a new folder named by the time (UTC) inside FOLDER, which is new, empty, or holds earlier backups: "
    "databases, recorded results, tables with all their versions, artifacts, own recipes, landing files, and keys and passwords: it holds secrets, so it "
    "is made for its owner alone (0700). Not copied: logs, scratch space, caches, Foundry's data, databases and landing zones on other servers."
)
RESTORE = (
    "Make a new home out of one backup (the folder with manifest.json in it), on this or another machine: `moeline restore BACKUP --home NEW`, then "
    "`moeline up --home NEW`. Refuses a home that is not empty. What was forgotten after the backup was made is in it again: see what it prints at the end."
)


def add_to(commands: Any, leaf: Callable[..., argparse.ArgumentParser]) -> None:
    made = leaf(commands, "backup", _backup, BACKUP)
    made.add_argument("folder", metavar="FOLDER", help="where backups go; with --verify: one backup")
    made.add_argument(
        "--landing", action=argparse.BooleanOptionalAction, default=True, help="copy the landing zone too (default); without it days cannot be prepared again"
    )
    made.add_argument("--verify", action="store_true", help="copy nothing: read every file of the backup FOLDER and compare it with its manifest")
    back = leaf(commands, "restore", _restore, RESTORE)
    back.add_argument("backup", metavar="BACKUP", help="the folder of one backup")


def _backup(arguments: argparse.Namespace, env: Environment) -> dict[str, Any]:
    from jobs import backup

    folder = Path(arguments.folder)
    try:
        found = backup.verify(folder, echo=say) if arguments.verify else backup.backup(env, folder, landing=arguments.landing, echo=say)
    except OSError as error:
        raise MoelineError(f"{error}. No backup was made; is {folder} a disk that can be written, with room on it?") from error
    if not arguments.json:
        print(render(found), end="")
    return found


def _restore(arguments: argparse.Namespace, env: Environment) -> dict[str, Any]:
    from jobs import restore

    try:
        found = restore.restore(env, Path(arguments.backup), echo=say)
    except OSError as error:
        raise MoelineError(f"{error}. Nothing was restored; can {arguments.backup} be read, is there room for {env.home}?") from error
    if not arguments.json:
        print(restore.render(found), end="")
    return found


def render(found: Mapping[str, Any]) -> str:
    """What a backup holds, for a person."""
    from jobs.services.backup_folder import in_words

    rows = sum(table["rows"] for table in found["tables"].values())
    lines = [
        f"{found['folder']}: {'as it was written' if found.get('verified') else 'written'} ({found['seconds']:.0f} s)",
        f"  {len(found['tables'])} tables with {rows:,} rows, {found['n_files']:,} files, {in_words(found['bytes'])}, of {found['created_at']}",
        f"  sha256 of its manifest, which names every file: {found['manifest_sha256']}",
        f"  databases: {', '.join(found['databases']) or 'none'}; landing zone: {found['landing']}",
        "  It holds keys and passwords, and keeps what is forgotten later: delete it when a document must be gone everywhere.",
    ]
    return printed(lines)
