"""Prepare one data day on the Spark master given: python stages_on_spark.py MASTER DAY, with MOELINE_HOME set.

A process of its own, because a Spark session is one per process. The last line of stdout is JSON: the tasks every executor ran.
"""

from __future__ import annotations

import json
import sys
import time

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


def main(master: str, day: str) -> None:
    env, recipe = Environment.load("local"), recipes.load("smoke")
    conf = {**spark.spark_conf(env), "spark.master": master, **(CLUSTER if master.startswith("spark:") else {})}
    spark.spark_conf = lambda env: conf
    session = spark.session(env, "moeline")
    stop, type(session).stop = type(session).stop, lambda session: None  # a stage ends the session of its process: here four stages share it
    for stage in STAGES:
        started = time.monotonic()
        run.run_stage(env, stage, recipe, interval=day)
        print(f"{stage}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    executors = session.sparkContext._jsc.sc().statusStore().executorList(True)
    tasks = {executors.apply(i).id(): executors.apply(i).totalTasks() for i in range(executors.size())}
    stop(session)
    print(json.dumps(tasks))


if __name__ == "__main__":
    main(*sys.argv[1:])
