"""`make sbom`: build/sbom.cdx.json (CycloneDX 1.6) and build/licences.md of all that a moeline environment is made of.

Ends with 1 when a licence came in that nobody reviewed. The same lock and the same environment give the same files, but for the time, and that is
SOURCE_DATE_EPOCH where it is set.
Change here: how parts are written down. Not here: what the parts are (infra/supply/parts.py), which licences are fine (infra/supply/policy.py).
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
import tomllib
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.license import License, LicenseAcknowledgement, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6

from infra.supply import policy
from infra.supply.parts import BESIDE, Part, all_parts
from jobs.contract import MoelineError
from jobs.environment import REPO

_OF_MOELINE = uuid.UUID("5ac5d1f6-5a1a-4a55-9d3b-6a3c8e2d7b10")  # any fixed one: a namespace for the serial numbers of our documents


def document(parts: Sequence[Part], version: str, at: dt.datetime) -> str:
    """The bill of materials as JSON text.

    What only tests or the installation use has the scope "excluded", an extra's parts "optional" (CycloneDX 1.6, component.scope). A pin has the sha256
    of every file published under it, of which an installation takes one.
    """
    root = Component(name="moeline", version=version, type=ComponentType.APPLICATION, bom_ref="moeline")
    serial = uuid.uuid5(_OF_MOELINE, repr((version, parts)))
    # The library adds no tool of its own accord that would name a machine; the time is given.
    bom = Bom(serial_number=serial, metadata=BomMetaData(component=root, timestamp=at))
    for part in parts:
        bom.components.add(_component(part))
    refs = {component.bom_ref.value: component.bom_ref for component in bom.components}
    by_name = {part.name: refs[_ref(part)] for part in reversed(parts)}  # of two versions of a name the one in requirements.lock, which comes first
    for part in parts:
        bom.dependencies.add(Dependency(refs[_ref(part)], dependencies=[Dependency(by_name[name]) for name in part.needs]))
    asked = {name for part in parts for name in part.needs}
    tops = [Dependency(refs[_ref(part)]) for part in parts if part.root or part.use in BESIDE or part.name not in asked]
    bom.dependencies.add(Dependency(root.bom_ref, dependencies=tops))
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def licence_report(parts: Sequence[Part], problems: Sequence[str]) -> str:
    """The table of licences as Markdown: what is open, kinds by number, reviewed rows with their reason, every package."""
    kinds = Counter(policy.concluded(part) or part.licence.text for part in parts)
    nested = sum(len(part.inside) for part in parts)
    lines = [
        "# Licences",
        "",
        f"{len(parts)} packages, as their own metadata says; what wheels bundle is not looked into ({nested} JARs inside them are in the bill of materials).",
        "",
    ]
    if problems:
        lines += ["## To be looked at", "", *(f"- {problem}" for problem in problems), ""]
    lines += ["## By licence", "", *_table(("licence", "packages"), sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))), ""]
    rows = [(part.name, part.licence.text, row.means, row.reason) for part in parts if (row := policy.REVIEWED.get(part.name))]
    lines += ["## Reviewed by name", "", *_table(("package", "states", "means", "why it may stay, what it asks"), sorted(rows)), ""]
    every = [(p.name, p.version, p.use, policy.concluded(p) or p.licence.text, "reviewed" if policy.concluded(p) else p.licence.source) for p in parts]
    return "\n".join([*lines, "## Every package", "", *_table(("package", "version", "use", "licence", "read from"), sorted(every))]) + "\n"


def _component(part: Part) -> Component:
    scope = {"runtime": ComponentScope.REQUIRED}.get(part.use, ComponentScope.OPTIONAL if part.use.startswith("extra ") else ComponentScope.EXCLUDED)
    return Component(
        name=part.purl.name,
        group=part.purl.namespace,
        version=part.version or None,
        type=ComponentType.LIBRARY,
        bom_ref=_ref(part),
        scope=scope,
        purl=part.purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in part.sha256],
        licenses=_licences(part),
        properties=[Property(name="moeline:use", value=part.use), Property(name="moeline:licence:read-from", value=part.licence.source)],
        components=[_inside(part, jar) for jar in part.inside],
    )


def _inside(part: Part, jar: Part) -> Component:
    return Component(
        name=jar.purl.name,
        group=jar.purl.namespace,
        version=jar.version or None,
        type=ComponentType.LIBRARY,
        bom_ref=f"{_ref(part)}#{jar.name}@{jar.version}-{jar.sha256[0][:12]}",
        purl=jar.purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in jar.sha256],
    )


def _licences(part: Part) -> list[License]:
    means = policy.concluded(part)
    acknowledgement = LicenseAcknowledgement.CONCLUDED if means or part.licence.source == "licence file" else LicenseAcknowledgement.DECLARED
    text = means or part.licence.text
    if "LicenseRef-" in text:
        # On no list, so the factory would take the whole for a name; SPDX and CycloneDX want it as an expression.
        return [LicenseExpression(text, acknowledgement=acknowledgement)]
    return [LicenseFactory().make_from_string(text, license_acknowledgement=acknowledgement)]


def _ref(part: Part) -> str:
    return part.purl.to_string()


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, tuple("---" for _ in head), *rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def _now() -> dt.datetime:
    """The time of the document: SOURCE_DATE_EPOCH, which reproducible builds set (reproducible-builds.org), or the clock."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return dt.datetime.fromtimestamp(int(epoch), dt.UTC) if epoch else dt.datetime.now(dt.UTC).replace(microsecond=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes both files; 0 when every licence is reviewed, 1 when not, 2 when a lock file cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m infra.supply.sbom", description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPO / "build")
    out = parser.parse_args(arguments).out
    try:
        parts = all_parts()
    except MoelineError as error:
        print(error, file=sys.stderr)
        return 2
    problems = policy.breaches(parts)
    out.mkdir(parents=True, exist_ok=True)
    (out / "sbom.cdx.json").write_text(document(parts, _version(), _now()))
    (out / "licences.md").write_text(licence_report(parts, problems))
    uses = ", ".join(f"{number} {use}" for use, number in Counter(part.use for part in parts).items())
    print(f"{len(parts)} packages ({uses}) and {sum(len(part.inside) for part in parts)} JARs inside them: {out / 'sbom.cdx.json'}, {out / 'licences.md'}")
    unread = [part.name for part in parts if part.licence.source == "not installed"]
    if unread:
        print(f"Not installed here, licence not read: {', '.join(unread)}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _version() -> str:
    return str(tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"])


if __name__ == "__main__":
    sys.exit(main())
