"""Old runs leave Airflow's database: ``python -m infra.local.airflow_history BEFORE [--dry-run]``, in a process with Airflow's own settings.

By Airflow's own clean-up of its tables, which keeps the last scheduled run of each DAG. Never past the start of a run that is not over, however long it
waits for somebody's answer. Prints one line of JSON. Change here: which records are history. Not here: when they go (jobs/history.py).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import sys

# Of what Airflow can clean, what grows with runs. Not: its DAGs, their versions, and tokens that were called in.
TABLES = (
    "dag_run", "task_instance", "task_instance_history", "task_reschedule", "xcom", "log", "job", "asset_event", "import_error", "callback", "deadline",
    "trigger",
)  # fmt: skip


def clean(before: dt.datetime, *, dry_run: bool = False) -> dict[str, int | str]:
    """``before`` that was kept to (ISO 8601), and the number of ``runs`` that went (would go)."""
    import pendulum
    from airflow.models import DagRun
    from airflow.utils.db_cleanup import run_cleanup
    from airflow.utils.session import create_session
    from airflow.utils.state import State
    from sqlalchemy import func, select

    with create_session() as session:  # Airflow's clean-up takes what is as old as its limit, too
        unfinished = session.scalar(select(func.min(DagRun.start_date)).where(DagRun.state.in_(State.unfinished_dr_states)))
        until = before if unfinished is None else min(before, unfinished - dt.timedelta(microseconds=1))
        old = select(func.count()).select_from(DagRun).where(DagRun.start_date <= until)
        found = int(session.scalar(old) or 0)
    run_cleanup(
        clean_before_timestamp=pendulum.instance(until), table_names=list(TABLES), dry_run=dry_run, confirm=False, skip_archive=True,
        error_on_cleanup_failure=True,
    )  # fmt: skip
    if not dry_run:
        with create_session() as session:
            found -= int(session.scalar(old) or 0)
    return {"before": until.isoformat(), "runs": found}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=dt.datetime.fromisoformat)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args(argv)
    with contextlib.redirect_stdout(sys.stderr):  # Airflow tells what it does
        found = clean(arguments.before, dry_run=arguments.dry_run)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
