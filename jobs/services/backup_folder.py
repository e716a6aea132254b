"""A backup as a folder: copies of files under plain names, and a manifest with the sha256 and size of every one.

It is written under a name that says "unfinished" and renamed when its manifest is on disk, so what bears a backup's name is whole. A manifest may come
from anybody: every name in it is checked, links are refused, nothing outside the folder is opened.
Change here: what a backup looks like, what is believed of one. Not here: what is copied in which order (jobs/backup.py), where it goes (jobs/restore.py).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from jobs.contract import MoelineError

MANIFEST, FORMAT = "manifest.json", 1
LOCK = ".lock"  # in a folder that is being written; one left by a kill means nothing
ROOTS = ("databases", "home", "warehouse", "artifacts", "landing")
# Of the home itself. Nothing else is taken back from a backup: platform.json, say, would tell our programs whom to trust with a password.
HOME_FOLDERS = ("attempts", "uptime", "recipes", "keys", "airflow/keys")
HOME_FILES = (
    "sample_days.json", "sample_days.unfinished", "task_seconds.json", "mlflow-by-hand.db", "airflow/passwords.json", "airflow/users.json", "mlflow/password",
)  # fmt: skip
DATABASES = ("databases/airflow.dump", "databases/mlflow.dump")
_NAME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{6}Z")
_UNFINISHED = ".unfinished-"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 1 << 20
_SHOWN = 10
Echo = Callable[[str], None]


@dataclass(frozen=True)
class File:
    size: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Manifest:
    """``about``: what the backup says of itself; ``files``: by name below the folder; ``sha256``: of the manifest, which stands for all of it."""

    about: dict[str, Any]
    files: dict[str, File]
    sha256: str


class Progress:
    """Lines "what is copied, how much of how much, ETA", at most one every two seconds; ``total`` (bytes) may be an estimate."""

    def __init__(self, total: int, echo: Echo) -> None:
        self.total, self.echo, self.done = total, echo, 0
        self._began = self._said = time.monotonic()

    def add(self, n_bytes: int, what: str) -> None:
        self.done += n_bytes
        now = time.monotonic()
        if now - self._said < 2.0:
            return
        self._said = now
        share = min(0.99, self.done / self.total) if self.total else 0.99
        eta = f", ETA {(now - self._began) * (1 - share) / share:.0f} s" if share > 0.01 else ""
        self.echo(f"  {share:4.0%}  {in_words(self.done)} of about {in_words(self.total)}{eta}  {''.join(c if c.isprintable() else '?' for c in what)}")


def in_words(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} GB"


def copied(source: Path, target: Path, seen: Callable[[int], None]) -> File:
    """Copy a regular file to a new 0600 one; what was read is what was hashed and written. FileNotFoundError: it is gone; MoelineError: it is no file.

    ``source`` may lie in a store (jobs/services/table_store.py), which knows no links.
    """
    if not isinstance(source, Path):
        with source.open("rb") as reading:
            return _written(reading, target, seen, int(source.stat().st_mtime * 1e9))
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise MoelineError(f"{str(source)!r} is a link or no file; only files can be copied.") from None
        raise
    with os.fdopen(descriptor, "rb") as reading:
        about = os.fstat(reading.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise MoelineError(f"{str(source)!r} is no file; only files can be copied.")
        return _written(reading, target, seen, about.st_mtime_ns)


def _written(reading: BinaryIO, target: Path, seen: Callable[[int], None], mtime_ns: int) -> File:
    digest, size = hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writing:
        while piece := reading.read(_READ_BYTES):
            digest.update(piece)
            writing.write(piece)
            size += len(piece)
            seen(len(piece))
    os.utime(target, ns=(mtime_ns, mtime_ns))
    return File(size, digest.hexdigest(), mtime_ns)


def regular_files(root: Path, leave_out: Callable[[os.DirEntry[str]], bool] = lambda entry: False) -> Iterator[tuple[str, Path]]:
    """(name below ``root``, file) of every file, in order; links are not followed, folders and files that ``leave_out`` names or that vanish are skipped."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if leave_out(entry) or entry.is_symlink():
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from ((f"{entry.name}/{name}", file) for name, file in regular_files(Path(entry.path), leave_out))
        elif entry.is_file(follow_symlinks=False):
            yield entry.name, Path(entry.path)


# -- writing ----------------------------------------------------------------------------------------------------------------


class Copies:
    """Files copied under names whose first part says which of the ``roots`` (by ROOTS) they lie in; ``files`` is what was copied."""

    def __init__(self, roots: Mapping[str, Path], progress: Progress) -> None:
        self.roots, self.files = roots, dict[str, File]()
        self._progress = progress

    def place(self, name: str) -> Path:
        """Where the copy called ``name`` lies."""
        root, _, inside = name.partition("/")
        return self.roots[root] / inside

    def copy(self, name: str, source: Path) -> bool:
        """Copy ``source`` as ``name``; False when it is no longer there."""
        try:
            self.files[name] = copied(source, self.place(name), lambda n: self._progress.add(n, name))
        except FileNotFoundError:
            return False
        return True

    def take(self, name: str) -> None:
        """Count in a file that another program wrote to ``place(name)``."""
        with self.place(name).open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            about = os.fstat(handle.fileno())
        os.chmod(self.place(name), 0o600)
        self.files[name] = File(about.st_size, digest, about.st_mtime_ns)
        self._progress.add(about.st_size, name)

    def drop(self, folder: str) -> None:
        """Remove the copies under ``folder``."""
        for name in [name for name in self.files if name.startswith(f"{folder}/")]:
            self.place(name).unlink(missing_ok=True)
            del self.files[name]


class Unfinished(Copies):
    """A backup that is being written in ``to``; ``finish`` gives it its name. Left by an error, it is removed; by a kill, by the next backup there."""

    def __init__(self, to: Path, progress: Progress) -> None:
        self._to = to
        self._name, self.folder, self._lock = _begin(to)
        super().__init__({root: self.folder / root for root in ROOTS}, progress)

    def __enter__(self) -> Unfinished:
        return self

    def __exit__(self, *raised: object) -> None:
        if raised[0] is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def finish(self, about: Mapping[str, Any]) -> tuple[Path, Manifest]:
        """Write the manifest and give the backup its name; returns where it lies and what its manifest says."""
        raw = json.dumps({"format": FORMAT, **about, "files": {name: asdict(file) for name, file in sorted(self.files.items())}}, indent=1).encode()
        os.sync()  # all copies are on disk before the manifest that vouches for them; one call, because an fsync per small file takes many times as long
        manifest = self.folder / MANIFEST
        with os.fdopen(os.open(manifest, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())
        _flush(self.folder)
        final = self._to / self._name
        os.rename(self.folder, final)
        (final / LOCK).unlink()
        _flush(self._to)
        return final, Manifest(dict(about), self.files, hashlib.sha256(raw).hexdigest())


def _begin(to: Path) -> tuple[str, Path, int]:
    """(name the backup will have, its unfinished folder, the lock on it). Raises MoelineError for a folder that holds other things."""
    if to.exists() and not to.is_dir():
        raise MoelineError(f"{to} is a file; a backup goes into a folder. Name a folder that is new, empty, or holds earlier backups.")
    if not to.exists():
        to.mkdir(mode=0o700, parents=True)
    strange = sorted(e.name for e in to.iterdir() if not (_NAME.fullmatch(e.name) or e.name.startswith(_UNFINISHED) or e.name == "lost+found"))
    if strange:
        raise MoelineError(f"{to} holds other things than backups ({', '.join(strange[:3])}). Name a folder that is new, empty, or holds earlier backups.")
    _remove_abandoned(to)
    while True:
        name = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H%M%SZ")
        folder = to / f"{_UNFINISHED}{name}"
        if not (to / name).exists():
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                folder.mkdir(mode=0o700)
                held = lock(folder)
                if held is not None:
                    return name, folder, held
        time.sleep(0.1)  # another backup has this second's name


def _remove_abandoned(to: Path) -> None:
    """What killed backups left; the lock of one that is being written is held."""
    for folder in to.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):  # it has its name by now
            held = lock(folder)
            if held is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)


def lock(folder: Path) -> int | None:
    """A lock on a folder that the kernel frees when its holder dies, or None when another process holds it or removes the folder."""
    # A file inside, because NFS locks no folders.
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- reading ----------------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Manifest:
    """The manifest of a backup whose files are exactly those it names, with their sizes. Raises MoelineError; contents are not read yet."""
    found = _listed(folder)
    found.pop(LOCK, None)
    if MANIFEST not in found:
        raise MoelineError(f"{folder} is no whole backup: it has no {MANIFEST}.{_instead(folder)}")
    raw = (folder / MANIFEST).read_bytes()
    try:
        about = json.loads(raw)
        files = {str(name): File(**values) for name, values in about.pop("files").items()}
        version = about.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MoelineError(f"{folder / MANIFEST} is no manifest of a backup ({error}). Take another backup.") from None
    if version != FORMAT:
        raise MoelineError(f"{folder} is a backup of format {version}; this version of moeline reads {FORMAT}. Restore it with the version that made it.")
    refuse(folder, [f"{name!r}: {problem}" for name, file in files.items() if (problem := _problem(name, file))])
    problems = [f"{name!r} is missing" for name in files if name not in found]
    problems += [f"{name!r} is not in the manifest" for name in found if name not in files and name != MANIFEST]
    problems += [
        f"{name!r} has {found[name]:,} bytes, {file.size:,} were written" for name, file in files.items() if name in found and found[name] != file.size
    ]
    refuse(folder, problems)
    return Manifest(about, files, hashlib.sha256(raw).hexdigest())


def refuse(folder: Path, problems: list[str]) -> None:
    """Raise MoelineError with the first of the problems, if there are any."""
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        listed = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
        raise MoelineError(f"{folder} is not the backup that was written:{listed}{more}\nTake another backup; nothing was restored from this one.")


def verify(folder: Path, manifest: Manifest, progress: Progress) -> None:
    """Read every file; raises MoelineError naming those whose content is not what was written."""
    refuse(folder, [f"{name!r}: its content is not what was written (sha256)" for name in altered(manifest.files, lambda name: folder / name, progress)])


def altered(files: Mapping[str, File], place: Callable[[str], Path], progress: Progress) -> list[str]:
    """Names of the files whose content at ``place(name)`` is not what was written; every one is read."""
    found = []
    for name, file in files.items():
        digest = hashlib.sha256()
        with os.fdopen(os.open(place(name), os.O_RDONLY | os.O_NOFOLLOW), "rb") as handle:
            while piece := handle.read(_READ_BYTES):
                digest.update(piece)
                progress.add(len(piece), name)
        if digest.hexdigest() != file.sha256:
            found.append(name)
    return found


def _listed(folder: Path) -> dict[str, int]:
    """Size of every file below ``folder`` by name. Raises MoelineError for a link or anything else that is no file or folder."""
    if folder.is_symlink() or not folder.is_dir():
        raise MoelineError(f"{folder} is not there, or is no folder. Name the folder of one backup.")
    found, waiting = {}, [folder]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            about = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(about.st_mode):
                waiting.append(Path(entry.path))
            elif stat.S_ISREG(about.st_mode):
                found[Path(entry.path).relative_to(folder).as_posix()] = about.st_size
            else:
                raise MoelineError(f"{entry.path!r} is a link or no file; a backup holds only files. Nothing was restored. Take another backup.")
    return found


def _instead(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if _NAME.fullmatch(entry.name))
    return f" It holds backups; name one of them: {', '.join(names[-_SHOWN:])}." if names else " Take another one."


def _problem(name: str, file: File) -> str | None:
    """Why an entry of a manifest is not believed, or None."""
    parts = PurePosixPath(name).parts
    if not name or name != "/".join(parts) or name.startswith("/") or ".." in parts or "\0" in name or parts[0] not in ROOTS or len(parts) < 2:
        return "no name that a backup gives"
    inside = "/".join(parts[1:])
    if parts[0] == "home" and inside not in HOME_FILES and not any(inside.startswith(f"{known}/") for known in HOME_FOLDERS):
        return "not a file of a home that is backed up"
    if parts[0] == "databases" and name not in DATABASES:
        return "no database of the platform"
    whole = type(file.size) is int and type(file.mtime_ns) is int and file.size >= 0
    return None if whole and isinstance(file.sha256, str) and _SHA256.fullmatch(file.sha256) else "no size and sha256"
