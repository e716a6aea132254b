"""Locks among all processes that use one warehouse, whichever home they belong to; the kernel drops each with its holder, so none is ever stale.

flock(2): on NFS it holds between machines. Change here: where locks lie, how they are held. Not here: what is done under one (who calls this).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from jobs.environment import Environment


def file_of(env: Environment, name: str) -> Path:
    return env.warehouse / "_locks" / f"{name.replace('/', '--')}.lock"


@contextlib.contextmanager
def locked(env: Environment, name: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock alone, or beside others that hold it ``shared``; waits for it."""
    file = file_of(env, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(file, "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if _is_file_of(file, handle.fileno()):  # else `moeline gc` removed it before it was held: another process would lock another file
                yield
                return


def held_file(env: Environment, name: str) -> Path:
    """The file of a lock, made if there is none: only then ``not_in_use`` keeps others from it, too."""
    file = file_of(env, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


@contextlib.contextmanager
def not_in_use(lock: Path) -> Iterator[bool]:
    """Whether nobody holds the lock; until the end nobody can. Does not wait. A lock without a file is nobody's, and is not made."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield _is_file_of(lock, descriptor)
    finally:
        os.close(descriptor)


def _is_file_of(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one that ``path`` names now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
