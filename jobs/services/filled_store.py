"""Tables of a home that is being made, put into their store: `moeline migrate` and `moeline restore` into an environment with ``[paths] tables``.

A store has no rename. So an object beside the tables says for which home they are being put there, until that home is whole; a later attempt for the same
home removes what an earlier one left and begins anew. Logs go last, oldest commit first: a table with a commit has all files the commit names.
Change here: how tables get into a store as a whole. Not here: how a home is made (unfinished_home.py), what is copied (jobs/backup.py).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import table_files, table_store

MARK = ".unfinished-home"
_READ_BYTES = 1 << 20


def refuse_if_in_use(env: Environment, what: str) -> None:
    """Raise MoelineError unless the place of the tables is empty, or holds what an earlier attempt for this home left. ``what`` is made: "A restore"."""
    if env.tables is None or not table_store.files(place := _place(env)):
        return
    if _marked_for(place) != str(env.home):
        raise MoelineError(f"{what} puts tables into {env.tables}, which is not empty. Nothing was changed. Name another place in the environment file.")


def fill(env: Environment, warehouse: Path, echo: Callable[[str], None]) -> None:
    """Move the tables of a ``warehouse`` folder into the store of ``env``; every object is read again and compared by sha256.

    Raises MoelineError when one is not what was put there. Nothing for an environment whose tables lie in folders.
    """
    if env.tables is None:
        return
    place, folders = _place(env), table_store.folders(warehouse)
    with table_store.asking(env.tables):
        for left in table_store.files(place):
            if left.name != MARK:
                left.path.unlink()
        (place / MARK).write_text(str(env.home))
    echo(f"  putting {len(folders)} tables into {env.tables}")
    for folder in folders:
        found = sorted(table_store.files(folder), key=lambda file: (file.name.startswith(f"{table_files.LOG}/"), file.name))
        for file in found:
            digest = _sha256(file.path)
            table_store.put(file.path, target := place / folder.name / file.name)
            with table_store.asking(env.tables):
                if _sha256(target) != digest:
                    raise MoelineError(f"{target} is not what was put there (sha256). Is the store sound? Nothing was made; try again.")
        shutil.rmtree(folder)  # empty folders


def release(env: Environment) -> None:
    """Take the mark away, once the home is whole."""
    if env.tables is not None and _marked_for(place := _place(env)) == str(env.home):
        with table_store.asking(env.tables):
            (place / MARK).unlink()


def _place(env: Environment) -> Any:
    return table_store.at(str(env.tables))


def _marked_for(place: Any) -> str | None:
    with table_store.asking(str(place)):
        try:
            return str((place / MARK).read_text())
        except FileNotFoundError:
            return None


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
