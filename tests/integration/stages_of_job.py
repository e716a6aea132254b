"""Prepare data days and build a model in one process, on its own Spark and Ray: python stages_of_job.py ENV.toml HOME RECIPE DAY [DAY ...].

One process, because every one would start a JVM; that is all it has in advance of `moeline stage`, one after the other.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from jobs import recipes, run
from jobs.config import BUILD_STAGES, PREPARE_STAGES
from jobs.environment import Environment
from jobs.services import spark


def main(toml: str, home: str, recipe: str, *days: str) -> None:
    from pyspark.sql import SparkSession

    env, asked = Environment.load(toml, Path(home)), recipes.load(recipe)
    spark.session(env, "moeline")
    SparkSession.stop = lambda session: None  # a stage ends the session of its process
    for stage, day in [*((stage, day) for day in days for stage in PREPARE_STAGES), *((stage, None) for stage in BUILD_STAGES)]:
        started = time.monotonic()
        run.run_stage(env, stage, asked, interval=day)
        print(f"{stage} {day or ''}: {time.monotonic() - started:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
