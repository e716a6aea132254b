"""`python -m jobs.services.jars`: the Delta JARs in .jars/, resolved once and checked against infra/local/jars.sha256.

They come through the Ivy that Spark brings, from the repository Ivy knows by default, or through your own settings in
~/.ivy2/ivysettings.xml or the file named by MOELINE_IVY_SETTINGS. With every JAR in place nothing is run and nothing is asked.
Change here: how JARs get onto the machine. Not here: which (infra/local/jars.xml), how Spark uses them (jobs/services/spark.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs.contract import MoelineError
from jobs.environment import REPO
from jobs.services.java import find_java

JARS = REPO / ".jars"
_LIST = REPO / "infra" / "local" / "jars.sha256"
_MODULES = REPO / "infra" / "local" / "jars.xml"


def expected() -> dict[str, str]:
    """JAR file name to sha256, as checked in."""
    pairs = (line.split() for line in _LIST.read_text().splitlines() if line.strip())
    return {name: digest for digest, name in pairs}


def missing(folder: Path = JARS) -> list[str]:
    """Names of JARs that are not in ``folder`` or do not have the recorded content."""
    return [name for name, digest in expected().items() if not (folder / name).is_file() or _sha256(folder / name) != digest]


def ensure_jars(folder: Path = JARS) -> bool:
    """Make ``folder`` hold exactly the expected JARs; True when something had to be resolved.

    Raises MoelineError when they cannot be had, or when one has another content than the one recorded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stray in folder.glob("*.jar"):
        if stray.name not in expected():
            stray.unlink()  # of an earlier version: two Deltas on one class path fail in strange ways
    if not missing(folder):
        return False
    # Beside the destination, so that moving a JAR into place is one step on one file system.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".resolving-") as scratch:
        resolved = resolve(Path(scratch))
        for name, digest in expected().items():
            found = resolved.get(name)
            if found is None:
                raise MoelineError(f"The JAR {name} was asked for; Ivy resolved {', '.join(sorted(resolved)) or 'nothing'}. Compare {_MODULES} with {_LIST}.")
            if _sha256(found) != digest:
                raise MoelineError(f"The JAR {name} that was downloaded is not the one recorded in {_LIST}: sha256 {_sha256(found)}. It was not installed.")
        for name in expected():
            os.replace(resolved[name], folder / name)
    return True


def resolve(scratch: Path) -> dict[str, Path]:
    """Download the modules of jars.xml into ``scratch`` with Ivy; name to file. Nothing is verified here."""
    import importlib.util

    spec = importlib.util.find_spec("pyspark")
    folders = list(spec.submodule_search_locations or []) if spec else []
    ivy = next((jar for folder in folders for jar in sorted(Path(folder, "jars").glob("ivy-*.jar"))), None)
    if ivy is None:
        raise MoelineError(f"Ivy, which comes with pyspark, was not found in {sys.prefix}. Run: make setup")
    settings = next(
        (path for path in (os.environ.get("MOELINE_IVY_SETTINGS"), Path.home() / ".ivy2" / "ivysettings.xml") if path and Path(path).is_file()), None
    )
    pattern = str(scratch / "out" / "[organisation]_[artifact]-[revision].[ext]")
    command = [
        str(find_java().executable), "-jar", str(ivy), "-warn", *(["-settings", str(settings)] if settings else []), "-ivy", str(_MODULES),
        "-cache", str(scratch / "cache"), "-confs", "default", "-types", "jar", "-retrieve", pattern,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired:
        raise MoelineError(
            "The Delta JARs were asked for; the repository did not give them within 900 s. Check the network, then run `make setup` again."
        ) from None
    if done.returncode:
        problem = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if line.strip())[-1500:]
        raise MoelineError(f"The Delta JARs could not be resolved. Check the network, then run `make setup` again. Ivy says:\n{problem}")
    return {path.name: path for path in (scratch / "out").glob("*.jar")}


def record() -> None:
    """Write jars.sha256 from what Ivy resolves now (after changing versions; review the difference)."""
    with tempfile.TemporaryDirectory() as scratch:
        lines = sorted(f"{_sha256(path)}  {name}\n" for name, path in resolve(Path(scratch)).items())
    _LIST.write_text("".join(sorted(lines, key=lambda line: line.split()[1])))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str]) -> int:
    try:
        if arguments == ["record"]:
            record()
            shutil.copyfileobj(_LIST.open(), sys.stdout)
        elif ensure_jars():
            print(f"{len(expected())} Delta JARs in {JARS}")
    except MoelineError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
