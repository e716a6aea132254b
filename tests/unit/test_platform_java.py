"""The JDK check says in one line what was found and what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.contract import MoelineError
from jobs.environment import REPO
from jobs.services.java import find_java

FULL = "java.base@17.0.1\njdk.incubator.vector@17.0.1"


@pytest.fixture
def jdk(tmp_path, monkeypatch):
    """Make a folder with a `java` script that answers like one of that version with those modules."""
    monkeypatch.delenv("JAVA_HOME", raising=False)

    def make(version: str, modules: str = FULL):
        home = tmp_path / "jdk"
        (home / "bin").mkdir(parents=True)
        script = home / "bin" / "java"
        script.write_text(f"#!/bin/sh\ncase \"$1\" in\n-version) echo '{version}' >&2;;\n--list-modules) echo '{modules}';;\nesac\n")
        script.chmod(0o755)
        return home

    return make


def test_java_home_wins_over_the_path(jdk, monkeypatch):
    home = jdk('openjdk version "21.0.2" 2024-01-16')
    monkeypatch.setenv("JAVA_HOME", str(home))
    found = find_java()
    assert (found.home, found.version) == (home, 21)


def test_java_on_the_path_is_followed_to_its_jdk(jdk, monkeypatch, tmp_path):
    home = jdk('openjdk version "17.0.15" 2025-04-15')
    links = tmp_path / "bin"
    links.mkdir()
    (links / "java").symlink_to(home / "bin" / "java")
    monkeypatch.setenv("PATH", f"{links}:/usr/bin:/bin")
    assert find_java().home == home


@pytest.mark.parametrize("version, found", [('openjdk version "11.0.20" 2023-07-18', "Java 11"), ('java version "1.8.0_392"', "Java 8")])
def test_old_java_is_refused(jdk, monkeypatch, version, found):
    monkeypatch.setenv("JAVA_HOME", str(jdk(version)))
    with pytest.raises(MoelineError, match=found) as error:
        find_java()
    assert "Install a full JDK 17 or 21" in str(error.value)
    assert "\n" not in str(error.value)


def test_trimmed_runtime_is_refused(jdk, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(jdk('openjdk version "21.0.8"', modules="java.base@21.0.8")))
    with pytest.raises(MoelineError, match=r"jdk\.incubator\.vector"):
        find_java()


def test_missing_java_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MoelineError, match="no `java` on PATH and JAVA_HOME is not set"):
        find_java()


def test_java_home_without_java_is_refused_and_not_replaced_by_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nothing"))
    with pytest.raises(MoelineError, match="nothing has no bin/java"):
        find_java()


def test_command_prints_one_line_and_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-m", "jobs.services.java"], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
