"""OSV advisories: read from a downloaded database, matched against exact versions.

A database is whatever the export of osv.dev unpacks or is: a `.json` record, a `.zip` of them, or a folder of both. It came from elsewhere, so sizes and
numbers are bounded and nothing is unpacked to disk. The matching is the evaluation algorithm of the OSV schema (ossf.github.io/osv-schema, "Evaluation").
Change here: how records are read and matched. Not here: what they are matched against and how it is told (infra/supply/audit.py).
"""

from __future__ import annotations

import json
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from jobs.contract import MoelineError

# Records are a few kilobytes each, and an ecosystem has some ten or hundred thousands: far above that it is no such database.
MAX_RECORD = 16 * 2**20
MAX_RECORDS = 1_000_000
MAX_TOTAL = 8 * 2**30
PYPI, MAVEN = "PyPI", "Maven"


@dataclass(frozen=True)
class Match:
    """A record that concerns one version. ``certain``: affected; else its versions could not be compared, and a person must look."""

    id: str
    aliases: tuple[str, ...]
    summary: str
    fixed: tuple[str, ...]
    certain: bool = True


class Budget:
    """What may still be read of one database: a small archive can unpack to any size."""

    def __init__(self, record: int = MAX_RECORD, records: int = MAX_RECORDS, total: int = MAX_TOTAL) -> None:
        self.record, self.records, self.total = record, records, total

    def read(self, file: IO[bytes], name: str) -> bytes:
        """Raises MoelineError past a limit; what an archive says of its sizes is not believed."""
        data = file.read(self.record + 1)
        self.records -= 1
        self.total -= len(data)
        if len(data) > self.record or self.records < 0 or self.total < 0:
            limit = f"a record of more than {self.record} bytes" if len(data) > self.record else "more than a vulnerability database can hold"
            raise MoelineError(f"{name}: {limit}. Nothing was checked. Is this the export of osv.dev?")
        return data


def records(database: Path, budget: Budget | None = None) -> Iterator[dict[str, Any]]:
    """Every record of a database, one at a time.

    Raises MoelineError when there is none at ``database``, when a record is not JSON with an id, and past the limits.
    """
    budget = budget or Budget()
    if database.is_dir():
        files = sorted(path for path in database.rglob("*") if path.suffix in (".json", ".zip"))
        if not files:
            raise MoelineError(f"{database} holds no .json and no .zip file. Download the export of osv.dev for PyPI (all.zip) and name it in OSV_DATABASE.")
    elif database.exists():
        files = [database]
    else:
        raise MoelineError(f"There is no OSV database at {database}. Download the export of osv.dev for PyPI (all.zip) and name it in OSV_DATABASE.")
    for path in files:
        if not stat.S_ISREG(path.stat().st_mode):
            raise MoelineError(f"{path} is not a plain file. Nothing was checked.")
        if path.suffix == ".json":
            with path.open("rb") as file:
                yield _record(budget.read(file, str(path)), str(path))
        else:
            yield from _zipped(path, budget)


def applies(record: Mapping[str, Any], ecosystem: str, name: str, version: str) -> Match | None:
    """Whether a record affects ``name`` at ``version``; None when it does not, or was withdrawn.

    PyPI versions are compared by PEP 440. Maven's order is not implemented: there only the enumerated versions decide, and ranges without them are not certain.
    """
    if record.get("withdrawn"):
        return None
    verdicts, fixed = [], []
    for affected in _mappings(record.get("affected")):
        package = affected.get("package")
        if not isinstance(package, Mapping) or not _same(package, ecosystem, name):
            continue
        verdicts.append(_affected(affected, ecosystem, version))
        fixed += [event["fixed"] for range_ in _comparable(affected) for event in _mappings(range_.get("events")) if "fixed" in event]
    if True not in verdicts and None not in verdicts:
        return None
    aliases = tuple(_plain(alias) for alias in record.get("aliases") or ())
    summary = str(record.get("summary") or record.get("details") or "").strip().split("\n")[0][:200]
    return Match(_plain(record["id"]), aliases, _plain(summary), tuple(dict.fromkeys(_plain(one) for one in fixed)), True in verdicts)


def packages(record: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Ecosystem and name of every package that a record is about, names as ``normal`` writes them."""
    found = [affected.get("package") for affected in _mappings(record.get("affected"))]
    return {(_ecosystem(one), normal(_ecosystem(one), str(one.get("name")))) for one in found if isinstance(one, Mapping)}


def normal(ecosystem: str, name: str) -> str:
    """The one spelling of a package's name: PEP 503 for PyPI."""
    return canonicalize_name(name) if ecosystem == PYPI else name


def _affected(affected: Mapping[str, Any], ecosystem: str, version: str) -> bool | None:
    """True or False where that is certain, else None."""
    listed = [str(one) for one in affected.get("versions") or ()]
    ranges = _comparable(affected)
    if not listed and not ranges:
        return None  # at most commits, and no release can be compared with those
    if ecosystem != PYPI:
        return version in listed if listed else None
    found = _version(version)
    if found is None:
        return version in listed or (None if ranges else False)
    # A local version is a rebuild of the public one: what is wrong with 1.0 is wrong with 1.0+cpu.
    public = Version(found.public)
    if any((_version(one) or one) in (found, public, version) for one in listed):
        return True
    verdicts = [_in_range(public, _mappings(range_.get("events"))) for range_ in ranges]
    return True if True in verdicts else None if None in verdicts else False


def _in_range(version: Version, events: Sequence[Mapping[str, Any]]) -> bool | None:
    """The evaluation of the OSV schema; None when a bound is no version, or when nothing says where it begins, which the schema does not allow."""
    bounds: list[tuple[Version | None, int, str]] = []
    limits: list[Version] = []
    for event in events:
        for kind, text in event.items():
            if kind not in ("introduced", "fixed", "last_affected", "limit") or (kind, text) == ("limit", "*"):
                continue
            # "0" is before every version, pre-releases of 0 as well.
            bound = None if (kind, text) == ("introduced", "0") else _version(str(text))
            if bound is None and (kind, text) != ("introduced", "0"):
                return None
            if kind == "limit" and bound is not None:
                limits.append(bound)
            elif kind != "limit":
                # At one version the end of a stretch comes before the start of the next, so that in doubt it is affected.
                bounds.append((bound, kind == "introduced", kind))
    if limits and not any(version < limit for limit in limits):
        return False
    if not any(kind == "introduced" for _, _, kind in bounds):
        return None
    affected = False
    for bound, _, kind in sorted(bounds, key=lambda one: (one[0] is not None, one[0] or version, one[1])):
        if bound is None or (version > bound if kind == "last_affected" else version >= bound):
            affected = kind == "introduced"
    return affected


def _comparable(affected: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ranges over versions; those over commits (GIT) say nothing about a release."""
    return [range_ for range_ in _mappings(affected.get("ranges")) if range_.get("type") != "GIT"]


def _same(package: Mapping[str, Any], ecosystem: str, name: str) -> bool:
    return _ecosystem(package) == ecosystem and normal(ecosystem, str(package.get("name"))) == normal(ecosystem, name)


def _ecosystem(package: Mapping[str, Any]) -> str:
    return str(package.get("ecosystem") or "").partition(":")[0]  # after the colon comes a distribution's release or a repository


def _plain(text: Any) -> str:
    """For a terminal: a record is text from elsewhere."""
    return "".join(one if one.isprintable() else " " for one in str(text))


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _zipped(path: Path, budget: Budget) -> Iterator[dict[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".json"):
                    with archive.open(entry) as file:
                        yield _record(budget.read(file, f"{path}: {entry.filename}"), f"{path}: {entry.filename}")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        # RuntimeError: zipfile's word for an encrypted entry.
        raise MoelineError(f"{path} cannot be read as a zip file ({error}). Nothing was checked.") from None


def _record(data: bytes, name: str) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MoelineError(f"{name} is not JSON ({str(error)[:100]}). Nothing was checked.") from None
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise MoelineError(f"{name} is no OSV record: it has no id. Nothing was checked.")
    lists = [(record, key) for key in ("affected", "aliases")]
    lists += [(one, key) for one in _mappings(record.get("affected")) for key in ("versions", "ranges")]
    wrong = [key for where, key in lists if not isinstance(where.get(key), list | None)]
    if wrong:
        # Read as nothing, it would make a version look clean.
        raise MoelineError(f"{name} is no OSV record: {', '.join(wrong)} must be a list. Nothing was checked.")
    return record
