"""### Raw text of one day → packed training sequences

`ingest > clean > deduplicate > decontaminate > pack > summarise`, one run per data day. Each task is one stage process; what it writes is
checked before it becomes visible, and every try has its cost row.

* **Schedule:** daily, when unpaused. The run of day D starts after D has ended.
* **Backfill:** *Trigger → Backfill* here, or `moeline backfill --from 2026-01-01 --to 2026-01-31`. Days run in parallel; only
  deduplication takes its turn, because it compares with what the other days kept.
* **By hand:** a run with logical date D covers the day *before* D (Airflow's rule). Fill in `interval` to name the day yourself.
* **Again:** clearing a task re-runs it. Work already recorded for the same inputs is reused and costs nothing.

The last task, *summarise*, counts what became of every document of every source. Where the counts do not add up, the day is refused; else
it is announced on the asset `corpus`, from which `build_model` starts. `moeline statistics` shows the numbers.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, CronDataIntervalTimetable, Param
from stage_task import CORPUS, StageOperator, gauntlet_param, recipe_param

with DAG(
    dag_id="prepare_corpus",
    doc_md=__doc__,
    description="Raw text of one day to checked, deduplicated, packed training sequences",
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2020, 1, 1, tzinfo=UTC),  # how far back a backfill may go
    catchup=False,
    is_paused_upon_creation=True,
    max_active_runs=4,
    params={
        "recipe": recipe_param(),
        "interval": Param(None, type=["null", "string"], format="date", title="Data day", description="Only for runs by hand: the day to prepare."),
        "gauntlet_data": gauntlet_param(),
    },
    tags=["moeline", "data"],
):
    ingest = StageOperator(task_id="ingest", dated=True)
    clean = StageOperator(task_id="clean", dated=True)
    # One at a time over all days: which of two near-duplicates is kept depends on what the other days have kept so far.
    deduplicate = StageOperator(task_id="deduplicate", dated=True, max_active_tis_per_dag=1)
    decontaminate = StageOperator(task_id="decontaminate", dated=True)
    pack = StageOperator(task_id="pack", dated=True)
    summarise = StageOperator(task_id="summarise", dated=True, outlets=[CORPUS])

    ingest >> clean >> deduplicate >> decontaminate >> pack >> summarise
