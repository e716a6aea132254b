"""The landing zone ``<source>/<YYYY-MM-DD>/...``: a local folder, or any URL that fsspec opens (s3, gs, abfs, http, sftp, ...).

Where it is: ``[paths] landing`` of infra/env/*.toml. Keys and endpoints of a store come from fsspec's own configuration (``FSSPEC_S3_KEY`` and the like, or
its configuration files), never from ours, so they reach neither a table nor a log.
Change here: what counts as landed, what a file's identity is. Not here: how files are read (readers.py).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from jobs.contract import MoelineError
from jobs.environment import Environment

_READ_BYTES = 1 << 20
# What stores say about content without sending it. Any other content has another value; the other way round need not hold.
_CHECKSUMS = ("sha256", "md5Hash", "content_md5", "md5", "crc32c", "ETag", "etag")
_WITH_BUCKETS = {"s3", "gs", "abfs"}


class StoreError(OSError):
    """A store did not give what it lists. The environment's fault, never the content's."""


@dataclass(frozen=True)
class LandedFile:
    """One file of the landing zone. ``path``: where to open it, a path or a URL. ``relative`` is its path under the zone, ``source`` its first folder.

    ``sha256``: of its content; in a store that gives a checksum of its own, of that and the size, so that nothing is sent twice.
    """

    path: str
    source: str
    relative: str
    interval: str
    sha256: str


def is_url(path: str | Path) -> bool:
    """Whether fsspec opens it, not this machine's file system."""
    return isinstance(path, str) and "://" in path


def local(env: Environment) -> Path:
    """The landing folder, to write into. Raises MoelineError where it is a URL."""
    if isinstance(env.landing, Path):
        return env.landing
    raise MoelineError(f"The landing zone of environment {env.name} is {env.landing}. The sample corpus is written into a local folder only; land files there.")


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A landed file's bytes. Raises OSError when it cannot be opened; of a store StoreError, whatever its own library raises."""
    if not is_url(path):
        with open(path, "rb") as handle:
            yield handle
        return
    import fsspec

    with contextlib.ExitStack() as stack:
        with _as_store_errors(path):
            handle = stack.enter_context(fsspec.open(path, "rb"))
        yield _Remote(handle, path)  # type: ignore[misc]


class _Remote:
    """A store's file whose errors are StoreErrors: a reader takes others for broken content."""

    def __init__(self, handle: Any, path: str) -> None:
        self._handle, self._path = handle, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def read(self, size: int = -1) -> bytes:
        with _as_store_errors(self._path):
            found: bytes = self._handle.read(size)
            return found


@contextlib.contextmanager
def _as_store_errors(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise StoreError(f"{path}: {type(error).__name__}: {error}") from error


def files(env: Environment, interval: str) -> tuple[LandedFile, ...]:
    """Files that landed for a day, in a fixed order, with their identity. Raises MoelineError when a store cannot be asked."""
    if isinstance(env.landing, Path):
        return tuple(_local_files(env.landing, interval))
    with _asking(env.landing) as (store, root):
        found = [file for source in _sources(store, root, env.landing) for file in _remote_files(store, root, env.landing, source, interval)]
    return tuple(sorted(found, key=lambda file: file.relative))


def days(env: Environment) -> list[str]:
    """Every data day for which something landed, oldest first."""
    if isinstance(env.landing, Path):
        places = [(folder.name, lambda folder=folder: any(_landed(path) for path in folder.rglob("*"))) for folder in env.landing.glob("*/*")]
        return _with_files(places)
    with _asking(env.landing) as (store, root):
        return _with_files(
            [
                (day, lambda at=f"{root}/{source}/{day}": any(path.startswith(f"{at}/") and _is_whole(path) for path in store.find(at)))
                for source in _sources(store, root, env.landing)
                for day in _folders(store, f"{root}/{source}")
            ]
        )


def is_there(env: Environment, relative: str) -> bool:
    """Whether a landed file still lies in the zone. Raises MoelineError when a store cannot be asked."""
    if isinstance(env.landing, Path):
        return (env.landing / relative).is_file()
    with _asking(env.landing) as (store, root):
        return bool(store.isfile(f"{root}/{relative}"))


def _with_files(places: list[tuple[str, Callable[[], bool]]]) -> list[str]:
    found: set[str] = set()
    for name, has_files in places:
        with contextlib.suppress(ValueError):
            day = dt.date.fromisoformat(name).isoformat()
            if day not in found and has_files():
                found.add(day)
    return sorted(found)


def _landed(path: Path) -> bool:
    """A name that starts with a dot is still being written. A link could point anywhere."""
    return _is_whole(path.name) and not path.is_symlink() and path.is_file()


def _is_whole(path: str) -> bool:
    return not path.rsplit("/", 1)[-1].startswith(".")


def _local_files(root: Path, interval: str) -> Iterator[LandedFile]:
    for folder in sorted(root.glob(f"*/{interval}")):
        for path in sorted(folder.rglob("*")):
            if _landed(path):
                with open(path, "rb") as handle:
                    digest = hashlib.file_digest(handle, "sha256").hexdigest()
                yield LandedFile(str(path), folder.parent.name, str(path.relative_to(root)), interval, digest)


@contextlib.contextmanager
def _asking(url: str) -> Iterator[tuple[Any, str]]:
    """The store of a URL and the zone's path in it."""
    import fsspec

    if "::" in url:
        raise MoelineError(f"The landing zone {url} is a chain of stores (::). Name the store that holds the folders <source>/<day>/.")
    try:
        store, root = fsspec.core.url_to_fs(url)
        yield store, root.rstrip("/")
    except MoelineError:
        raise
    except (ImportError, ValueError) as error:  # a protocol without its package, or none at all; both say what is known
        raise MoelineError(
            f"The landing zone {url} cannot be opened: {error}. Install the fsspec package of that store (s3fs for s3, gcsfs for gs)."
        ) from error
    except Exception as error:  # a store's own library raises anything
        raise MoelineError(f"The landing zone {url} could not be read: {type(error).__name__}: {str(error)[:300]}.") from error


def _sources(store: Any, root: str, url: str) -> list[str]:
    """Names of the zone's folders. A store with buckets knows no empty folder: where the zone is not found nothing landed, if its bucket is there."""
    found = _folders(store, root)
    protocols = {store.protocol} if isinstance(store.protocol, str) else set(store.protocol)
    bucket = root.split("/", 1)[0]
    if not found and protocols & _WITH_BUCKETS and not store.exists(bucket):
        raise MoelineError(f"The landing zone {url} could not be read: there is no bucket {bucket!r}, or these keys may not see it.")
    return found


def _folders(store: Any, at: str) -> list[str]:
    """Names of the folders right under ``at``; none where it does not exist."""
    try:
        listed = store.ls(at, detail=True)
    except FileNotFoundError:
        return []
    inside = [entry["name"].rstrip("/") for entry in listed if entry["type"] == "directory"]
    return sorted({name.rsplit("/", 1)[-1] for name in inside if name.startswith(f"{at}/") and _is_whole(name)})


def _remote_files(store: Any, root: str, url: str, source: str, interval: str) -> Iterator[LandedFile]:
    folder = f"{root}/{source}/{interval}"
    try:
        found = store.find(folder, detail=True)
    except FileNotFoundError:
        return
    for path, about in sorted(found.items()):
        relative = path.removeprefix(f"{root}/")
        inside = path.startswith(f"{folder}/") and ".." not in relative.split("/")  # a listing may name anything
        if inside and _is_whole(path) and about.get("type", "file") == "file":
            yield LandedFile(f"{url.rstrip('/')}/{relative}", source, relative, interval, _identity(store, path, about))


def _identity(store: Any, path: str, about: dict[str, Any]) -> str:
    said = next((f"{name}:{about[name]}" for name in _CHECKSUMS if about.get(name)), None)
    if said is not None:
        return hashlib.sha256(f"{said}:{about.get('size')}".encode()).hexdigest()
    digest = hashlib.sha256()
    with store.open(path, "rb") as handle:
        while piece := handle.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
