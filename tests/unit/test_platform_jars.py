"""JARs are installed only with the recorded content."""

from __future__ import annotations

import hashlib
import re

import pytest

from jobs.contract import MoelineError
from jobs.environment import REPO
from jobs.services import jars

CONTENT = b"the recorded content"


@pytest.fixture
def one_jar(monkeypatch):
    monkeypatch.setattr(jars, "expected", lambda: {"a-1.jar": hashlib.sha256(CONTENT).hexdigest()})


def resolving(monkeypatch, name, content):
    def resolve(scratch):
        (scratch / name).write_bytes(content)
        return {name: scratch / name}

    monkeypatch.setattr(jars, "resolve", resolve)


def test_jar_in_place_is_not_resolved_again(one_jar, tmp_path, monkeypatch):
    monkeypatch.setattr(jars, "resolve", lambda scratch: pytest.fail("resolved although everything is in place"))
    (tmp_path / "a-1.jar").write_bytes(CONTENT)
    assert jars.ensure_jars(tmp_path) is False


def test_damaged_jar_is_replaced_and_an_old_version_removed(one_jar, tmp_path, monkeypatch):
    (tmp_path / "a-1.jar").write_bytes(CONTENT[:5])
    (tmp_path / "a-0.jar").write_bytes(b"old")
    resolving(monkeypatch, "a-1.jar", CONTENT)
    assert jars.ensure_jars(tmp_path) is True
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a-1.jar": CONTENT}


def test_jar_with_other_content_is_not_installed(one_jar, tmp_path, monkeypatch):
    resolving(monkeypatch, "a-1.jar", b"something else")
    with pytest.raises(MoelineError, match="is not the one recorded"):
        jars.ensure_jars(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_list_and_modules_agree_with_the_python_packages():
    modules = set(re.findall(r'<dependency org="\S+" name="(\S+)" rev="(\S+)"', jars._MODULES.read_text()))
    assert len(modules) == len(jars.expected())
    assert {f"{name}-{version}.jar" for name, version in modules} == {name.partition("_")[2] for name in jars.expected()}
    project = (REPO / "pyproject.toml").read_text()
    spark = re.search(r'"pyspark==(\d+\.\d+)', project)[1]
    delta = re.search(r'"delta-spark==([\d.]+)"', project)[1]
    assert (f"delta-spark_{spark}_2.13", delta) in modules
