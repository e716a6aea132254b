"""What the lock files pin: names, versions, sha256 and who asked, read strictly.

A line that is not a hashed, exact pin from an index (an address, a repository, an option, a range, a marker) is refused: what cannot be read
here would be missing in the bill of materials and in the audit without anyone noticing.
Change here: which lock files there are, how they are read. Not here: what is in them (pyproject.toml, then `make lock`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from jobs.contract import MoelineError
from jobs.environment import REPO

MAIN = "requirements.lock"
TOOL = "infra/local/uv.lock"
ORACLE = "tests/oracles/transformers4.lock"
LOCKS = (MAIN, TOOL, ORACLE)
TEST_EXTRA = "test"
_PIN = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9.+!_-]+) \\")
_HASH = re.compile(r" {4}--hash=sha256:(?P<digest>[0-9a-f]{64})(?P<more> \\)?")
_VIA = re.compile(r" {4}# (?:via|  )(?: ?(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?P<root> \(pyproject\.toml\))?)?")


@dataclass(frozen=True)
class Pin:
    """One pinned distribution. ``via``: the pins that ask for it; ``root``: pyproject.toml asks itself."""

    name: str
    version: str
    sha256: tuple[str, ...]
    via: tuple[str, ...] = ()
    root: bool = False


def read_lock(path: Path) -> list[Pin]:
    """The pins of a lock file in its order.

    Raises MoelineError with file and line for whatever is not `name==version` with sha256 hashes, for a name that comes twice and for an empty file.
    """
    pins: list[Pin] = []
    lines = enumerate(path.read_text().splitlines(), 1)
    for number, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        if via := _VIA.fullmatch(line):
            if not pins:
                raise _refused(path, number, line)
            pins[-1] = _asked_by(pins[-1], via)
            continue
        pin = _PIN.fullmatch(line)
        if not pin or not _is_exact(pin["version"]):
            raise _refused(path, number, line)
        digests = []
        for inner, follows in lines:
            digest = _HASH.fullmatch(follows)
            if not digest:
                raise _refused(path, inner, follows)
            digests.append(digest["digest"])
            if not digest["more"]:
                break
        if not digests:
            raise _refused(path, number, line)
        pins.append(Pin(canonicalize_name(pin["name"]), pin["version"], tuple(digests)))
    twice = {pin.name for pin in pins if [other.name for other in pins].count(pin.name) > 1}
    if twice or not pins:
        raise MoelineError(f"{path}: {'nothing is pinned' if not pins else ', '.join(sorted(twice)) + ' pinned twice'}. Run: make lock")
    return pins


def uses(pins: Iterable[Pin], project: Path = REPO / "pyproject.toml") -> dict[str, str]:
    """Name to "runtime", "extra NAME" or "tests": the first of these from which pyproject.toml's own requirements reach the pin.

    The lock says which distribution asked, not which of its extras: where only tests ask for an extra of something that also runs, its parts count as runtime.
    """
    needs: dict[str, set[str]] = {}
    for pin in pins:
        for asker in pin.via:
            needs.setdefault(asker, set()).add(pin.name)
    found: dict[str, str] = {}
    for use, roots in _roots(project):
        waiting = list(roots)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = use
                waiting += needs.get(name, ())
    return found


def unlocked(pins: Iterable[Pin], project: Path = REPO / "pyproject.toml") -> list[str]:
    """Requirements of pyproject.toml, extras too, that no pin meets: the lock is older than the project."""
    pinned = {pin.name: pin.version for pin in pins}
    missing = []
    for text in _requirements(project):
        wanted = Requirement(text)
        version = pinned.get(canonicalize_name(wanted.name))
        if wanted.url or version is None or not wanted.specifier.contains(version, prereleases=True):
            missing.append(text)
    return missing


def _roots(project: Path) -> list[tuple[str, set[str]]]:
    table = tomllib.loads(project.read_text())["project"]
    extras = table.get("optional-dependencies", {})
    groups = [("runtime", table["dependencies"])]
    groups += [(f"extra {name}", extras[name]) for name in sorted(extras) if name != TEST_EXTRA]
    groups.append(("tests", extras.get(TEST_EXTRA, [])))
    return [(use, {canonicalize_name(Requirement(text).name) for text in texts}) for use, texts in groups]


def _requirements(project: Path) -> list[str]:
    table = tomllib.loads(project.read_text())["project"]
    return [*table["dependencies"], *(text for texts in table.get("optional-dependencies", {}).values() for text in texts)]


def _asked_by(pin: Pin, via: re.Match[str]) -> Pin:
    if via["root"]:
        return Pin(pin.name, pin.version, pin.sha256, pin.via, True)
    return Pin(pin.name, pin.version, pin.sha256, (*pin.via, canonicalize_name(via["name"])) if via["name"] else pin.via, pin.root)


def _is_exact(version: str) -> bool:
    try:
        Version(version)
    except InvalidVersion:
        return False
    return True


def _refused(path: Path, number: int, line: str) -> MoelineError:
    return MoelineError(f"{path}:{number}: expected `name==version` with sha256 hashes, found {line.strip()[:120]!r}. Run: make lock")
