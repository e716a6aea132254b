"""``moeline gauntlet fetch`` and ``check``: Foundry's evaluation data in a folder of its own, every file the recorded one.

The data belongs to its authors, so it never lies in the repository. What is there and right is not fetched again; what is wrong is an error
that names the file. Without a network the error says what to copy where. Change here: which files are asked for, messages. Not here: how a
file is got and verified (jobs/services/foundry_files.py), the list of files (infra/gauntlet/foundry.toml).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import REPO
from jobs.services import foundry_files
from jobs.services.foundry_files import Content, DataFile, FileList, UnreachableError, problem_with
from jobs.terminal import say

FIRST_SEEN = "first_seen.json"  # sha256 of files that nobody had hashed before: the same ones are expected from then on
_SECONDS_BETWEEN_LINES = 1.0


def add_to(actions: Any, leaf: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ``fetch`` and ``check`` to a subparsers object; ``leaf(actions, name, action, about)`` adds one command."""
    fetching = leaf(actions, "fetch", _fetch, "Get Foundry's evaluation data, verified file by file, into a folder outside the repository.")
    fetching.add_argument("--from", dest="source", metavar="URL_OR_DIR", help="a mirror (with or without {path}), a copy of the data, a checkout of Foundry")
    checking = leaf(actions, "check", _check, "Verify a folder of Foundry's evaluation data against the recorded sha256.")
    for command in (fetching, checking):
        command.add_argument("--to", metavar="DIR", help="the data folder (default: gauntlet in the moeline home)")
        command.add_argument("--tasks", default="", metavar="A,B", help="only these tasks, by label; v0.3-local: the 26 small ones")
    fetching.add_argument("--unpinned", action="store_true", help="also files without a recorded sha256, known by their number of rows only")


def _fetch(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    found = fetch(
        env, source=arguments.source, to=Path(arguments.to) if arguments.to else None, tasks=_labels(arguments.tasks), unpinned=arguments.unpinned,
        echo=say,
    )  # fmt: skip
    if not arguments.json:
        print(render(found), end="")
    return found


def _check(arguments: argparse.Namespace, env: Any) -> dict[str, Any]:
    found = check(env, to=Path(arguments.to) if arguments.to else None, tasks=_labels(arguments.tasks))
    if not arguments.json:
        print(render(found), end="")
    return found


def _labels(text: str) -> tuple[str, ...]:
    return tuple(t.strip() for t in text.split(",") if t.strip())


@dataclass(frozen=True)
class _State:
    """What of the files wanted lies in the folder. ``wrong``: in words."""

    right: tuple[DataFile, ...]
    missing: tuple[DataFile, ...]
    wrong: tuple[str, ...]


def fetch(
    env: Any, *, source: str | None = None, to: Path | None = None, tasks: Sequence[str] = (), unpinned: bool = False,
    files: FileList | None = None, echo: Callable[[str], None] = lambda _: None, wait_seconds: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """Get what is missing; files that are there and right stay. Raises MoelineError naming the file, or, offline, saying what to copy where."""
    files = files or foundry_files.read_list()
    folder = _folder(env, to)
    source = source or env.services.get("gauntlet_source") or files.source
    chosen = _chosen(files, tasks)
    asked = [one for one in chosen if one.sha256 or unpinned]
    with _held(folder) as scratch:
        state = _look(folder, asked)
        if state.wrong:
            raise MoelineError(f"{folder} holds other files than the recorded ones. {'; '.join(state.wrong)}. Remove them and fetch again.")
        with _content(source) as content:
            absent = _bring(state.missing, content, scratch, folder, _Progress(state.missing, echo), wait_seconds, lambda e: _by_hand(e, folder, files, asked))
    if absent:
        raise MoelineError(
            f"{source} has no {', '.join(absent)}. It must be a data folder, Foundry's scripts/eval, or a checkout of Foundry. "
            f"{len(asked) - len(absent)} of {len(asked)} files are in {folder}; add the others and run the same again."
        )
    return _summary(folder, files, chosen, fetched=len(state.missing))


def _bring(
    missing: Sequence[DataFile], content: Content, scratch: Path, folder: Path, progress: _Progress, wait_seconds: float, offline: Callable[[Exception], str]
) -> list[str]:
    """Bring every file to ``folder``; returns the paths that a source folder does not have. ``offline``: what to say where nobody answers."""
    absent = []
    for one in missing:
        progress.begin(one)
        try:
            found = foundry_files.receive(one, content, scratch / uuid.uuid4().hex, folder / one.path, got=progress.got, wait_seconds=wait_seconds)
        except UnreachableError as error:
            raise MoelineError(offline(error)) from None
        except FileNotFoundError:
            absent.append(one.path)
            continue
        except OSError as error:
            raise MoelineError(f"{one.path} could not be brought to {folder}: {error}. What was fetched before is kept.") from error
        if one.sha256 is None:
            _remember(folder, one, found)
        progress.finished()
    return absent


def check(env: Any, *, to: Path | None = None, tasks: Sequence[str] = (), files: FileList | None = None) -> dict[str, Any]:
    """Verify what is there. Raises MoelineError naming every file that is wrong, and every pinned one that is missing."""
    files = files or foundry_files.read_list()
    folder = _folder(env, to)
    chosen = _chosen(files, tasks)
    state = _look(folder, chosen)
    problems = [*state.wrong, *(f"{one.path}: missing" for one in state.missing if one.sha256)]
    if problems:
        raise MoelineError(f"{folder} is not Foundry's data of {files.revision}. {'; '.join(problems)}. `moeline gauntlet fetch` gets what is missing.")
    return _summary(folder, files, chosen, fetched=0)


def _folder(env: Any, to: Path | None) -> Path:
    folder = (to or env.home / "gauntlet").resolve()
    if folder.is_relative_to(REPO) and not folder.is_relative_to(env.home):
        raise MoelineError(f"--to {folder} is inside the repository, where data of others must not lie. Give a folder outside of it.")
    return folder


def _chosen(files: FileList, tasks: Sequence[str]) -> list[DataFile]:
    """The YAMLs and the files of ``tasks`` (all, if it names none)."""
    from models.gauntlet.tasks import SELECTIONS

    wanted = {label for name in tasks for label in SELECTIONS.get(name, (name,))}
    known = {one.task for one in files.files if one.task}
    if unknown := sorted(wanted - known):
        raise MoelineError(f"No data file of a task {', '.join(unknown)} is recorded. There are {', '.join(sorted(known))}.")
    return [one for one in files.files if not tasks or not one.task or one.task in wanted]


def _first_seen(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / FIRST_SEEN).read_text(encoding="utf-8"))
        return {str(path): str(sha256) for path, sha256 in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise MoelineError(f"{folder / FIRST_SEEN} is damaged ({error}). Remove it, and the files without a recorded sha256, and fetch those again.") from None


def _remember(folder: Path, one: DataFile, sha256: str) -> None:
    from jobs.services.results import write_whole

    write_whole(folder / FIRST_SEEN, json.dumps(_first_seen(folder) | {one.path: sha256}, indent=1, sort_keys=True).encode() + b"\n")


def _look(folder: Path, wanted: Sequence[DataFile]) -> _State:
    right, missing, wrong = [], [], []
    seen = _first_seen(folder)
    for one in wanted:
        file = folder / one.path
        if not file.is_file():
            missing.append(one)
        elif problem := problem_with(one, file, first_seen=seen.get(one.path)):
            wrong.append(problem)
        else:
            right.append(one)
    return _State(tuple(right), tuple(missing), tuple(wrong))


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files beside ``folder``, empty, and held by one process at a time."""
    scratch = folder.with_name(f".{folder.name}.unfinished")
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_RDONLY)
    except OSError as error:
        raise MoelineError(f"{folder} cannot be written: {error}. Give another folder with --to.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MoelineError(f"Another `moeline gauntlet fetch` is writing to {folder}. Wait for it.") from None
        for left in scratch.iterdir():  # of a fetch that was killed
            left.unlink()
        yield scratch
        scratch.rmdir()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _content(source: str) -> Iterator[Content]:
    if Path(source).is_dir():
        yield foundry_files.from_folder(Path(source))
        return
    import httpx

    timeout = httpx.Timeout(30.0, connect=10.0)
    with httpx.Client(timeout=timeout, follow_redirects=True, max_redirects=5, headers={"Accept-Encoding": "identity"}) as client:
        yield foundry_files.from_web(source, client)


def _by_hand(error: Exception, folder: Path, files: FileList, asked: Sequence[DataFile]) -> str:
    """What to do where there is no network: one screen."""
    missing = _look(folder, asked).missing
    shown = [f"  {one.path}" + (f"  ({one.n_bytes:,} bytes)" if one.n_bytes else "") for one in missing]
    return "\n".join([
        f"Foundry's data could not be fetched: {error}.",
        f"{len(asked) - len(missing)} of {len(asked)} files are in {folder}; missing are:", *shown,
        "On a machine with a network, each of them is at", f"  {files.source}",
        f"or all of them in scripts/eval of a checkout: git clone --depth 1 --branch {files.revision} https://github.com/{files.repository}",
        f"Copy them, with their folders, into {folder}", "and run `moeline gauntlet check`; or copy them anywhere and run",
        "  moeline gauntlet fetch --from FOLDER",
        "which verifies every file before it puts it there.",
    ])  # fmt: skip


def _summary(folder: Path, files: FileList, chosen: Sequence[DataFile], *, fetched: int) -> dict[str, Any]:
    here = [one for one in chosen if (folder / one.path).is_file()]
    seen = _first_seen(folder)
    return {
        "folder": str(folder), "revision": files.revision, "fetched": fetched, "files": len(here),
        "bytes": sum((folder / one.path).stat().st_size for one in here),
        "tasks": sorted(one.task for one in here if one.task), "missing_tasks": sorted(one.task for one in chosen if one not in here),
        "unpinned": {one.path: seen.get(one.path) or foundry_files.sha256_of(folder / one.path) for one in here if one.sha256 is None},
    }  # fmt: skip


def render(found: dict[str, Any]) -> str:
    """The outcome in words, and how to go on."""
    where = f"in {found['folder']}, {found['fetched']} of them new"
    lines = [f"{found['files']} files of Foundry {found['revision']} ({found['bytes'] / 1e6:.1f} MB) {where}, verified by sha256."]
    for path, sha256 in found["unpinned"].items():
        lines.append(f"Not pinned, only its rows were counted: {path}, sha256 {sha256}")
    if found["missing_tasks"]:
        lines.append(f"Not there: {', '.join(found['missing_tasks'])}. They have no recorded sha256; --unpinned fetches them all the same.")
    some = " --tasks v0.3-local" if found["missing_tasks"] else ""
    lines += [
        "To use them:",
        f"  export GAUNTLET_DATA={found['folder']}     (moeline run, moeline stage)",
        f"  moeline evaluate --suite v0.3{some} --data {found['folder']} --model DIR --out DIR",
    ]
    return "\n".join(lines) + "\n"


class _Progress:
    """Lines "files, bytes, elapsed, time left", a second apart."""

    def __init__(self, missing: Sequence[DataFile], echo: Callable[[str], None]) -> None:
        self.total_files, self.total_bytes = len(missing), sum(one.n_bytes or 0 for one in missing)
        self.echo, self.files, self.bytes, self.path = echo, 0, 0, ""
        self.started, self.last = time.monotonic(), float("-inf")

    def begin(self, one: DataFile) -> None:
        self.path = one.path

    def got(self, n_bytes: int) -> None:
        self.bytes += n_bytes
        self._say()

    def finished(self) -> None:
        self.files += 1
        self._say(now=self.files == self.total_files)

    def _say(self, *, now: bool = False) -> None:
        elapsed = time.monotonic() - self.started
        if not now and elapsed - self.last < _SECONDS_BETWEEN_LINES:
            return
        self.last = elapsed
        known = 0 < self.bytes <= self.total_bytes
        left = f"{(self.total_bytes - self.bytes) * elapsed / self.bytes:.0f} s left" if known else "time left unknown"
        size = f"{self.bytes / 1e6:.1f} of {self.total_bytes / 1e6:.1f} MB"
        self.echo(f"[gauntlet] {self.files} of {self.total_files} files, {size}, {elapsed:.0f} s, {left}  {self.path}")
