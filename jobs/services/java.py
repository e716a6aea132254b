"""Finds the JDK Spark runs on: `python3 -m jobs.services.java` prints it, or says in one line what was found and what to install.

Standard library only: `make` asks before there is an environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jobs.contract import MoelineError

_OLDEST = 17  # Spark 4.2
_MODULE = "jdk.incubator.vector"  # Spark asks for it by name; trimmed runtimes leave it out
_INSTALL = "Install a full JDK 17 or 21 (Debian, Ubuntu: openjdk-17-jdk-headless) or point JAVA_HOME at one."


@dataclass(frozen=True)
class Java:
    home: Path
    version: int

    @property
    def executable(self) -> Path:
        return self.home / "bin" / "java"


def find_java() -> Java:
    """The JDK of JAVA_HOME, else the `java` on PATH; raises MoelineError when it is missing, too old or trimmed."""
    java_home = os.environ.get("JAVA_HOME")
    if java_home:
        executable = Path(java_home) / "bin" / "java"
        where = f"JAVA_HOME={java_home}"
        if not os.access(executable, os.X_OK):
            raise MoelineError(f"Spark needs a JDK: {where} has no bin/java. {_INSTALL}")
    else:
        found = shutil.which("java")
        if found is None:
            raise MoelineError(f"Spark needs a JDK: no `java` on PATH and JAVA_HOME is not set. {_INSTALL}")
        executable, where = Path(found), found
    match = re.search(r'version "(?:1\.)?(\d+)', _output(executable, "-version"))
    if match is None:
        raise MoelineError(f"Spark needs a JDK: {where} does not tell its version. {_INSTALL}")
    version = int(match[1])
    if version < _OLDEST:
        raise MoelineError(f"Spark needs a JDK {_OLDEST} or later: {where} is Java {version}. {_INSTALL}")
    if _MODULE not in _output(executable, "--list-modules"):
        raise MoelineError(f"Spark needs a full JDK: {where} (Java {version}) lacks the module {_MODULE}. {_INSTALL}")
    # A `java` found on PATH is often a link into the JDK (or a shim that asks JAVA_HOME's place itself).
    home = Path(java_home) if java_home else executable.resolve().parent.parent
    if not java_home and not os.access(home / "bin" / "java", os.X_OK):
        home = executable.parent.parent
    return Java(home=home, version=version)


def _output(executable: Path, option: str) -> str:
    try:
        done = subprocess.run([str(executable), option], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MoelineError(f"Spark needs a JDK: {executable} cannot be run ({error}). {_INSTALL}") from None
    return done.stdout + done.stderr


if __name__ == "__main__":
    try:
        java = find_java()
    except MoelineError as error:
        sys.exit(str(error))
    print(f"Java {java.version} in {java.home}")
