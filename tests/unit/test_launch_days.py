"""Which days `moeline run` prepares: the same ones every time, the user's own when there are some."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from jobs import launch
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import landing


def land(env: Environment, source: str, day: str, name: str = "part.jsonl") -> None:
    folder = env.landing / source / day
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")


def test_sample_days_are_the_days_before_today(env: Environment) -> None:
    today = dt.datetime.now(dt.UTC).date()
    assert launch.sample_days(env, 3) == [(today - dt.timedelta(days=back)).isoformat() for back in (3, 2, 1)]


def test_sample_days_stay_the_same_on_another_date(env: Environment) -> None:
    chosen = launch.sample_days(env, 2)
    file = env.home / "sample_days.json"
    older = [(dt.date.fromisoformat(day) - dt.timedelta(days=100)).isoformat() for day in chosen]
    file.write_text(json.dumps(older))  # as if the first `make run` had been 100 days ago
    assert launch.sample_days(env, 2) == older


def test_no_days_at_all_is_refused(env: Environment) -> None:
    with pytest.raises(MoelineError, match="at least one"):
        launch.sample_days(env, 0)


def test_data_that_has_landed_is_used_instead_of_the_sample_corpus(env: Environment) -> None:
    said: list[str] = []
    for day in ("2026-01-05", "2026-01-06", "2026-01-09"):
        land(env, "books", day)
    assert launch._landed_days(env, 2, said.append) == ["2026-01-06", "2026-01-09"]
    assert said == []
    assert launch._landed_days(env, 9, said.append) == ["2026-01-05", "2026-01-06", "2026-01-09"]
    assert "the landing zone has 3" in said[0]


def test_files_still_being_written_and_other_folders_are_no_data(env: Environment) -> None:
    land(env, "books", "2026-01-05", ".part.jsonl.tmp")
    land(env, "books", "notes")
    (env.landing / "books" / "2026-01-07").mkdir()
    assert landing.days(env) == []


@pytest.mark.parametrize(
    ("days", "spans"),
    [
        (["2026-01-05"], [["2026-01-05"]]),
        (["2026-02-27", "2026-02-28", "2026-03-01"], [["2026-02-27", "2026-02-28", "2026-03-01"]]),
        (["2026-01-05", "2026-01-07", "2026-01-08"], [["2026-01-05"], ["2026-01-07", "2026-01-08"]]),
    ],
)
def test_a_backfill_never_covers_a_day_without_data(days: list[str], spans: list[list[str]]) -> None:
    assert launch._spans(days) == spans


def test_a_backfill_that_ends_before_it_begins_is_refused_without_asking_airflow(env: Environment) -> None:
    with pytest.raises(MoelineError, match="Swap --from and --to"):
        launch.day_range("2026-01-05", "2026-01-01")


def test_without_a_platform_both_commands_say_how_to_start_it(env: Environment) -> None:
    with pytest.raises(MoelineError, match="moeline up"):
        launch.run(env, "tiny", 1, echo=print)
    with pytest.raises(MoelineError, match="moeline up"):
        launch.backfill(env, ["2026-01-05"], echo=print)


def test_an_unknown_recipe_is_refused_before_anything_starts(env: Environment) -> None:
    with pytest.raises(MoelineError, match="Unknown recipe 'gigantic'"):
        launch.run(env, "gigantic", 1, echo=print)


@pytest.mark.parametrize(
    ("had", "asked", "other"),
    [
        ({"recipe": "tiny"}, {"recipe": "tiny"}, False),
        (None, {"recipe": "tiny"}, False),  # a scheduled run has no conf and takes the form's default
        ({"recipe": "smoke"}, {"recipe": "tiny"}, True),
        ({"recipe": "tiny"}, {"recipe": "tiny", "gauntlet_data": "/data"}, True),
        ({"recipe": "tiny", "interval": None}, {"recipe": "tiny"}, False),
    ],
)
def test_a_day_prepared_for_another_recipe_is_prepared_again(had: dict | None, asked: dict, other: bool) -> None:
    assert launch._other_work({"conf": had}, asked) is other
