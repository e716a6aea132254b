"""OSV records against exact versions, by records made by hand; databases that are too large, broken or not there."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packageurl import PackageURL
from packaging.version import Version

from infra.supply import audit, osv
from infra.supply.licences import Licence
from infra.supply.parts import Part
from jobs.contract import MoelineError

MIT = Licence("MIT", "License")


def record(*events, versions=None, name="Some_Pkg", ecosystem="PyPI", kind="ECOSYSTEM", identifier="GHSA-1", **more):
    affected = {"package": {"ecosystem": ecosystem, "name": name}, "ranges": [{"type": kind, "events": list(events)}] if events else []}
    if versions is not None:
        affected["versions"] = versions
    return {"id": identifier, "modified": "2026-11-01T00:00:00Z", "summary": "it breaks", "affected": [affected], **more}


def state(one, version, name="some.pkg", ecosystem="PyPI"):
    match = osv.applies(one, ecosystem, name, version)
    return "clean" if match is None else "affected" if match.certain else "unsure"


def part(name="some-pkg", version="1.5", kind="pypi", group=None, inside=()):
    return Part(f"{group}:{name}" if group else name, version, PackageURL(kind, group, name, version), ("ab" * 32,), MIT, "runtime", inside=inside)


FROM_1_TO_2 = record({"introduced": "1.0"}, {"fixed": "2.0"})


@pytest.mark.parametrize(
    ("one", "version", "expected"),
    [
        (FROM_1_TO_2, "0.9", "clean"),
        (FROM_1_TO_2, "1.0", "affected"),
        (FROM_1_TO_2, "1.0rc1", "clean"),
        (FROM_1_TO_2, "1.10", "affected"),
        (FROM_1_TO_2, "2.0rc1", "affected"),
        (FROM_1_TO_2, "2.0", "clean"),
        (FROM_1_TO_2, "2.0.0", "clean"),
        (FROM_1_TO_2, "1!1.5", "clean"),
        (record({"introduced": "0"}, {"fixed": "2.0"}), "0.dev1", "affected"),
        (record({"introduced": "0"}), "99", "affected"),
        (record({"introduced": "1"}, {"last_affected": "1.5"}), "1.5", "affected"),
        (record({"introduced": "1"}, {"last_affected": "1.5"}), "1.5.post1", "clean"),
        (record({"introduced": "1"}, {"last_affected": "1.5"}), "1.5+cpu", "affected"),  # a rebuild of what is affected
        (record({"introduced": "1"}, {"fixed": "1.5"}), "1.5+cpu", "clean"),
        (record({"fixed": "2"}, {"introduced": "1"}, {"introduced": "3"}, {"fixed": "4"}), "2.5", "clean"),
        (record({"fixed": "2"}, {"introduced": "1"}, {"introduced": "3"}, {"fixed": "4"}), "3.5", "affected"),
        (record({"introduced": "0"}, {"fixed": "1"}, {"introduced": "1"}, {"fixed": "2"}), "1", "affected"),
        (record({"introduced": "0"}, {"limit": "2"}), "1", "affected"),
        (record({"introduced": "0"}, {"limit": "2"}), "2", "clean"),
        (record({"introduced": "0"}, {"limit": "*"}), "99", "affected"),
        (record(versions=["1.4", "1.5"]), "1.5", "affected"),
        (record(versions=["1.4", "1.5"]), "1.5.0", "affected"),
        (record(versions=["1.4", "1.5"]), "1.6", "clean"),
        (record({"introduced": "3"}, versions=["1.5"]), "1.5", "affected"),  # either is enough
        (record({"introduced": "3"}, versions=["1.5"]), "3.1", "affected"),
        (record(versions=["not a version", "1.5"]), "1.5", "affected"),
        (record({"introduced": "0"}, {"fixed": "abcdef"}), "1", "unsure"),
        (record({"fixed": "2"}), "1", "unsure"),
        (record({"introduced": "0"}, kind="GIT"), "1", "unsure"),
        (record({"introduced": "0"}, kind="GIT", versions=["2"]), "1", "clean"),
        (record({"introduced": "0"}, withdrawn="2026-01-01T00:00:00Z"), "1", "clean"),
        (record({"introduced": "0"}, name="other"), "1", "clean"),
        (record({"introduced": "0"}, ecosystem="npm"), "1", "clean"),
        (record({"introduced": "0"}, ecosystem="PyPI:somewhere"), "1", "affected"),
    ],
)
def test_a_version_is_judged_as_the_schema_says(one, version, expected):
    assert state(one, version) == expected


@given(st.lists(st.integers(0, 12), min_size=2, max_size=8, unique=True).map(sorted), st.integers(0, 13), st.booleans(), st.randoms())
def test_stretches_in_any_order_of_events(bounds, version, last, shuffled):
    pairs = [(bounds[i], bounds[i + 1]) for i in range(0, len(bounds) - 1, 2)]
    events = [event for start, end in pairs for event in ({"introduced": f"1.{start}"}, {"last_affected" if last else "fixed": f"1.{end}"})]
    shuffled.shuffle(events)
    expected = any(Version(f"1.{start}") <= Version(f"1.{version}") and (version <= end if last else version < end) for start, end in pairs)
    assert state(record(*events), f"1.{version}") == ("affected" if expected else "clean")


def test_two_entries_of_one_record_and_its_fixes():
    one = record({"introduced": "1"}, {"fixed": "1.2"}, aliases=["CVE-1"])
    one["affected"] += record({"introduced": "2"}, {"fixed": "2.2"})["affected"]
    assert osv.applies(one, "PyPI", "some-pkg", "2.1") == osv.Match("GHSA-1", ("CVE-1",), "it breaks", ("1.2", "2.2"))
    assert state(one, "1.5") == "clean"


def test_of_maven_only_enumerated_versions_are_certain():
    name = "io.netty:netty-codec"
    for one, expected in [
        (record({"introduced": "0"}, {"fixed": "4.2"}, versions=["4.1.Final"], name=name, ecosystem="Maven"), "affected"),
        (record({"introduced": "0"}, {"fixed": "4.2"}, versions=["4.0.Final"], name=name, ecosystem="Maven"), "clean"),
        (record({"introduced": "0"}, {"fixed": "4.2"}, name=name, ecosystem="Maven"), "unsure"),
    ]:
        assert state(one, "4.1.Final", name, "Maven") == expected


def zipped(tmp_path, members, name="all.zip"):
    path = tmp_path / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path


def test_a_file_a_zip_and_a_folder_of_both_are_databases(tmp_path):
    inner = zipped(tmp_path, {"GHSA-1.json": json.dumps(FROM_1_TO_2), "README.txt": "no record"})
    assert [one["id"] for one in osv.records(inner)] == ["GHSA-1"]
    (tmp_path / "deep").mkdir()
    alone = tmp_path / "deep" / "GHSA-2.json"
    alone.write_text(json.dumps(record(identifier="GHSA-2")))
    assert [one["id"] for one in osv.records(alone)] == ["GHSA-2"]
    assert sorted(one["id"] for one in osv.records(tmp_path)) == ["GHSA-1", "GHSA-2"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "no id"),
        (b'{"id": 5}', "no id"),
        (b'{"id": "X", "affected": {}}', "affected must be a list"),
        (b'{"id": "X", "affected": "all"}', "affected must be a list"),
        (b'{"id": "X", "affected": [{"versions": "1.5"}]}', "versions must be a list"),
        (b'{"id": "X", "affected": [{"ranges": {"type": "GIT"}}]}', "ranges must be a list"),
        (b'{"id": "X", "aliases": "CVE"}', "aliases must be a list"),
    ],
)
def test_a_broken_record_stops_the_check(tmp_path, data, message):
    with pytest.raises(MoelineError, match=message):
        list(osv.records(zipped(tmp_path, {"a.json": data})))


def test_a_broken_or_encrypted_archive_stops_the_check(tmp_path):
    path = tmp_path / "all.zip"
    path.write_bytes(b"PK no zip")
    with pytest.raises(MoelineError, match="cannot be read as a zip"):
        list(osv.records(path))
    whole = bytearray(zipped(tmp_path, {"a.json": json.dumps(FROM_1_TO_2)}, "whole.zip").read_bytes())
    whole[whole.index(b"PK\x01\x02") + 8] |= 1  # the flag for "encrypted"
    path.write_bytes(whole)
    with pytest.raises(MoelineError, match="encrypted"):
        list(osv.records(path))


def test_what_unpacks_too_large_is_not_read(tmp_path):
    bomb = zipped(tmp_path, {"a.json": b" " * 5_000_000})
    assert bomb.stat().st_size < 10_000
    with pytest.raises(MoelineError, match="a record of more than 1000 bytes"):
        list(osv.records(bomb, osv.Budget(record=1000)))
    many = zipped(tmp_path, {f"{number}.json": json.dumps(FROM_1_TO_2) for number in range(5)}, "many.zip")
    for budget in (osv.Budget(records=4), osv.Budget(total=500)):
        with pytest.raises(MoelineError, match="more than a vulnerability database can hold"):
            list(osv.records(many, budget))


def test_the_size_that_an_archive_states_is_not_believed():
    budget = osv.Budget(record=10)
    with pytest.raises(MoelineError):
        budget.read(io.BytesIO(b"x" * 11), "a")
    assert budget.read(io.BytesIO(b"x" * 10), "a") == b"x" * 10


def test_no_database_is_said_so_and_is_no_success(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OSV_DATABASE", raising=False)
    assert audit.main([]) == 2
    assert "nothing was checked" in capsys.readouterr().out
    monkeypatch.setenv("OSV_DATABASE", "")
    assert audit.main([]) == 2
    for missing, message in [(tmp_path / "absent.zip", "There is no OSV database"), (tmp_path, "no .json and no .zip")]:
        assert audit.main(["--database", str(missing)]) == 2
        assert message in capsys.readouterr().err


def test_a_database_without_pypi_is_refused():
    with pytest.raises(MoelineError, match="no record about PyPI"):
        audit.audit([part()], [record({"introduced": "0"}, ecosystem="npm")])


def test_findings_name_what_to_do_and_aliases_are_told_once():
    parts = [part(), part("clean", "1")]
    result = audit.audit(
        parts, [FROM_1_TO_2, record({"introduced": "0"}, identifier="PYSEC-1", aliases=["GHSA-1"]), record({"introduced": "0"}, name="not-pinned")]
    )
    lines = audit.told(result, parts)
    assert lines[0] == "some-pkg 1.5 (runtime) is affected by GHSA-1: it breaks; fixed in 2.0"
    assert lines[1] == "2 pinned packages against 3 records about PyPI, the newest of 2026-11-01."
    assert lines[2] == "0 JARs were not checked: the database holds no record about Maven."
    assert len(lines) == 3


def test_jars_inside_wheels_are_checked_by_their_coordinates():
    inside = (part("netty", "4.1", "maven", "io.netty"), part("nameless", "", "generic"))
    parts = [part("pyspark", "4", inside=inside)]
    result = audit.audit(parts, [record({"introduced": "9"}), record(versions=["4.1"], name="io.netty:netty", ecosystem="Maven", identifier="GHSA-9")])
    assert [(found.name, match.id) for found, match in result.found] == [("io.netty:netty", "GHSA-9")]
    assert audit.told(result, parts)[-2:] == [
        "1 JARs against 1 records about Maven.",
        "1 JARs inside wheels do not say their coordinates and cannot be checked.",
    ]


def test_text_of_a_record_cannot_write_to_the_terminal():
    result = audit.audit([part()], [record({"introduced": "0"}, identifier="A\x1b[2J", aliases=["B\r"], summary="x\x1b]0;y\x07")])
    assert "\x1b" not in "".join(audit.told(result, [part()])) and "\r" not in "".join(audit.told(result, [part()]))


def test_the_real_lock_is_checked_end_to_end(tmp_path, capsys):
    torch = next(one for one in audit.all_parts() if one.name == "torch")
    hit = record({"introduced": "0"}, {"last_affected": torch.version}, name="Torch", identifier="GHSA-torch")
    assert audit.main(["--database", str(zipped(tmp_path, {"a.json": json.dumps(hit)}))]) == 1
    assert f"torch {torch.version} (runtime) is affected by GHSA-torch" in capsys.readouterr().out
    past = record({"introduced": "0"}, {"fixed": torch.version}, name="torch")
    assert audit.main(["--database", str(zipped(tmp_path, {"a.json": json.dumps(past)}))]) == 0
