"""make bench-prepare: quality filters and MinHash deduplication here and by datatrove 0.10.1, on the same files under the same rules.

The corpus is real text every machine with moeline has: source code, READMEs and long docstrings of the installed distributions, each file
once. Both systems read it as JSON lines, judge it (code by Gopher's rules, documentation also by FineWeb's), find near duplicates
(5-word shingles, 14 bands of 8 rows) and write what stays, with 2 workers. moeline also ingests, records every score of every
document and verifies every pair it drops; datatrove stops at a document's first broken rule. A figure per core is bytes of the corpus over
the CPU seconds of all processes of a run, so that other work on the machine does not count; wall time is shown beside it.

BENCH_PREPARE_MB (300): size; a tenth of it is run too, for growth. BENCH_PREPARE_ROUNDS (1): how often the two take turns.
BENCH_DATATROVE_PYTHON: an interpreter with datatrove (else one is made in build/). Writes build/bench_prepare.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from jobs import sample_data
from jobs.minhash import WordHashes, jaccard, shingles
from jobs.stages.rules.normalise import normalise

REPO = Path(__file__).resolve().parents[2]
MB = float(os.environ.get("BENCH_PREPARE_MB", "300"))
ROUNDS = int(os.environ.get("BENCH_PREPARE_ROUNDS", "1"))
HERE = Path(__file__).parent
OUT = REPO / "build" / "bench_prepare.json"
DAY = "2026-11-01"
RULES = {sample_data.CODE: ["gopher_quality", "gopher_repetition"], sample_data.DOCS: ["gopher_quality", "gopher_repetition", "fineweb"]}
# What datatrove's reader, filters and MinHash import; the pins are what was measured.
DATATROVE = ("datatrove==0.10.1", "spacy==3.8.18", "orjson==3.13.0", "regex", "xxhash<4", "tokenizers", "fasteners")
FILES = 8  # per source and size, so that two workers share them evenly
MIN_JACCARD = 0.7


def texts(target: float) -> Iterator[tuple[str, str, str]]:
    """(source, uri, text): READMEs and the like, code in hash order, long docstrings of modules whose code is not taken; then more code."""
    candidates = sorted(set(sample_data._candidates()))
    files = {candidate.uri: candidate for candidate in candidates}
    code = [candidate for candidate in files.values() if candidate.is_code]
    left = target
    for candidate in (candidate for candidate in files.values() if not candidate.is_code):
        if left > 0.9 * target and (text := sample_data._read(candidate)) is not None:
            left -= len(text.encode())
            yield sample_data.DOCS, candidate.uri, text
    at = 0
    while at < len(code) and left > 0.1 * target:
        if (text := sample_data._read(code[at])) is not None:
            left -= len(text.encode())
            yield sample_data.CODE, code[at].uri, text
        at += 1
    unused = []
    for candidate in code[at:]:
        if left <= 0:
            return
        found = list(sample_data._docstrings(sample_data._read(candidate) or ""))
        unused += [] if found else [candidate]
        for line, text in found:
            left -= len(text.encode())
            yield sample_data.DOCS, f"{candidate.uri}#L{line}", text
    for candidate in unused:
        if left > 0 and (text := sample_data._read(candidate)) is not None:
            left -= len(text.encode())
            yield sample_data.CODE, candidate.uri, text


def corpus(landing: Path, target: float) -> dict[str, Any]:
    """JSON lines under ``landing``/<source>/<day>; how many documents and bytes of text they hold."""
    documents, n_bytes = Counter(), Counter()
    handles: dict[tuple[str, int], Any] = {}
    for source, uri, text in texts(target):
        part = (source, documents[source] % FILES)
        if part not in handles:
            folder = landing / source / DAY
            folder.mkdir(parents=True, exist_ok=True)
            handles[part] = (folder / f"part-{part[1]:04d}.jsonl").open("w")
        handles[part].write(json.dumps({"uri": uri, "text": text}, ensure_ascii=False) + "\n")
        documents[source] += 1
        n_bytes[source] += len(text.encode())
    for handle in handles.values():
        handle.close()
    return {"documents": dict(documents), "bytes": dict(n_bytes), "mb": sum(n_bytes.values()) / 1e6}


class Watched:
    """CPU seconds and peak memory (proportional set size, so shared pages count once) of a process and all its descendants."""

    def __init__(self, pid: int):
        self.root = psutil.Process(pid)
        self.cpu: dict[tuple[int, float], float] = {}
        self.seen: list[tuple[float, float]] = []
        self.peak_mb = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        turn = 0
        while not self._ended.wait(0.2):
            memory = 0
            for process in self._tree():
                try:
                    spent = process.cpu_times()
                    self.cpu[process.pid, process.create_time()] = spent.user + spent.system
                    memory += process.memory_full_info().pss if turn % 5 == 0 else 0
                except (psutil.Error, OSError):
                    continue
            turn += 1
            self.peak_mb = max(self.peak_mb, memory / 1e6)
            self.seen.append((time.time(), sum(self.cpu.values())))

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self.root, *self.root.children(recursive=True)]
        except psutil.Error:
            return []

    def cpu_at(self, when: float) -> float:
        return max((spent for at, spent in self.seen if at <= when), default=0.0)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def timed(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Runs a child to its end: wall and CPU seconds in all and by its marks, and its peak memory."""
    began = time.time()
    with tempfile.TemporaryFile() as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True) as child:
        watched = Watched(child.pid)
        marks = [json.loads(line) for line in child.stdout if line.startswith('{"step"')]
        code = child.wait()
        ended = time.time()
        watched.stop()
        if code:
            errors.seek(0)
            pytest.fail(f"{command[1]} ended with {code}:\n{errors.read().decode(errors='replace')[-4000:]}")
    steps, before = {}, began
    for found in marks:
        steps[found["step"]] = {"wall": found["at"] - before, "cpu": watched.cpu_at(found["at"]) - watched.cpu_at(before), "metrics": found.get("metrics")}
        before = found["at"]
    return {"wall": ended - began, "cpu": sum(watched.cpu.values()), "peak_mb": watched.peak_mb, "steps": steps}


def datatrove_python() -> str:
    if given := os.environ.get("BENCH_DATATROVE_PYTHON"):
        return given
    folder = REPO / "build" / "datatrove-env"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *DATATROVE], check=True)
        (folder / "complete").touch()
    return str(folder / "bin" / "python")


def clean_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_ours(landing: Path, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    return timed([sys.executable, str(HERE / "prepare_ours.py"), str(landing), str(out), json.dumps(RULES)], clean_environment())


def run_datatrove(landing: Path, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    return timed([datatrove_python(), str(HERE / "prepare_datatrove.py"), "run", str(landing), str(out), json.dumps(RULES)], clean_environment())


def rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in sorted(files):
        with file.open(encoding="utf-8", newline="\n") as lines:
            yield from map(json.loads, lines)


def asked(*arguments: str) -> list[dict[str, Any]]:
    """JSON lines that datatrove's side prints."""
    command = [datatrove_python(), str(HERE / "prepare_datatrove.py"), *arguments]
    done = subprocess.run(command, env=clean_environment(), check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"id"')]


def differences(landing: Path, ours: Path, theirs: Path) -> dict[str, Any]:
    """Documents on which the filters differ, by the definition that explains it; the same for deduplication of what both filters keep."""
    import pyarrow.parquet as pq

    source_of = {row["uri"]: file.parent.parent.name for file in landing.glob("*/*/*.jsonl") for row in rows([file])}
    ids = pq.read_table(ours / "documents", columns=["doc_id", "uri"]).to_pydict()
    uri_of = dict(zip(ids["doc_id"], ids["uri"], strict=True))
    cleaned = {uri_of[i] for i in pq.read_table(ours / "clean_documents", columns=["doc_id"])["doc_id"].to_pylist()}
    kept = {row["id"] for row in rows((theirs / "kept").rglob("*.jsonl"))}
    cases = theirs / "cases.jsonl"
    with cases.open("w") as out:
        for row in rows(landing.glob("*/*/*.jsonl")):
            if (row["uri"] in cleaned) != (row["uri"] in kept):
                out.write(json.dumps({**row, "source": source_of[row["uri"]], "normalised": normalise(row["text"], is_code=False)}) + "\n")
    filtered = Counter(row["definition"] for row in asked("explain", str(cases), json.dumps(RULES)))
    return {
        "documents": len(uri_of),
        "filters": {"ours": len(cleaned), "datatrove": len(kept), "both": len(cleaned & kept), "differ": dict(filtered)},
        "dedup": dedup_differences(ours, theirs, uri_of, cleaned & kept),
    }


def dedup_differences(ours: Path, theirs: Path, uri_of: dict[str, str], both: set[str]) -> dict[str, Any]:
    import pyarrow.parquet as pq

    found = pq.read_table(ours / "duplicates", columns=["doc_id", "kept_doc_id", "scope"]).to_pylist()
    dropped = {uri_of[row["doc_id"]]: row | {"kept": uri_of[row["kept_doc_id"]]} for row in found}
    chosen = {row["kept"] for row in dropped.values()}
    named = {row["id"]: row for row in asked("clusters", str(theirs))}
    members: dict[int, list[str]] = {}
    for uri, row in named.items():
        if row["cluster"] != -1:
            members.setdefault(row["cluster"], []).append(uri)
    table = pq.read_table(ours / "clean_documents", columns=["doc_id", "text"])
    place = {uri_of[doc_id]: at for at, doc_id in enumerate(table["doc_id"].to_pylist())}
    known = WordHashes()

    def shingle_set(uri: str) -> Any:
        return shingles(table["text"][place[uri]].as_py(), 5, known)

    def similar(uri: str) -> bool:
        own = shingle_set(uri)
        return any(jaccard(own, shingle_set(other)) >= MIN_JACCARD for other in members[named[uri]["cluster"]] if other != uri and other in place)

    def reason(uri: str) -> str:
        if uri not in dropped:  # datatrove drops it
            if uri in chosen:
                return "survivor: the longest copy is kept, not the first"
            return "star: no copy of it is kept, or the filters differ on it" if similar(uri) else "verified: no copy of its cluster has a similarity of 0.7"
        row = dropped[uri]
        if row["kept"] not in named:
            return "filters: the copy it is dropped for is not in datatrove's input"
        if named[uri]["cluster"] != -1:
            return "survivor: the longest copy is kept, not the first"
        return "exact: shorter than a shingle" if row["scope"] == "exact" and not len(shingle_set(uri)) else "draw: other hash functions and other words"

    removed = {uri for uri, row in named.items() if not row["kept"]}
    differ = Counter(reason(uri) for uri in sorted(both) if (uri in dropped) != (uri in removed))
    return {"both": len(both), "dropped": {"ours": len(both & dropped.keys()), "datatrove": len(both & removed)}, "differ": dict(differ)}


def shown(name: str, run: dict[str, Any], mb: float) -> str:
    steps = ", ".join(f"{step} {part['cpu']:.0f}" for step, part in run["steps"].items())
    start = run["steps"]["start"]
    return (
        f"  {name:10} {mb / run['cpu']:6.2f} MB/s per core; wall {run['wall']:.0f} s, CPU {run['cpu']:.0f} s, peak {run['peak_mb']:.0f} MB; "
        f"start-up {start['wall']:.1f} s wall, {start['cpu']:.1f} CPU; CPU by step: {steps}"
    )


def test_prepare_beside_datatrove(tmp_path: Path) -> None:
    root = Path(os.environ.get("BENCH_PREPARE_FOLDER", tmp_path))
    sizes = {name: corpus(root / name, target * 1e6) for name, target in (("small", MB / 10), ("whole", MB))}
    mb = sizes["whole"]["mb"]
    print(f"\n{mb:.0f} MB in {sum(sizes['whole']['documents'].values()):,} documents, every file once: {sizes['whole']['documents']}")
    runs: dict[str, list[dict[str, Any]]] = {"small": [], "ours": [], "datatrove": []}
    for _ in range(ROUNDS):
        for name, start, landing in (("small", run_ours, "small"), ("ours", run_ours, "whole"), ("datatrove", run_datatrove, "whole")):
            runs[name].append(start(root / landing, root / f"{name}-out"))
            print(shown(name, runs[name][-1], sizes[landing]["mb"]), flush=True)
    best = {name: min(found, key=lambda run: run["cpu"]) for name, found in runs.items()}
    growth = {key: best["ours"][key] / best["small"][key] for key in ("wall", "cpu", "peak_mb")} | {"data": mb / sizes["small"]["mb"]}
    ratios = {key: best["datatrove"][key] / best["ours"][key] for key in ("wall", "cpu", "peak_mb")}
    print(f"datatrove / moeline: {ratios['cpu']:.2f} x CPU seconds, {ratios['wall']:.2f} x wall, {ratios['peak_mb']:.2f} x peak memory")
    print(f"{growth['data']:.1f} x the data: {growth['wall']:.2f} x wall, {growth['cpu']:.2f} x CPU, {growth['peak_mb']:.2f} x peak memory")
    compared = differences(root / "whole", root / "ours-out", root / "datatrove-out")
    print(json.dumps(compared, indent=1))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"sizes": sizes, "runs": runs, "ratios": ratios, "growth": growth, "verdicts": compared}, indent=1))
    assert "unexplained" not in compared["filters"]["differ"]
