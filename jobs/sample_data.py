"""`moeline sample-data`: the default corpus, real text that every machine with moeline has.

Source code, docstrings, READMEs, changelogs and licence texts of the installed Python distributions and the standard library,
as JSON lines in ``landing/<source>/<day>/part-0000.jsonl.zst``. Which files are taken and on which day they land is decided by
hashes of their names, so the same installed versions give the same bytes everywhere, and writing again changes nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jobs.contract import MoelineError, parse_day
from jobs.environment import Environment

CODE, DOCS = "python-code", "python-docs"
_DOCS_SHARE = 0.28  # of the sample; the prose rules refuse most of it
_TEXTS_SHARE = 0.2  # of the documentation: READMEs, changelogs, licence texts; the rest are long docstrings
_MAX_FILE_BYTES = 200_000
_MIN_FILE_BYTES = 200
_MIN_DOC_CHARS = 500  # a docstring below this is a line of a reference manual, not a document
_MOST_MEGABYTES = 10_000  # more than any machine's distributions hold
_ZSTD_LEVEL = 3  # fixed: the bytes of the files are their identity
_DOC_SUFFIXES = (".md", ".rst", ".txt")
_DOC_STEMS = ("readme", "license", "licence", "copying", "notice", "changes", "changelog", "history", "authors", "contributing")
# Data of tests and lists for machines are no text; the sysconfig module holds paths of the machine that built Python.
_NOT_TEXT = re.compile(
    r"(^|/)(testdata|test_data|fixtures|__pycache__|idle_test|data/.*\.txt$|tests?/.*\.txt$|_sysconfigdata|"
    r"(top_level|entry_points|sources|installed-files|requirements[^/]*|dependency_links|namespace_packages)\.txt$)",
    re.IGNORECASE,
)
_STDLIB_SKIPPED = ("site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib", "_bundled")
_DOCSTRING = re.compile(r'^([ \t]*)[rRuU]{0,2}"""(.*?)"""', re.MULTILINE | re.DOTALL)


class Candidate(NamedTuple):
    """A file that may be taken. ``order`` is equal for copies of one file (vendored, or shipped twice), so they come or go together."""

    order: str
    uri: str
    path: str
    n_bytes: int
    licence: str | None
    is_code: bool


@dataclass(frozen=True)
class SampleSummary:
    """What is in the landing zone now. ``files`` are paths under it; ``written`` those whose content is new."""

    files: tuple[str, ...]
    written: tuple[str, ...]
    documents: dict[str, int]
    bytes: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{self.documents[source]:,} {source} documents ({self.bytes[source] / 1e6:.1f} MB)" for source in sorted(self.documents))
        return f"{parts} in {len(self.files)} files, {len(self.written)} of them new"


def write(landing: Path, days: Sequence[str], *, target_bytes: int = 42_000_000, progress: Callable[[float, float, str], None] | None = None) -> SampleSummary:
    """Put about ``target_bytes`` of text, a quarter of it documentation, into ``landing`` over ``days``.

    Each file appears whole (written beside, then renamed) and is left untouched when its content is already right.

    Raises:
        MoelineError: no or a malformed day, or less than half of ``target_bytes`` to be found on this machine.
    """
    days = [parse_day(day) for day in days]
    if not days or len(set(days)) != len(days):
        raise MoelineError(f"The sample needs distinct data days, found {list(days)}. Give at least one as YYYY-MM-DD.")
    report = progress or (lambda done, total, text: None)
    report(0, target_bytes, "listing installed distributions")
    parts: dict[tuple[str, str], list[bytes]] = {(source, day): [] for source in (CODE, DOCS) for day in days}
    documents, n_bytes = {CODE: 0, DOCS: 0}, {CODE: 0, DOCS: 0}
    for source, uri, licence, text in _documents(sorted(set(_candidates())), target_bytes):
        day = days[int(hashlib.sha256(f"day:{uri}".encode()).hexdigest()[:8], 16) % len(days)]
        parts[source, day].append(json.dumps({"licence": licence, "text": text, "uri": uri}, ensure_ascii=False).encode() + b"\n")
        documents[source] += 1
        n_bytes[source] += len(text.encode())
        if documents[source] % 200 == 0:
            report(sum(n_bytes.values()), target_bytes, "reading files")
    if sum(n_bytes.values()) < target_bytes / 2:
        raise MoelineError(
            f"The sample should hold about {target_bytes:,} bytes, the installed distributions give {sum(n_bytes.values()):,}. "
            "Run it with the environment of `make setup`, or ask for less."
        )
    files, written = [], []
    for (source, day), rows in sorted(parts.items()):
        file = landing / source / day / "part-0000.jsonl.zst"
        files.append(str(file.relative_to(landing)))
        if _replace_if_different(file, b"".join(rows)):
            written.append(files[-1])
    report(target_bytes, target_bytes, "sample corpus in place")
    return SampleSummary(tuple(files), tuple(written), documents, n_bytes)


def _replace_if_different(file: Path, content: bytes) -> bool:
    import zstandard

    packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True).compress(content)
    if file.is_file() and file.read_bytes() == packed:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")  # the landing zone ignores names that start with a dot
    try:
        unfinished.write_bytes(packed)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _documents(candidates: Sequence[Candidate], target_bytes: int) -> Iterator[tuple[str, str, str | None, str]]:
    """(source, uri, licence, text) of the sample: code in hash order, then texts, then long docstrings of the modules not taken."""
    code_left = target_bytes * (1 - _DOCS_SHARE)
    docs_left = target_bytes * _DOCS_SHARE
    not_taken = []
    for candidate in candidates:
        if candidate.is_code and code_left <= 0:
            not_taken.append(candidate)
            continue
        if not candidate.is_code and docs_left <= target_bytes * _DOCS_SHARE * (1 - _TEXTS_SHARE):
            continue
        text = _read(candidate)
        if text is None:
            continue
        if candidate.is_code:
            code_left -= len(text)
        else:
            docs_left -= len(text)
        yield CODE if candidate.is_code else DOCS, candidate.uri, candidate.licence, text
    for candidate in not_taken:
        if docs_left <= 0:
            return
        source_text = _read(candidate)
        for line, text in _docstrings(source_text or ""):
            docs_left -= len(text)
            yield DOCS, f"{candidate.uri}#L{line}", candidate.licence, text


def _read(candidate: Candidate) -> str | None:
    """The text of a file, None when it is gone or not UTF-8. Of METADATA only the long description counts."""
    try:
        text = Path(candidate.path).read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
    if candidate.path.endswith("METADATA"):
        text = text.partition("\n\n")[2]
    return text if len(text) >= _MIN_FILE_BYTES and "\0" not in text else None


def _docstrings(source_text: str) -> Iterator[tuple[int, str]]:
    """Long triple-quoted strings that stand on their own, dedented, with their line numbers."""
    from inspect import cleandoc

    for match in _DOCSTRING.finditer(source_text):
        if match.end() - match.start() >= _MIN_DOC_CHARS:
            text = cleandoc(match[2])
            if len(text) >= _MIN_DOC_CHARS:
                yield source_text.count("\n", 0, match.start()) + 1, text + "\n"


def _candidate(uri: str, relative: str, path: str, n_bytes: int, licence: str | None) -> Candidate | None:
    name = relative.rsplit("/", 1)[-1].lower()
    is_code = name.endswith(".py")
    is_text = name == "metadata" or name.endswith(_DOC_SUFFIXES) or name.split(".")[0] in _DOC_STEMS
    if not (is_code or is_text) or not _MIN_FILE_BYTES <= n_bytes <= _MAX_FILE_BYTES or _NOT_TEXT.search(relative):
        return None
    # The last two names: requests/adapters.py is the same in pip/_vendor/requests/adapters.py.
    copies = "/".join(relative.split("/")[-2:]) if is_code else f"{name}:{n_bytes}"
    return Candidate(hashlib.sha256(copies.encode()).hexdigest(), uri, path, n_bytes, licence, is_code)


def _candidates() -> Iterator[Candidate]:
    seen = set()
    for distribution in importlib.metadata.distributions():
        record, name = distribution.read_text("RECORD"), distribution.metadata["Name"]
        if record is None or name is None or name in seen or name == "moeline":
            continue
        seen.add(name)
        licence = spdx(distribution.metadata)
        prefix = f"pypi:{name}@{distribution.version}/"
        root = str(distribution.locate_file(""))
        for relative, _, size in csv.reader(record.splitlines()):
            if size.isdigit() and not relative.startswith(("/", "..")):
                found = _candidate(prefix + relative, relative, f"{root}/{relative}", int(size), licence)
                if found is not None:
                    yield found
    yield from _stdlib()


def _stdlib() -> Iterator[Candidate]:
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _STDLIB_SKIPPED]
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root).replace(os.sep, "/")
            if relative.endswith(".py"):
                found = _candidate(f"python:{platform.python_version()}/{relative}", relative, path, os.path.getsize(path), "PSF-2.0")
                if found is not None:
                    yield found


# Short License fields as people write them. Only what names one licence: a bare "BSD" or "GPL" stays unknown.
_SHORT_LICENCES = {
    "apache 2.0": "Apache-2.0", "apache-2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0", "apache 2": "Apache-2.0", "apache 2.0 license": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "apache license version 2.0": "Apache-2.0", "apache license v2.0": "Apache-2.0",
    "mit": "MIT", "mit license": "MIT", "the mit license": "MIT", "mit-0": "MIT-0", "isc": "ISC", "isc license": "ISC",
    "bsd-3-clause": "BSD-3-Clause", "bsd 3-clause license": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause", "bsd 3-clause": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause", "bsd 2-clause license": "BSD-2-Clause", "2-clause bsd license": "BSD-2-Clause",
    "psf-2.0": "PSF-2.0", "mpl-2.0": "MPL-2.0", "mpl 2.0": "MPL-2.0", "unlicense": "Unlicense", "zpl 2.1": "ZPL-2.1", "0bsd": "0BSD",
    "lgpl-3.0": "LGPL-3.0-only", "gpl-3.0": "GPL-3.0-only",
}  # fmt: skip
# Classifiers that name one licence (PEP 639, appendix "Mapping License Classifiers to SPDX Identifiers"); ambiguous ones are left out.
_CLASSIFIED = {
    "MIT License": "MIT", "MIT No Attribution License (MIT-0)": "MIT-0", "ISC License (ISCL)": "ISC", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The Unlicense (Unlicense)": "Unlicense", "Zope Public License": "ZPL-2.1", "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only", "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only", "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later", "zlib/libpng License": "Zlib",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
}  # fmt: skip


def spdx(metadata: importlib.metadata.PackageMetadata) -> str | None:
    """The SPDX expression a distribution states: License-Expression, else its one clear classifier or short License field, else None."""
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression).strip()
    short = _SHORT_LICENCES.get(next(iter((metadata.get("License") or "").strip().splitlines()), "").strip().lower())
    stated = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License :: ") and c != "License :: OSI Approved"]
    classified = {_CLASSIFIED.get(name) for name in stated}
    if short is not None:
        return short
    return classified.pop() if len(classified) == 1 else None


def progress_lines(say: Callable[[str], None]) -> Callable[[float, float, str], None]:
    """A progress callback for ``write`` that says one line every two seconds, with elapsed time and ETA."""
    started = time.monotonic()
    last = 0.0

    def tell(done: float, total: float, text: str) -> None:
        nonlocal last
        elapsed = time.monotonic() - started
        if elapsed - last < 2.0:
            return
        last = elapsed
        ending = f", ETA {elapsed * (total - done) / done:.0f} s" if done else ""
        say(f"[sample-data] {done / total if total else 0:4.0%} {elapsed:.0f} s{ending}  {text}")

    return tell


def act(arguments: argparse.Namespace, env: Environment, say: Callable[[str], None]) -> dict[str, Any]:
    """``moeline sample-data``: write the corpus for the days asked for, or those it was first made for."""
    from jobs import launch
    from jobs.services import landing

    if not 0 < arguments.megabytes < _MOST_MEGABYTES:  # NaN is not either
        raise MoelineError(f"{arguments.megabytes} MB of sample corpus were asked for. Ask for more than 0 and less than {_MOST_MEGABYTES:,}.")
    folder = landing.local(env)
    days = [parse_day(day) for day in arguments.day or launch.sample_days(env, arguments.days)]
    found = write(folder, days, target_bytes=int(arguments.megabytes * 1e6), progress=None if arguments.json else progress_lines(say))
    if not arguments.json:
        print(found)
    return {"days": days, "files": found.files, "written": found.written, "documents": found.documents, "bytes": found.bytes}
