"""A home that is being made by `moeline restore` or `moeline migrate`: built beside its places, renamed at the end, not used before all of it is there.

Every folder that is built holds a mark with the home it is for. A home's tables or artifacts may lie elsewhere, so there are several renames: the home's first,
and when the mark in it goes, after all others, the home is whole. Until then no stage and no platform works on it; the next attempt removes it and begins anew.
Change here: what counts as unfinished. Not here: what a home is made from (jobs/restore.py, jobs/migrate.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import backup_folder

MARK = ".unfinished-home"
Moves = Sequence[tuple[Path, Path]]


def refuse(env: Environment) -> None:
    """Raise MoelineError for an environment with a place that is not whole."""
    for place in (env.home, env.warehouse, env.artifacts):
        if (home := _marked_for(place)) is not None:
            raise MoelineError(
                f"{place} is not whole: `moeline restore` or `moeline migrate` into {home} was interrupted, or is at work. Run it again; it begins anew."
            )


def refuse_if_in_use(places: Mapping[str, Path], home: Path, what: str) -> None:
    """Raise MoelineError unless every place is absent, an empty folder, or what an earlier attempt for ``home`` left. ``what`` is made: "A restore"."""
    ours = _marked_for(home) is not None
    for name, place in places.items():
        if ours and place.is_relative_to(home):
            continue
        used = place.is_symlink() or (place.exists() and (not place.is_dir() or any(place.iterdir())))
        if used and _marked_for(place) != str(home):
            raise MoelineError(
                f"{what} makes a new home, and its {name} {place} is not empty. Nothing was changed. Name another one with --home, or move that folder away."
            )


@contextlib.contextmanager
def beside(env: Environment, places: Mapping[str, Path]) -> Iterator[tuple[Environment, Moves]]:
    """(environment to build in, for ``finish``): a marked folder beside each of ``places`` (the home and others of ``env``), removed again at the end."""
    home = _unfinished(env.home)
    moved = {name: place for name, place in places.items() if name != "home"}
    built = {name: home / place.relative_to(env.home) if place.is_relative_to(env.home) else _unfinished(place) for name, place in moved.items()}
    moves = [(home, env.home), *((built[name], place) for name, place in moved.items() if not place.is_relative_to(env.home))]
    locks: list[int] = []
    try:
        for made, _ in moves:
            locks.append(_claimed(made))
            (made / MARK).write_text(str(env.home))
        for made, place in reversed(moves):  # the home's mark speaks for all, so it goes last
            if _marked_for(place) == str(env.home):
                _remove_abandoned(place, made)
        yield replace(env, home=home, tables=None, **built), moves  # type: ignore[arg-type]
    finally:
        for (made, _), lock in zip(moves, locks, strict=False):
            shutil.rmtree(made, ignore_errors=True)
            os.close(lock)


def finish(moves: Moves) -> None:
    """Give every folder its name, then take the home's mark away: from here on it is whole, whatever becomes of the other marks."""
    os.sync()
    for made, final in moves:
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(made, final)  # onto nothing, or an empty folder: anything else is refused by the kernel
    os.sync()
    tidy([final for _, final in moves])


def tidy(places: Iterable[Path]) -> None:
    """Take away what building left in places, the home first; of a home that is whole, the rest of it means nothing."""
    for place in places:
        (place / MARK).unlink(missing_ok=True)
        (place / backup_folder.LOCK).unlink(missing_ok=True)


def _marked_for(place: Path) -> str | None:
    """The home a place is being made for, as long as that home is not whole."""
    try:
        home = (place / MARK).read_text()
        return home if (Path(home) / MARK).is_file() else None
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _remove_abandoned(place: Path, made: Path) -> None:
    """Remove a place that an earlier attempt renamed; out of sight in one step, so that a kill leaves no half of it there."""
    lock = backup_folder.lock(place)
    if lock is None:
        raise MoelineError(f"Another `moeline restore` or `moeline migrate` is at work in {place}. Wait for it, or name another home.")
    os.rename(place, made / ".abandoned")
    shutil.rmtree(made / ".abandoned")
    os.close(lock)


def _unfinished(place: Path) -> Path:
    return place.with_name(f".{place.name}.restoring")


def _claimed(folder: Path) -> int:
    """A new folder under the lock returned; what a killed attempt left there is removed. Raises MoelineError while another one is at work there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock: Any = backup_folder.lock(folder)
    if lock is None:
        raise MoelineError(f"Another `moeline restore` or `moeline migrate` is at work in {folder}. Wait for it, or name another home.")
    for entry in (entry for entry in folder.iterdir() if entry.name != backup_folder.LOCK):
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    folder.chmod(0o700)
    return int(lock)
