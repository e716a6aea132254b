"""`make audit OSV_DATABASE=all.zip`: the locked versions against known vulnerabilities, without a network.

OSV_DATABASE names a download of osv.dev: the export for PyPI, and that for Maven beside it (a folder with both) to check the JARs as well. Ends with 0 when
nothing known affects a pinned version, 1 when something does or cannot be told, 2 when there is nothing to check against.
Change here: what is checked, how findings are told. Not here: how a record is matched (infra/supply/osv.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.supply import osv
from infra.supply.parts import Part, all_parts
from jobs.contract import MoelineError


@dataclass
class Audit:
    """What a database said: ``found`` by part, ``records`` by ecosystem, ``newest``: when its latest record was modified."""

    found: list[tuple[Part, osv.Match]] = field(default_factory=list)
    records: Counter[str] = field(default_factory=Counter)
    newest: str = ""


def audit(parts: Iterable[Part], records: Iterable[dict[str, Any]]) -> Audit:
    """Every record against every part and every JAR inside one, read once and not kept.

    Raises MoelineError when no record is about PyPI: with such a database everything would look clean.
    """
    wanted: dict[tuple[str, str], list[Part]] = {}
    for part in _with_jars(parts):
        key = _key(part)
        if key and part not in wanted.setdefault(key, []):
            wanted[key].append(part)
    result = Audit()
    for record in records:
        about = osv.packages(record)
        result.records.update({ecosystem for ecosystem, _ in about})
        result.newest = max(result.newest, str(record.get("modified") or ""))
        for key in sorted(about & wanted.keys()):
            matches = [(part, osv.applies(record, *key, part.version)) for part in wanted[key]]
            result.found += [(part, match) for part, match in matches if match]
    if not result.records[osv.PYPI]:
        raise MoelineError("The database holds no record about PyPI, so nothing was checked. Download the export of osv.dev for PyPI (all.zip).")
    result.found = _merged(result.found)
    return result


def told(result: Audit, parts: Sequence[Part]) -> list[str]:
    """The lines of the report: findings, then what was checked and what was not."""
    lines = []
    for part, match in result.found:
        what = "is affected by" if match.certain else "may be affected by (its versions cannot be compared; look yourself)"
        fixed = f"; fixed in {', '.join(match.fixed)}" if match.fixed else "; no fixed version is known"
        also = f" ({', '.join(match.aliases)})" if match.aliases else ""
        lines.append(f"{part.name} {part.version} ({part.use}) {what} {match.id}{also}: {match.summary}{fixed}")
    everything = list(_with_jars(parts))
    checked = Counter(key[0] for part in everything if (key := _key(part)))
    nameless = sum(1 for part in everything if not _key(part))
    lines.append(
        f"{checked[osv.PYPI]} pinned packages against {result.records[osv.PYPI]} records about PyPI, the newest of {result.newest[:10] or 'an unknown day'}."
    )
    if result.records[osv.MAVEN]:
        lines.append(f"{checked[osv.MAVEN]} JARs against {result.records[osv.MAVEN]} records about Maven.")
    else:
        lines.append(f"{checked[osv.MAVEN]} JARs were not checked: the database holds no record about Maven.")
    if nameless:
        lines.append(f"{nameless} JARs inside wheels do not say their coordinates and cannot be checked.")
    return lines


def _with_jars(parts: Iterable[Part]) -> Iterable[Part]:
    for part in parts:
        yield part
        yield from part.inside


def _key(part: Part) -> tuple[str, str] | None:
    ecosystem = {"pypi": osv.PYPI, "maven": osv.MAVEN}.get(part.purl.type)
    return (ecosystem, osv.normal(ecosystem, part.name)) if ecosystem else None


def _merged(found: Sequence[tuple[Part, osv.Match]]) -> list[tuple[Part, osv.Match]]:
    """One line a vulnerability: databases repeat each other's records under names that are aliases of one another. The certain one stays."""
    kept: list[tuple[Part, osv.Match]] = []
    for part, match in sorted(found, key=lambda one: (one[0].name, one[0].version, not one[1].certain, one[1].id)):
        names = {match.id, *match.aliases}
        if not any(part == other and names & {known.id, *known.aliases} for other, known in kept):
            kept.append((part, match))
    return kept


def main(arguments: Sequence[str] | None = None) -> int:
    """0: nothing known; 1: something is affected or may be; 2: nothing was checked, and why is on the screen."""
    parser = argparse.ArgumentParser(prog="python -m infra.supply.audit", description=str(__doc__).splitlines()[0])
    parser.add_argument("--database", default=os.environ.get("OSV_DATABASE"), help="a folder, a zip or a JSON file of OSV records (default: OSV_DATABASE)")
    database = parser.parse_args(arguments).database
    if not database:
        print("No vulnerability database: nothing was checked. Download the export of osv.dev for PyPI (all.zip) on a machine with a network, then run:")
        print("  make audit OSV_DATABASE=path/to/all.zip")
        return 2
    try:
        parts = all_parts()
        result = audit(parts, osv.records(Path(database)))
    except (MoelineError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(told(result, parts)))
    return 1 if result.found else 0


if __name__ == "__main__":
    sys.exit(main())
