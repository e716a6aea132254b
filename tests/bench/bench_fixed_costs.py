"""make bench: what a stage process costs before it has any data, on the engines of a running platform. Prints seconds; asserts nothing.

Quote ratios from one run on one machine. The first stage of a fresh Spark server warms its JVM, so the day is prepared twice and
the second one is what a data day costs.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time

from jobs.environment import REPO

STAGES = ("ingest", "clean", "deduplicate", "decontaminate", "pack", "summarise")


def document(day, number):
    """A dozen lines of code that no other document has."""
    names = [hashlib.sha256(f"{day}/{number}/{line}".encode()).hexdigest()[:9] for line in range(12)]
    return "".join(f"name_{name} = compute(first_{name[::-1]}, second_{name[2:]})\n" for name in names)


def seconds(env, stage, day):
    variables = {**os.environ, "MOELINE_HOME": str(env.home)}
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "jobs.run", stage, "--recipe", "smoke", "--interval", day], cwd=REPO, env=variables, check=True, capture_output=True)
    return time.monotonic() - started


def test_fixed_cost_of_each_stage(platform):
    days = ("2026-01-01", "2026-01-02")
    for day in days:
        folder = platform.landing / "python-code" / day
        folder.mkdir(parents=True)
        rows = [{"text": document(day, n), "uri": f"{day}/{n}"} for n in range(200)]
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"\n{'stage':<16}{'first day':>12}{'second day':>12}{'recorded':>12}   seconds")
    for stage in STAGES:
        print(f"{stage:<16}{seconds(platform, stage, days[0]):12.1f}{seconds(platform, stage, days[1]):12.1f}{seconds(platform, stage, days[1]):12.1f}")
