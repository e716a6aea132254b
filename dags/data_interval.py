"""The one place that turns any kind of Airflow run into the data day it is about. Standard library only.

Airflow gives different runs different dates (3.3, CronDataIntervalTimetable): scheduled and backfill runs of day D have the
interval [D, D+1); a manual run with logical date D has [D-1, D); manual runs without a logical date and asset-triggered runs
have no dates at all; partitioned runs have a key instead.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

ONE_DAY = dt.timedelta(days=1)


def resolve_interval(context: Mapping[str, Any]) -> str:
    """The data day (``YYYY-MM-DD``) of a run, from its task context.

    The partition key decides, else the data interval, else the ``interval`` parameter. A person who triggers a run by hand and
    fills in ``interval`` means that day, whatever logical date the form put there; for any other run a parameter that
    contradicts its dates is refused, because one parameter would send every day of a backfill to the same partition.
    Raises ValueError, saying what to pass, when the run names no day or not exactly one.
    """
    dated = _from_partition(context) or _from_data_interval(context)
    asked = (context.get("params") or {}).get("interval")
    if asked in (None, ""):
        if dated is None:
            raise ValueError(
                f"This {_run_type(context)} run has no data interval and names no data day. Trigger it again with the parameter "
                'interval, for example {"interval": "2026-01-31"}, or with a logical date (a manual run of date D covers the day before D).'
            )
        return dated
    day = _day(str(asked), "The parameter interval")
    if dated in (None, day) or _run_type(context) == "manual":
        return day
    raise ValueError(f"This {_run_type(context)} run covers {dated}, but its parameter interval says {day}. Leave interval empty: the run has its own date.")


def _run_type(context: Mapping[str, Any]) -> str:
    """``scheduled``, ``backfill``, ``manual`` or ``asset_triggered``."""
    run_type = getattr(context.get("dag_run"), "run_type", None)
    return str(getattr(run_type, "value", run_type) or "manual")


def _from_partition(context: Mapping[str, Any]) -> str | None:
    key = context.get("partition_key")
    # Daily partition keys are ISO dates or date-times, depending on the timetable's key format.
    return None if not key else _day(str(key)[:10], f"The partition key {key!r}")


def _from_data_interval(context: Mapping[str, Any]) -> str | None:
    start, end = context.get("data_interval_start"), context.get("data_interval_end")
    if start is None or end is None:
        return None
    start, end = start.astimezone(dt.UTC), end.astimezone(dt.UTC)
    if end - start != ONE_DAY or start.time() != dt.time(0):
        raise ValueError(
            f"This run covers {start.isoformat()} to {end.isoformat()}, not one UTC day. Give a manual run no interval of its own, "
            "use a backfill for several days, and schedule the DAG with CronDataIntervalTimetable (a plain cron string gives empty intervals)."
        )
    return start.date().isoformat()


def _day(text: str, what: str) -> str:
    try:
        return dt.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise ValueError(f"{what} is not a data day: {error}. Write it as YYYY-MM-DD.") from None
