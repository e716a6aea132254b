"""From a bare machine to a working checkout: `python3 infra/local/bootstrap.py setup`; `test-setup` adds what only tests need, `run` the main job.

Runs on the system's Python with nothing installed. Every step is left out when its result is already there. At the end of
`run` a table says how long each step took (also appended to timings.jsonl in the moeline home).
Change here: how the environment is made. Not here: what is in it (pyproject.toml, then `make lock`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
VENV, UV = REPO / ".venv", REPO / ".uv"
PYTHON = VENV / "bin" / "python"
LOCK, UV_LOCK = REPO / "requirements.lock", REPO / "infra" / "local" / "uv.lock"
OLD_TRANSFORMERS, OLD_LOCK = REPO / ".oracles" / "transformers-4", REPO / "tests" / "oracles" / "transformers4.lock"
OLDEST, TOO_NEW = (3, 11), (3, 13)  # the wheels of requirements.lock
# What pip was told about this machine's package index holds for uv too.
PIP_SETTINGS = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS", "cert": "SSL_CERT_FILE"}


class Problem(Exception):
    """Shown as one line, without a traceback."""


def check_python() -> None:
    found = sys.version_info[:2]
    if not OLDEST <= found < TOO_NEW:
        raise Problem(
            f"moeline needs Python 3.11 or 3.12: found {found[0]}.{found[1]} ({sys.executable}). Install python3.11 and python3.11-venv, or set PYTHON."
        )


def check_java() -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.services.java"], cwd=REPO, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(done.stderr.strip())


def environment() -> None:
    """.venv exactly as requirements.lock says, with this checkout importable and the `moeline` command in it."""
    wanted = hashlib.sha256(LOCK.read_bytes() + f"{sys.version_info[:2]} {REPO}".encode()).hexdigest()
    stamp = VENV / ".moeline"
    if PYTHON.exists() and says(stamp, wanted):
        return
    uv, variables = ensure_uv(), index_settings()
    if not PYTHON.exists() or version_of(PYTHON) != sys.version_info[:2]:
        call([uv, "venv", "--quiet", "--clear", "--python", sys.executable, VENV], variables)
    print("Installing the packages of requirements.lock ...", flush=True)
    # Compiled once here (half a minute), not by each of the hundred processes of a first run, or by all of them every time where
    # PYTHONDONTWRITEBYTECODE is set.
    call([uv, "pip", "sync", "--quiet", "--compile-bytecode", "--require-hashes", "--python", PYTHON, LOCK], variables)
    add_project()
    stamp.write_text(wanted)


def oracles() -> None:
    """An older transformers in a folder of its own, for tests that ask it in a process of its own. Without one they are skipped and say so."""
    wanted, stamp = hashlib.sha256(OLD_LOCK.read_bytes()).hexdigest(), OLD_TRANSFORMERS / ".pinned"
    if says(stamp, wanted):
        return
    shutil.rmtree(OLD_TRANSFORMERS, ignore_errors=True)
    install = ["pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", PYTHON, "--target", OLD_TRANSFORMERS, "-r", OLD_LOCK]
    try:
        call([ensure_uv(), *install], index_settings())
    except Problem as problem:
        print(f"{problem} Tests that need transformers 4.57 are skipped.", file=sys.stderr)
        return
    stamp.write_text(wanted)


def ensure_uv() -> Path:
    """The pinned uv, in a small environment of its own that `pip` fills with its hash checked."""
    uv, stamp = UV / "bin" / "uv", UV / ".pinned"
    wanted = hashlib.sha256(UV_LOCK.read_bytes()).hexdigest()
    if uv.exists() and says(stamp, wanted):
        return uv
    shutil.rmtree(UV, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "venv", UV], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"`{sys.executable} -m venv` does not work here; on Debian and Ubuntu install python3-venv. It said: {last_line(done)}")
    call([UV / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary", ":all:", "-r", UV_LOCK], {})
    stamp.write_text(wanted)
    return uv


def says(stamp: Path, wanted: str) -> bool:
    """Whether the stamp that ends an installation names what is wanted now."""
    return stamp.exists() and stamp.read_text() == wanted


def index_settings() -> dict[str, str]:
    """pip's index, extra indexes, local wheels and certificates, as the variables uv reads; your own UV_ variables win."""
    listed = subprocess.run([UV / "bin" / "python", "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        variable = PIP_SETTINGS.get(key.rpartition(".")[2])
        if variable and variable not in os.environ:
            found[variable] = " ".join(value.strip("'\"").replace("\\n", " ").split())
    return found


def add_project() -> None:
    """A path entry and a script: nothing to build, and edits count at once."""
    packages = next((VENV / "lib").glob("python*/site-packages"))
    (packages / "moeline.pth").write_text(f"{REPO}\n")
    script = VENV / "bin" / "moeline"
    # Through /bin/sh: the kernel cuts interpreter lines of long paths.
    script.write_text(f"#!/bin/sh\n'''exec' \"{PYTHON}\" \"$0\" \"$@\"\n' '''\nimport sys\n\nfrom jobs.cli import main\n\nsys.exit(main())\n")
    script.chmod(0o755)


def jars() -> None:
    call([PYTHON, "-m", "jobs.services.jars"], {})


def version_of(python: Path) -> tuple[int, ...]:
    done = subprocess.run([python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False)
    return tuple(int(part) for part in done.stdout.split()) if done.returncode == 0 else ()


def call(command: list[str | Path], variables: dict[str, str]) -> None:
    code = subprocess.run(command, cwd=REPO, env={**os.environ, **variables}, check=False).returncode
    if code:
        raise Problem(f"`{' '.join(Path(str(command[0])).name if i == 0 else str(part) for i, part in enumerate(command))}` failed with exit code {code}.")


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"


def report(seconds: dict[str, float]) -> None:
    """The table of this run, and one line for it in timings.jsonl of the moeline home."""
    home = Path(os.environ.get("MOELINE_HOME") or REPO / ".moeline")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "timings.jsonl").open("a") as file:
        file.write(json.dumps({"at": time.time(), "seconds": {step: round(value, 1) for step, value in seconds.items()}}) + "\n")
    print("\nstep          seconds")
    for step, value in [*seconds.items(), ("total", sum(seconds.values()))]:
        print(f"{step:<12} {value:8.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["setup", "test-setup", "run"])
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--days", default="3")
    asked = parser.parse_args()
    moeline = VENV / "bin" / "moeline"
    steps = {"environment": lambda: (check_python(), check_java(), environment()), "jars": jars}
    if asked.command == "test-setup":
        steps["oracles"] = oracles
    if asked.command == "run":
        steps["up"] = lambda: call([moeline, "up"], {})
        steps["run"] = lambda: call([moeline, "run", "--recipe", asked.recipe, "--days", asked.days], {})
    seconds: dict[str, float] = {}
    try:
        for step, work in steps.items():
            began = time.monotonic()
            work()
            seconds[step] = time.monotonic() - began
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if asked.command == "run":
        report(seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
