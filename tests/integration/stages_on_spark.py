"""Prepare one data day on one Spark master after another: python stages_on_spark.py DAY MASTER HOME [MASTER HOME ...].

A process of its own, because a process has one Spark. The last line of stdout is JSON: the tasks every executor of each master ran.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from jobs import recipes, run
from jobs.environment import Environment
from jobs.services import spark

STAGES = ("ingest", "clean", "deduplicate", "decontaminate")
CLUSTER = {  # settings a standalone cluster needs besides the platform's own
    "spark.executor.cores": "1",
    "spark.executor.memory": "700m",
    "spark.cores.max": "2",
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
}


def prepared(master: str, env: Environment, day: str) -> dict[str, int]:
    """Run the stages; returns the number of tasks by executor."""
    from pyspark.sql import SparkSession

    # A local Spark makes a secret of its own, which the same JVM would then show to the cluster.
    conf = {**spark_conf(env), **CLUSTER, "spark.master": master, "spark.authenticate": str(master.startswith("spark:")).lower()}
    spark.spark_conf = lambda env: conf
    session = spark.session(env, "moeline")
    assert session.sparkContext.master == master
    SparkSession.stop = lambda session: None  # a stage ends the session of its process: here four stages share it
    for stage in STAGES:
        started = time.monotonic()
        run.run_stage(env, stage, recipes.load("smoke"), interval=day)
        print(f"{stage} on {master}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    executors = session.sparkContext._jsc.sc().statusStore().executorList(True)
    tasks = {executors.apply(i).id(): executors.apply(i).totalTasks() for i in range(executors.size())}
    SparkSession.stop = stop
    session.stop()
    return tasks


if __name__ == "__main__":
    from pyspark.sql import SparkSession

    spark_conf, stop = spark.spark_conf, SparkSession.stop
    day, *places = sys.argv[1:]
    pairs = zip(places[::2], places[1::2], strict=True)
    print(json.dumps([prepared(master, Environment.load("local", Path(home)), day) for master, home in pairs]))
