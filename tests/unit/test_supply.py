"""Licences of the real lock are reviewed; the bill of materials is valid CycloneDX, complete and the same every time."""

from __future__ import annotations

import datetime as dt
import json
import zipfile
from dataclasses import replace
from email.message import Message
from importlib.metadata import PackageNotFoundError

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from infra.supply import locks, policy, sbom
from infra.supply.licences import NOT_INSTALLED, Installed, Licence, recognised, stated
from infra.supply.parts import ORACLE_USE, TOOL_USE, Part, all_parts, jars_inside
from jobs.environment import REPO
from jobs.services import jars

AT = dt.datetime(2026, 12, 1, tzinfo=dt.UTC)
MIT_TEXT = (
    "Permission is hereby granted, free of charge, to any person ...\n * The above copyright notice and this permission\n * notice shall be included in all"
)
BSD_TEXT = "Redistribution and use in source and binary forms, with or without modification, are permitted ..."
ENDORSE = " Neither the name of the copyright holder nor ..."


@pytest.fixture(scope="module")
def parts():
    return all_parts()


class Stated:
    """Stands for an installed distribution: its metadata and its licence file."""

    def __init__(self, folder, licence_text=None, **fields):
        self.folder, self.metadata = folder, Message()
        for key, values in fields.items():
            for value in [values] if isinstance(values, str) else values:
                self.metadata[key.replace("_", "-")] = value
        self.files = []
        if licence_text is not None:
            self.files = [folder / "x-1.dist-info" / "LICENSE.txt"]
            self.files[0].parent.mkdir(exist_ok=True)
            self.files[0].write_text(licence_text)

    def locate_file(self, path):
        return self.folder / path


def osi(*names):
    return [f"License :: OSI Approved :: {name}" for name in names]


@pytest.mark.parametrize(
    ("fields", "text", "source"),
    [
        ({"License_Expression": "MIT OR Apache-2.0", "License": "GPL"}, "MIT OR Apache-2.0", "License-Expression"),
        ({"License_Expression": "LicenseRef-NVIDIA-Proprietary"}, "LicenseRef-NVIDIA-Proprietary", "License-Expression"),
        ({"License_Expression": "MIT and whatever"}, "unknown (MIT and whatever)", "metadata"),
        ({"License": "apache-2.0", "Classifier": osi("MIT License")}, "Apache-2.0", "License"),
        ({"License": "Apache License, Version 2.0"}, "Apache-2.0", "License"),
        ({"License": "MPL-2.0 AND MIT"}, "MPL-2.0 AND MIT", "License"),
        ({"License": "UNKNOWN", "Classifier": osi("ISC License (ISCL)")}, "ISC", "classifier"),
        ({"License": "Apache", "Classifier": osi("Apache Software License")}, "Apache-2.0", "classifier"),
        ({"Classifier": osi("MIT License", "GNU General Public License v3 (GPLv3)")}, "MIT AND GPL-3.0-only", "classifier"),
        ({"Classifier": osi("MIT License", "Artistic License")}, "unknown (MIT License, Artistic License)", "metadata"),
        ({"Classifier": osi("BSD License"), "licence_text": BSD_TEXT}, "BSD-2-Clause", "licence file"),
        ({"Classifier": osi("BSD License"), "licence_text": BSD_TEXT + ENDORSE}, "BSD-3-Clause", "licence file"),
        ({"Classifier": osi("BSD License"), "License": BSD_TEXT + ENDORSE}, "BSD-3-Clause", "License"),
        ({"Classifier": osi("BSD License")}, "unknown (BSD License)", "metadata"),
        ({"Classifier": osi("GNU Library or Lesser General Public License (LGPL)"), "licence_text": MIT_TEXT}, "unknown (GNU Library", "metadata"),
        ({"Classifier": ["License :: OSI Approved"], "licence_text": MIT_TEXT}, "MIT", "licence file"),
        ({"licence_text": "All rights reserved."}, "unknown", "metadata"),
        ({"License": "Other/Proprietary", "Classifier": ["License :: Other/Proprietary License"]}, "unknown (Other/Proprietary License)", "metadata"),
        ({"License": "See the file\nand more"}, "unknown (See the file)", "metadata"),
        ({}, "unknown", "metadata"),
    ],
)
def test_a_licence_is_read_from_the_most_exact_field(tmp_path, fields, text, source):
    found = stated(Stated(tmp_path, **fields))
    assert (found.text.startswith(text), found.source) == (True, source)
    assert found.spdx is not found.text.startswith("unknown")


def test_a_licence_text_is_recognised_by_words_only_it_has():
    assert recognised(BSD_TEXT + " The names of its contributors may not be used to endorse or promote") == "BSD-3-Clause"
    assert recognised("GNU GENERAL PUBLIC LICENSE Version 3") is None
    assert recognised("x" * 5000 + MIT_TEXT) is None  # of something that is bundled


def one(text, use="runtime", name="new", source="License"):
    spdx = not text.startswith("unknown")
    return Part(name, "1", PackageURL("pypi", None, name, "1"), ("ab" * 32,), Licence(text, source, spdx), use)


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("MIT", True),
        ("MIT AND Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND (GPL-2.0-only OR BSD-3-Clause)", True),
        ("GPL-3.0-only", False),
        ("AGPL-3.0-or-later", False),
        ("MIT AND GPL-2.0-or-later WITH Classpath-exception-2.0", False),
        ("MPL-2.0", False),
        ("LicenseRef-NVIDIA-Proprietary", False),
        ("MIT OR LicenseRef-Other", True),
        ("unknown", False),
        ("unknown (MIT-like)", False),
    ],
)
def test_what_is_not_permissive_needs_a_row(text, fine):
    assert policy.breaches([one(text)], {}) == (
        [] if fine else [f"new 1 (runtime) states {text}. Do without it, or review it: a row in infra/supply/policy.py."]
    )
    row = policy.Reviewed(text, text, "reason")
    assert policy.breaches([one(text)], {"new": row}) == []


def test_a_row_holds_for_the_licence_it_was_reviewed_with_and_while_the_package_is_pinned():
    row = {"new": policy.Reviewed("MPL-2.0", "MPL-2.0", "reason")}
    assert "states AGPL-3.0-only; it was reviewed with MPL-2.0" in policy.breaches([one("AGPL-3.0-only")], row)[0]
    assert policy.breaches([one("MIT", name="other")], row) == ["new has a row in infra/supply/policy.py and is pinned no more. Delete the row."]


def test_what_is_not_installed_is_a_breach_but_for_what_lives_beside():
    absent = replace(one("unknown"), licence=NOT_INSTALLED)
    assert "is not installed here" in policy.breaches([absent], {})[0]
    assert policy.breaches([replace(absent, use=TOOL_USE), replace(absent, use=ORACLE_USE)], {}) == []


def test_every_licence_of_the_lock_is_reviewed(parts):
    assert policy.breaches(parts) == []


def test_a_new_package_with_such_a_licence_is_found(parts):
    assert len(policy.breaches([*parts, one("AGPL-3.0-only"), one("unknown", name="nameless")])) == 2


def test_only_the_pinned_version_is_asked_for_its_licence():
    pins = {pin.name: pin for pin in locks.read_lock(REPO / locks.MAIN)}
    installed = Installed()
    assert installed.licence("PyYAML", pins["pyyaml"].version).text == "MIT"
    assert installed.licence("pyyaml", "0.1") == NOT_INSTALLED
    with pytest.raises(PackageNotFoundError):
        Installed([]).find("pyyaml", pins["pyyaml"].version)


def test_the_bill_of_materials_is_valid_and_complete(parts):
    text = sbom.document(parts, "0.1.0", AT)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    components = {component["purl"]: component for component in bill["components"]}
    pinned = [pin for name in locks.LOCKS for pin in locks.read_lock(REPO / name)]
    assert len(components) == len(bill["components"]) == len(pinned) + len(jars.expected())
    for pin in pinned:
        component = components[f"pkg:pypi/{pin.name}@{pin.version.replace('+', '%2B')}"]
        assert {entry["content"] for entry in component["hashes"]} == set(pin.sha256)
        assert component["licenses"] and component["scope"] in ("required", "optional", "excluded")
    scopes = {purl.split("@")[0]: component["scope"] for purl, component in components.items()}
    assert scopes["pkg:maven/io.delta/delta-storage"] == scopes["pkg:pypi/torch"] == "required"
    assert scopes["pkg:pypi/lm-eval"] == "optional"
    assert scopes["pkg:pypi/pytest"] == scopes["pkg:pypi/uv"] == "excluded"
    assert components[f"pkg:pypi/cuda-toolkit@{next(p.version for p in parts if p.name == 'cuda-toolkit')}"]["licenses"] == [
        {"expression": "LicenseRef-NVIDIA-Proprietary", "acknowledgement": "concluded"}
    ]


def test_the_graph_is_whole_and_starts_at_moeline(parts):
    bill = json.loads(sbom.document(parts, "0.1.0", AT))
    graph = {entry["ref"]: set(entry.get("dependsOn", ())) for entry in bill["dependencies"]}
    assert bill["metadata"]["component"]["bom-ref"] == "moeline"
    reached, waiting = set(), ["moeline"]
    while waiting:
        ref = waiting.pop()
        if ref not in reached:
            reached.add(ref)
            waiting += graph[ref]
    assert reached == {"moeline"} | {component["bom-ref"] for component in bill["components"]}


def test_the_jars_inside_pyspark_are_listed_with_their_content(parts):
    pyspark = next(part for part in parts if part.name == "pyspark")
    assert len(pyspark.inside) > 200
    assert sum(jar.purl.type == "maven" for jar in pyspark.inside) > 150
    assert all(len(jar.sha256[0]) == 64 for jar in pyspark.inside)


def test_a_jar_without_one_set_of_coordinates_goes_by_its_file_name(tmp_path):
    properties = "#made by hand\nversion=1.2\ngroupId=org.example\nartifactId=thing\n"
    members = {
        "one-9.jar": {"META-INF/maven/org.example/thing/pom.properties": properties},
        "two-3.1.jar": {"META-INF/maven/a/b/pom.properties": properties, "META-INF/maven/c/d/pom.properties": properties},
        "none.jar": {"a.class": ""},
        "half-1.jar": {"META-INF/maven/a/b/pom.properties": "groupId=a\n"},
    }
    for name, files in members.items():
        with zipfile.ZipFile(tmp_path / name, "w") as jar:
            for member, text in files.items():
                jar.writestr(member, text)
    (tmp_path / "broken-2.jar").write_bytes(b"no zip")

    class Wheel:
        def __init__(self):
            self.files = [tmp_path / name for name in (*members, "broken-2.jar", "gone.jar")]

        def read_text(self, name):
            return "".join(f"{path.name},sha256=x,1\n" for path in self.files)

        def locate_file(self, path):
            return path

    found = {str(jar.purl) for jar in jars_inside(Wheel())}
    assert found == {"pkg:maven/org.example/thing@1.2", "pkg:generic/two@3.1", "pkg:generic/none", "pkg:generic/half@1", "pkg:generic/broken@2"}


def test_the_same_parts_give_the_same_document(parts):
    assert sbom.document(parts, "0.1.0", AT) == sbom.document(list(parts), "0.1.0", AT)
    changed = [replace(parts[0], sha256=("cd" * 32,)), *parts[1:]]
    assert json.loads(sbom.document(changed, "0.1.0", AT))["serialNumber"] != json.loads(sbom.document(parts, "0.1.0", AT))["serialNumber"]


def test_the_command_writes_both_files_and_fails_on_a_breach(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1764547200")
    monkeypatch.setattr(sbom, "all_parts", lambda: parts)
    assert sbom.main(["--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "sbom.cdx.json").read_text())["metadata"]["timestamp"] == "2025-12-01T00:00:00+00:00"
    report = (tmp_path / "out" / "licences.md").read_text()
    assert all(f"| {name} |" in report for name in policy.REVIEWED) and "To be looked at" not in report
    # A first page of numbers must add up to the number of packages.
    counts = report.split("## By licence")[1].split("##")[0].splitlines()[4:]
    assert sum(int(line.split("|")[-2]) for line in counts if line) == len(parts)
    monkeypatch.setattr(sbom, "all_parts", lambda: [*parts, one("AGPL-3.0-only")])
    assert sbom.main(["--out", str(tmp_path / "out")]) == 1
    assert "new 1 (runtime) states AGPL-3.0-only" in capsys.readouterr().err
    assert "## To be looked at\n\n- new 1" in (tmp_path / "out" / "licences.md").read_text()


def test_nothing_of_this_machine_is_in_the_documents(parts):
    text = sbom.document(parts, "0.1.0", AT) + sbom.licence_report(parts, [])
    assert str(REPO) not in text and "file:" not in text and ":/" + "/" not in text.replace("http:/" + "/cyclonedx.org/schema/bom-1.6.schema.json", "")
