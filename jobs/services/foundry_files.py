"""Foundry's evaluation files: which there are (infra/gauntlet/foundry.toml), and one of them from a web address or a folder, verified.

A file is written under another name and gets its own only when its sha256 is the recorded one; a file nobody has hashed yet must at least
be JSON lines of the recorded number. Names come from the list, never from a server, and cannot leave the folder.
Change here: how a file is got and what makes it right. Not here: which files are asked for, messages (jobs/gauntlet_data.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.contract import MoelineError
from jobs.environment import REPO

LIST = REPO / "infra" / "gauntlet" / "foundry.toml"
MAX_UNKNOWN_BYTES = 256 << 20  # of a file whose size nobody has recorded
MAX_SECONDS = 900.0  # for one file, however slowly it drips
_CHUNK = 1 << 18
_ATTEMPTS = 3
_NAME = re.compile(r"(local_data|yamls)(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class UnreachableError(MoelineError):
    """Nobody answered at the address: no network, or no such host."""


@dataclass(frozen=True)
class DataFile:
    """``path`` below the data folder; ``task``: its label, "" for a YAML. ``sha256`` and ``n_bytes`` are None where nobody has recorded them."""

    path: str
    task: str
    sha256: str | None
    n_bytes: int | None
    rows: int | None


@dataclass(frozen=True)
class FileList:
    """``source``: address of a file, with ``{path}`` in it."""

    repository: str
    revision: str
    source: str
    files: tuple[DataFile, ...]


def read_list(file: Path = LIST) -> FileList:
    """The recorded files. Raises MoelineError for a name that could leave the data folder, or a setting that is not what it must be."""
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
        repository, revision, source = (str(raw[name]) for name in ("repository", "revision", "source"))
        files = tuple(_data_file(one, file) for one in raw["files"])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise MoelineError(f"{file} is no list of Foundry's files: {error!r}. Compare it with the one in the repository.") from None
    paths = [one.path.lower() for one in files]  # two names that differ in case are one file on some disks
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise MoelineError(f"{file} names files twice: {', '.join(twice)}.")
    return FileList(repository, revision, source.replace("{repository}", repository).replace("{revision}", revision), files)


def _data_file(raw: dict[str, Any], where: Path) -> DataFile:
    path, sha256, n_bytes, rows = raw.get("path"), raw.get("sha256"), raw.get("bytes"), raw.get("rows")
    if not isinstance(path, str) or not _NAME.fullmatch(path):
        raise MoelineError(f"{where}: {str(path)[:200]!r} is no name of a data file: local_data/... or yamls/..., letters, digits, _ . and - only.")
    if sha256 is not None and (not isinstance(sha256, str) or not _SHA256.fullmatch(sha256)):
        raise MoelineError(f"{where}: sha256 of {path} is {str(sha256)[:80]!r}, not 64 hexadecimal digits.")
    if any(value is not None and (type(value) is not int or value < 1) for value in (n_bytes, rows)):
        raise MoelineError(f"{where}: bytes and rows of {path} must be whole numbers above 0.")
    if (sha256 is None) != (n_bytes is None) or (sha256 is None and rows is None):
        raise MoelineError(f"{where}: {path} needs sha256 and bytes, or else the number of its rows.")
    return DataFile(path, str(raw.get("task", "")), sha256, n_bytes, rows)


def sha256_of(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def problem_with(wanted: DataFile, file: Path, *, first_seen: str | None = None) -> str:
    """ "" when ``file`` is the file wanted, else what was expected and what was found. ``first_seen``: the sha256 an unpinned file had when it came."""
    size = file.stat().st_size
    if wanted.n_bytes is not None and size != wanted.n_bytes:
        return f"{wanted.path}: expected {wanted.n_bytes} bytes with sha256 {wanted.sha256}, found {size} bytes"
    expected = wanted.sha256 or first_seen
    found = sha256_of(file)
    if expected is not None:
        return "" if found == expected else f"{wanted.path}: expected sha256 {expected}, found {found}"
    rows = _json_rows(file)
    return "" if rows == wanted.rows else f"{wanted.path}: expected {wanted.rows} lines of JSON, found {rows if rows is not None else 'something else'}"


def _json_rows(file: Path) -> int | None:
    """Number of lines, all of them JSON objects; None when one is not."""
    count = 0
    try:
        with file.open("rb") as lines:
            for line in lines:
                if not isinstance(json.loads(line), dict):
                    return None
                count += 1
    except (ValueError, RecursionError):
        return None
    return count


Content = Callable[[DataFile], Iterator[bytes]]


def from_folder(folder: Path) -> Content:
    """Files of a copy: a data folder, Foundry's scripts/eval, or a checkout of Foundry."""

    def read(wanted: DataFile) -> Iterator[bytes]:
        places = [folder / wanted.path, folder / "scripts" / "eval" / wanted.path]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(wanted.path)
        with found.open("rb") as content:
            while chunk := content.read(_CHUNK):
                yield chunk

    return read


def from_web(source: str, client: Any) -> Content:
    """Files from an http(s) address: ``{path}`` is put into it, or added to its end."""
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise MoelineError(f"--from {source!r} is neither a folder that is there nor an http(s) address without a user name.")
    template = source if "{path}" in source else f"{source.rstrip('/')}/{{path}}"
    return lambda wanted: _stream(client, template.replace("{path}", wanted.path))


def _stream(client: Any, address: str) -> Iterator[bytes]:
    import httpx

    try:
        with client.stream("GET", address) as response:
            secure = urlsplit(address).scheme == "https"
            if secure and any(r.url.scheme != "https" for r in (*response.history, response)):
                raise MoelineError(f"{address} leads to an address without encryption ({response.url}). Give another --from.")
            if response.status_code == 429 or response.status_code >= 500:
                raise UnreachableError(f"{address} answered HTTP {response.status_code}")
            if response.status_code != 200:
                raise MoelineError(f"{address} answered HTTP {response.status_code}: it has no such file. Check --from, or the revision in {LIST.name}.")
            yield from response.iter_bytes(_CHUNK)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        raise MoelineError(f"{address} cannot be fetched: {error}. Check --from.") from None
    except httpx.HTTPError as error:
        raise UnreachableError(f"{address}: {type(error).__name__}: {error}") from None


def receive(
    wanted: DataFile, content: Content, unfinished: Path, target: Path, *, got: Callable[[int], None] = lambda _: None, wait_seconds: float = 1.0
) -> str:
    """Write the file wanted to ``unfinished``; when it is right it becomes ``target``, whole. Returns its sha256.

    A source that is busy, or breaks off, is asked again a few times. ``got`` hears of bytes received (and taken back). Raises MoelineError,
    and leaves nothing of it, when what comes is another file or longer than the file wanted; UnreachableError when nothing comes.
    """
    for attempt in range(_ATTEMPTS):
        try:
            _write(wanted, content(wanted), unfinished, got)
            if problem := problem_with(wanted, unfinished):
                raise MoelineError(f"{problem}. Nothing of it was kept; check --from (a proxy's error page, another revision, a cut transfer).")
            found = sha256_of(unfinished)
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.replace(target)
            return found
        except UnreachableError:
            if attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(wait_seconds * 2**attempt)
        finally:
            unfinished.unlink(missing_ok=True)
    raise AssertionError("the last attempt returns or raises")


def _write(wanted: DataFile, chunks: Iterator[bytes], unfinished: Path, got: Callable[[int], None]) -> None:
    limit, deadline, size = wanted.n_bytes or MAX_UNKNOWN_BYTES, time.monotonic() + MAX_SECONDS, 0
    try:
        with unfinished.open("wb") as out:
            for chunk in chunks:
                size += len(chunk)
                got(len(chunk))
                if size > limit:
                    raise MoelineError(f"{wanted.path}: expected at most {limit} bytes, found more. Nothing of it was kept; check --from.")
                if time.monotonic() > deadline:
                    raise UnreachableError(f"{wanted.path}: {size} bytes in {MAX_SECONDS:.0f} s, which is too slow")
                out.write(chunk)
    except UnreachableError:
        got(-size)
        raise
