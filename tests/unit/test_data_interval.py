"""One resolver turns every kind of Airflow run into its data day."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest

from dags.data_interval import resolve_interval


def at(day: str, hour: int = 0) -> dt.datetime:
    return dt.datetime.fromisoformat(day).replace(hour=hour, tzinfo=dt.UTC)


def context(run_type: str, interval: tuple[dt.datetime, dt.datetime] | None = None, **rest: Any) -> dict[str, Any]:
    """What Airflow 3.3 puts into a task's context: runs without dates have no such keys at all."""
    found: dict[str, Any] = {"dag_run": SimpleNamespace(run_type=run_type), "params": {"interval": None}, **rest}
    if interval is not None:
        found |= {"data_interval_start": interval[0], "data_interval_end": interval[1]}
    return found


@pytest.mark.parametrize("run_type", ["scheduled", "backfill"])
def test_scheduled_and_backfill_runs_cover_the_day_their_interval_starts(run_type: str) -> None:
    assert resolve_interval(context(run_type, (at("2026-11-20"), at("2026-11-21")))) == "2026-11-20"


def test_a_manual_run_with_a_logical_date_covers_the_interval_airflow_gave_it() -> None:
    # Airflow infers [D-1, D) for logical date D; the resolver follows the interval, not the logical date.
    run = context("manual", (at("2026-11-19"), at("2026-11-20")), logical_date=at("2026-11-20"))
    assert resolve_interval(run) == "2026-11-19"


def test_a_manual_run_without_dates_covers_its_parameter() -> None:
    assert resolve_interval(context("manual", params={"interval": "2026-11-20"})) == "2026-11-20"


def test_a_person_who_names_a_day_by_hand_gets_that_day() -> None:
    run = context("manual", (at("2026-11-22"), at("2026-11-23")), params={"interval": "2026-11-05"})
    assert resolve_interval(run) == "2026-11-05"


def test_a_partitioned_run_covers_its_key() -> None:
    assert resolve_interval(context("scheduled", partition_key="2026-11-20")) == "2026-11-20"
    assert resolve_interval(context("scheduled", partition_key="2026-11-20T00:00:00")) == "2026-11-20"


@pytest.mark.parametrize("run_type", ["manual", "asset_triggered"])
def test_a_run_without_any_date_is_told_what_to_pass(run_type: str) -> None:
    with pytest.raises(ValueError, match=rf"{run_type} run.*interval") as refused:
        resolve_interval(context(run_type))
    assert '{"interval": "2026-01-31"}' in str(refused.value)


@pytest.mark.parametrize("run_type", ["backfill", "scheduled"])
def test_one_parameter_cannot_send_all_days_of_a_backfill_to_the_same_day(run_type: str) -> None:
    with pytest.raises(ValueError, match=r"2026-11-20.*2026-11-05.*Leave interval empty"):
        resolve_interval(context(run_type, (at("2026-11-20"), at("2026-11-21")), params={"interval": "2026-11-05"}))


def test_a_parameter_that_repeats_the_runs_own_day_is_fine() -> None:
    assert resolve_interval(context("backfill", (at("2026-11-20"), at("2026-11-21")), params={"interval": "2026-11-20"})) == "2026-11-20"


@pytest.mark.parametrize(
    "interval",
    [
        (at("2026-11-20"), at("2026-11-20")),  # a plain cron string
        (at("2026-11-20"), at("2026-11-23")),  # several days
        (at("2026-11-20", 6), at("2026-11-21", 6)),  # parts of two days
    ],
)
def test_an_interval_that_is_not_one_utc_day_is_refused(interval: tuple[dt.datetime, dt.datetime]) -> None:
    with pytest.raises(ValueError, match="not one UTC day"):
        resolve_interval(context("scheduled", interval))


def test_intervals_in_another_timezone_are_read_as_utc() -> None:
    zone = dt.timezone(dt.timedelta(hours=-5))
    interval = (at("2026-11-20").astimezone(zone), at("2026-11-21").astimezone(zone))
    assert resolve_interval(context("scheduled", interval)) == "2026-11-20"


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "20261120x", "2026-11-20; rm -rf /"])
def test_a_parameter_that_is_no_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="YYYY-MM-DD"):
        resolve_interval(context("manual", params={"interval": text}))
