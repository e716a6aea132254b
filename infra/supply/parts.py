"""Everything a moeline environment is made of: the pins of the lock files, the Delta JARs, and the JARs inside installed wheels.

Change here: what counts as a part. Not here: how it is written down (infra/supply/sbom.py), which licences are fine (infra/supply/policy.py).
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from xml.etree import ElementTree

from packageurl import PackageURL

from infra.supply import locks
from infra.supply.licences import NOT_INSTALLED, UNKNOWN, Installed, Licence
from jobs.contract import MoelineError
from jobs.environment import REPO
from jobs.services import jars

TOOL_USE, ORACLE_USE = "installs the environment", "oracle of tests"
BESIDE = (TOOL_USE, ORACLE_USE)  # in folders of their own, not in .venv
# A JAR does not say its licence; the POMs of these groups do, read when the versions in infra/local/jars.xml were chosen.
_APACHE, _AMAZON = Licence("Apache-2.0", "POM"), ("software.amazon.awssdk", "software.amazon.eventstream", "software.amazon.s3.analyticsaccelerator")
_JAR_LICENCES = dict.fromkeys(("io.delta", "io.unitycatalog", "org.apache.hadoop", *_AMAZON), _APACHE) | {"org.reactivestreams": Licence("MIT-0", "POM")}
_MAX_POM = 64 * 1024


@dataclass(frozen=True)
class Part:
    """One component. ``needs``: names of other parts of the same lock; ``inside``: JARs that came in its wheel; ``root``: pyproject.toml asks itself.

    ``sha256``: of every file published as this version, of which an installation takes one.
    """

    name: str
    version: str
    purl: PackageURL
    sha256: tuple[str, ...]
    licence: Licence
    use: str
    needs: tuple[str, ...] = ()
    inside: tuple[Part, ...] = ()
    root: bool = False


def all_parts(repo: Path = REPO, installed: Installed | None = None) -> list[Part]:
    """Every part, those of requirements.lock first. Raises MoelineError for a lock file or a list of JARs that cannot be read whole."""
    return [
        *main_parts(repo, installed or Installed()),
        *_beside(repo / locks.TOOL, TOOL_USE, Installed(sorted((repo / ".uv" / "lib").glob("python*/site-packages")))),
        *_beside(repo / locks.ORACLE, ORACLE_USE, Installed(sorted((repo / ".oracles").glob("*")))),
        *delta_jars(),
    ]


def main_parts(repo: Path, installed: Installed) -> list[Part]:
    """The pins of requirements.lock with what uses them, what they ask for and the JARs in them."""
    pins = locks.read_lock(repo / locks.MAIN)
    used = locks.uses(pins, repo / "pyproject.toml")
    stray = [pin.name for pin in pins if pin.name not in used]
    if stray:
        raise MoelineError(f"{locks.MAIN} pins {', '.join(stray)}, which nothing in pyproject.toml asks for. Run: make lock")
    needs: dict[str, list[str]] = {}
    for pin in pins:
        for asker in pin.via:
            needs.setdefault(asker, []).append(pin.name)
    return [_part(pin, installed, used[pin.name], tuple(needs.get(pin.name, ()))) for pin in pins]


def delta_jars(listed: Mapping[str, str] | None = None, modules: Path = REPO / "infra" / "local" / "jars.xml") -> list[Part]:
    """The JARs that jobs/services/jars.py brings, by the coordinates of jars.xml and the sha256 of jars.sha256.

    Raises MoelineError when the two do not name the same JARs.
    """
    digests = dict(jars.expected() if listed is None else listed)
    found = []
    for module in ElementTree.parse(modules).iter("dependency"):  # noqa: S314 - our own file
        group, name, version = (module.attrib[key] for key in ("org", "name", "rev"))
        digest = digests.pop(f"{group}_{name}-{version}.jar", None)
        if digest is None:
            raise MoelineError(f"{modules} names {group}:{name}:{version}, which has no sha256. Run: .venv/bin/python -m jobs.services.jars record")
        licence = _JAR_LICENCES.get(group, Licence(UNKNOWN, "nothing", spdx=False))
        found.append(Part(f"{group}:{name}", version, PackageURL("maven", group, name, version), (digest,), licence, "runtime"))
    if digests:
        raise MoelineError(f"{', '.join(sorted(digests))} has a sha256 and is not in {modules}. Run: .venv/bin/python -m jobs.services.jars record")
    return found


def jars_inside(one: Distribution) -> tuple[Part, ...]:
    """The JARs in an installed distribution (pyspark brings hundreds), hashed; by Maven coordinates where the JAR has exactly one set of them."""
    if ".jar," not in (one.read_text("RECORD") or ""):
        return ()  # nearly all; reading their lists of files as paths takes most of the time
    found = []
    for listed in sorted(path for path in one.files or [] if path.suffix == ".jar"):
        path = Path(str(one.locate_file(listed)))
        if not path.is_file():
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        coordinates = _coordinates(path)
        if coordinates:
            group, name, version = coordinates
            purl = PackageURL("maven", group, name, version)
            found.append(Part(f"{group}:{name}", version, purl, (digest,), NOT_INSTALLED, "runtime"))
        else:
            # Several POMs are a JAR of JARs, none an older build: then the file's name is all there is to go by.
            name, version = _by_name(path.stem)
            found.append(Part(path.name, version, PackageURL("generic", None, name, version or None), (digest,), NOT_INSTALLED, "runtime"))
    return tuple(found)


def _beside(lock: Path, use: str, installed: Installed) -> Iterable[Part]:
    return [_part(pin, installed, use, ()) for pin in locks.read_lock(lock)]


def _part(pin: locks.Pin, installed: Installed, use: str, needs: tuple[str, ...]) -> Part:
    try:
        inside = jars_inside(installed.find(pin.name, pin.version))
    except PackageNotFoundError:
        inside = ()
    purl = PackageURL("pypi", None, pin.name, pin.version)
    return Part(pin.name, pin.version, purl, pin.sha256, installed.licence(pin.name, pin.version), use, needs, inside, pin.root)


def _coordinates(path: Path) -> tuple[str, str, str] | None:
    try:
        with zipfile.ZipFile(path) as jar:
            poms = [entry for entry in jar.infolist() if entry.filename.startswith("META-INF/maven/") and entry.filename.endswith("/pom.properties")]
            if len(poms) != 1:
                return None
            with jar.open(poms[0]) as file:
                text = file.read(_MAX_POM).decode(errors="replace")
    except (OSError, zipfile.BadZipFile):
        return None
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    coordinates = tuple(values.get(key, "").strip() for key in ("groupId", "artifactId", "version"))
    return coordinates if all(coordinates) else None


def _by_name(stem: str) -> tuple[str, str]:
    split = re.fullmatch(r"(?P<name>.+?)-(?P<version>\d.*)", stem)
    return (split["name"], split["version"]) if split else (stem, "")
