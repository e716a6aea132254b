"""One timed run of moeline's preparation in a process of its own (bench_prepare.py): JSON lines in, the tables of ingest, clean and deduplicate out.

Usage: prepare_ours.py LANDING OUT RULES (JSON: source -> rule sets). Prints a mark, a JSON line, at the end of every step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stages"))
from folder_tools import FolderTools

from jobs.config import CleanConfig, DeduplicateConfig, IngestConfig
from jobs.environment import Environment
from jobs.inputs import LandedFile
from jobs.stages import clean, deduplicate, ingest

DAY = "2026-11-01"


def mark(step: str, **more: Any) -> None:
    print(json.dumps({"step": step, "at": time.time(), **more}), flush=True)


def main(landing: Path, out: Path, rule_sets: dict[str, list[str]]) -> None:
    from jobs.services.spark import session

    spark = session(Environment.load("local", home=out / "home"), "bench-prepare")
    mark("start")
    tools = FolderTools(out / "tools", spark, interval=DAY)

    def run(stage: Any, config: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        output = stage.run(config, inputs, tools)
        written = {}
        for name, frame in output.tables.items():
            frame.write.parquet(str(out / name))
            written[name] = spark.read.parquet(str(out / name))
        mark(stage.__name__.rsplit(".", 1)[-1], metrics=output.metrics)
        return written

    files = [LandedFile(str(path), path.parent.parent.name, str(path.relative_to(landing)), DAY, "") for path in sorted(landing.glob("*/*/*.jsonl"))]
    documents = run(ingest, IngestConfig(), {"landing": files})
    # Redaction is nothing that datatrove's filters do; moeline's normalising stays on.
    rules = (*((source, tuple(names)) for source, names in sorted(rule_sets.items())), ("*", ()))
    config = CleanConfig(rules=rules, redact=())
    cleaned = run(clean, config, {"documents": documents["documents"]})
    run(deduplicate, DeduplicateConfig(bands=14, rows=8, shingle_words=5), {"clean_documents": cleaned["clean_documents"]})
    jvm = spark.sparkContext._gateway.proc
    spark.stop()
    jvm.stdin.close()
    jvm.wait(timeout=60)
    mark("stop")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
