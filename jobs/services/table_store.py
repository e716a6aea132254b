"""Where tables lie: folders of the warehouse, or prefixes of a bucket that is reached over S3's protocol (``[paths] tables`` of infra/env/*.toml).

Only the Delta tables move into a store: their data files and logs. What processes of a platform tell each other by renames and file locks (results, locks,
staged and refused rows) stays in the warehouse folder, which they share. A commit in a store is a conditional put (``If-None-Match: *``): of two writers of
one version, one is told that it lost, as with a rename. Keys and endpoint come from fsspec's own configuration (``FSSPEC_S3_KEY``, ``FSSPEC_S3_SECRET``,
``FSSPEC_S3_ENDPOINT_URL``), as for a landing zone; without it each library takes them where the AWS SDKs do (variables, web identity, instance roles).
Change here: how a store is addressed by delta-rs, Arrow, Spark and paths. Not here: rows and commits (delta.py), which files a version needs (table_files.py).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import Environment

_LOG = "_delta_log"
_REGION = "us-east-1"  # what S3-compatible servers of one's own call theirs, unless told otherwise


@dataclass(frozen=True)
class Held:
    """A file below a table's folder: its name from there, where it is, bytes, and when it was last written (Unix seconds)."""

    name: str
    path: Path
    size: int
    mtime: float


def root(env: Environment, name: str) -> Path:
    """A table's folder: a Path, or for a store a UPath, which has the same methods but is no file of this machine."""
    return env.warehouse / name if env.tables is None else at(f"{env.tables}/{name}")


def address(env: Environment, name: str) -> str:
    """A table's folder as delta-rs takes it, which names its files below it."""
    return str(env.warehouse / name) if env.tables is None else f"{env.tables}/{name}"


def spark_address(env: Environment, name: str) -> str:
    """A table's folder as Spark takes it."""
    return address(env, name).replace("s3://", "s3a://", 1) if env.tables is not None else address(env, name)


def path(env: Environment, file: str) -> Path:
    """A file of a table, of its address."""
    return Path(file) if env.tables is None else at(file)


def roots(env: Environment) -> list[Path]:
    """Folders of all tables there are, by name."""
    if env.tables is None:
        return folders(env.warehouse)
    with asking(env.tables):
        store = at(env.tables)
        found = [store / name for name in _names(store.fs, store.path) if (store / name / _LOG).is_dir()]
    return sorted(place for place in found if not place.name.startswith(("_", ".")))


def folders(warehouse: Path) -> list[Path]:
    """Folders of tables in a folder of this machine, by name."""
    return sorted(place.parent for place in warehouse.glob(f"*/{_LOG}") if not place.parent.name.startswith(("_", ".")))


def files(place: Path) -> list[Held]:
    """Every file below a folder of a table, by name; [] where there is no such folder. In a store one listing, not a question per file."""
    if isinstance(place, Path):
        return [Held(str(file.relative_to(place)), file, *_told(file)) for file in sorted(place.rglob("*")) if file.is_file()]
    store, top = place.fs, place.path.rstrip("/")
    with asking(str(place)):
        try:
            found = store.find(top, detail=True)
        except FileNotFoundError:
            return []
    return [
        Held(at.removeprefix(f"{top}/"), place / at.removeprefix(f"{top}/"), about["size"], about["LastModified"].timestamp())
        for at, about in sorted(found.items())
        if at.startswith(f"{top}/")
    ]


def is_there(place: Path) -> bool:
    """Whether a table's folder is there; a store knows only folders with files."""
    if isinstance(place, Path):
        return place.is_dir()
    with asking(str(place)):
        return bool(place.is_dir())


def put(file: Path, target: Path) -> None:
    """Move a file of this machine to a table's folder, where readers see all of it or nothing."""
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        return
    with asking(str(target)):
        target.fs.put_file(str(file), target.path)  # an object is there when its upload has ended
    file.unlink()


def for_arrow(env: Environment, found: list[str]) -> tuple[list[str], Any]:
    """(files as Arrow takes them, file system to read them with; None: this machine's)."""
    if env.tables is None:
        return found, None
    store = at(env.tables).fs  # type: ignore[attr-defined]
    return [file.removeprefix("s3://") for file in found], store


def delta_options(env: Environment) -> dict[str, str] | None:
    """``storage_options`` for delta-rs; None for folders."""
    if env.tables is None:
        return None
    given = _settings()
    found = {"AWS_REGION": given["region"], "AWS_CONDITIONAL_PUT": "etag"}
    found |= {
        name: given[key] for name, key in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token"}.items() if given[key]
    }
    if given["endpoint_url"]:
        found["AWS_ENDPOINT_URL"] = given["endpoint_url"]
        found["AWS_ALLOW_HTTP"] = str(given["endpoint_url"].startswith("http://")).lower()
    return found


def hadoop_settings(env: Environment) -> dict[str, str]:
    """Spark's settings for s3a://. No key is among them: a setting can be read by whoever has a session."""
    if env.tables is None:
        return {}
    given = _settings()
    found = {
        "fs.s3a.aws.credentials.provider": "software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider",
        "fs.s3a.endpoint.region": given["region"],
        "fs.s3a.path.style.access": str(bool(given["endpoint_url"])).lower(),
    }
    found |= {"fs.s3a.endpoint": given["endpoint_url"]} if given["endpoint_url"] else {}
    return {f"spark.hadoop.{key}": value for key, value in found.items()}


def jvm_variables(env: Environment) -> dict[str, str]:
    """Variables of a JVM that reads tables in a store: the keys that Python takes from fsspec's configuration."""
    given = _settings() if env.tables is not None else {}
    names = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "token"}
    return {name: given[key] for name, key in names.items() if given.get(key)}


def _settings() -> dict[str, str]:
    """What fsspec is told of S3: key, secret, token, endpoint_url, region; "" for what it is not told."""
    import fsspec

    given: dict[str, Any] = dict(fsspec.config.conf.get("s3", {}))
    client = given.get("client_kwargs") or {}
    region = client.get("region_name") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _REGION
    return {**{key: str(given.get(key) or "") for key in ("key", "secret", "token", "endpoint_url")}, "region": region}


def at(url: str) -> Any:
    """A place in a store, as a path."""
    import fsspec
    from upath import UPath

    told = {**(fsspec.config.conf.get("s3", {}).get("client_kwargs") or {}), "region_name": _settings()["region"]}  # s3fs reads no AWS_REGION
    return UPath(url, client_kwargs=told, use_listings_cache=False)  # other processes write there


def _names(store: Any, at: str) -> list[str]:
    try:
        return [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in store.ls(at, detail=True) if entry["type"] == "directory"]
    except FileNotFoundError:
        return []


def _told(file: Path) -> tuple[int, float]:
    with contextlib.suppress(FileNotFoundError):
        about = file.lstat()
        return about.st_size, about.st_mtime
    return 0, 0.0


@contextlib.contextmanager
def asking(where: str | None, kinds: type[Exception] = Exception) -> Iterator[None]:
    """Errors of a store's own library (``kinds``) as MoelineError, told to a person; nothing for folders (None), and a file that is not there stays that."""
    try:
        yield
    except (MoelineError, FileNotFoundError):
        raise
    except kinds as error:
        if where is None:
            raise
        said = " ".join(re.sub(r"\x1b\[\d+m|\u21b3", "", str(error)).split())
        raise MoelineError(
            f"The store of the tables, {where}, did not do what was asked: {type(error).__name__}: {said[:400]}. Is it up, does the bucket exist, and may "
            "these keys (FSSPEC_S3_KEY, FSSPEC_S3_SECRET, FSSPEC_S3_ENDPOINT_URL) read and write it?"
        ) from error
