"""The figures a decision is made with, in a real browser: they show what the ledger and the forecasts hold, filtered or not, on a phone and by keyboard."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from builds import Build, forecast_only, hostile, write

from jobs import decision, published_models
from jobs.environment import Environment
from jobs.services import delta, results

HOSTILE = "=cmd|'/c x'!A1<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Two champions in a row, a build that lost against the first, two recipes that wait, and a killed try."""
    env = Environment.load("local", tmp_path_factory.mktemp("decisions"))
    write(env, Build(1, accuracy=0.40, loss=4.2, core_hours=1.0, promoted=True))
    write(env, Build(2, accuracy=0.35, loss=4.4, core_hours=2.0, recipe="other"))
    write(env, Build(3, accuracy=0.55, loss=3.6, core_hours=8.0, wasted_hours=2.0, promoted=True))
    forecast_only(env, Build(5, accuracy=0.60, loss=3.0, core_hours=9.0, recipe="next-one"))
    forecast_only(env, Build(6, accuracy=0.30, loss=5.0, core_hours=9.0, recipe="worse-one"))
    return env


@pytest.fixture
def address(warehouse: Environment, page_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MOELINE_HOME", str(warehouse.home))
    return page_server


def opened(page: Any, address: str) -> Any:
    page.goto(address, wait_until="load")
    page.wait_for_selector("main[aria-busy=false]")
    return page


def usd(value: float) -> str:
    return f"${value:,.2f}" if abs(value) >= 1 else f"${value:.4f}"


def drawn(page: Any) -> dict[tuple[str, str], float]:
    found = page.locator("#cost-by-phase-over-time rect[data-usd]").evaluate_all(
        "all => all.map(r => [r.parentNode.dataset.bucket, r.dataset.phase, Number(r.dataset.usd)])"
    )
    return {(bucket, phase): dollars for bucket, phase, dollars in found}


def charged(env: Environment, **wanted: str) -> dict[tuple[str, str], Any]:
    total: dict[tuple[str, str], float] = {}
    for row in delta.rows(env, "costs"):
        if all(row[column] == value for column, value in wanted.items()):
            key = (row["ChargePeriodStart"].date().isoformat(), row["x_Phase"])
            total[key] = total.get(key, 0.0) + row["BilledCost"]
    return {key: pytest.approx(dollars) for key, dollars in total.items()}


def table(address: str, name: str, **query: str) -> list[dict[str, str]]:
    answer = httpx.get(address.replace("/page", "/api/figure.csv"), params={"name": name, **query}, trust_env=False)
    assert answer.status_code == 200 and "attachment" in answer.headers["content-disposition"]
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


def test_money_by_day_and_phase_is_the_ledgers_and_follows_the_filter(warehouse: Environment, address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)
    assert drawn(page) == charged(warehouse)
    page.get_by_label("Recipe", exact=True).focus()
    page.get_by_label("Recipe", exact=True).select_option("other")
    assert drawn(page) == charged(warehouse, x_Recipe="other")
    assert page.locator("#all-runs-as-a-table tbody tr").count() == page.locator("#runs g.point").count() == 1
    assert page.evaluate("document.activeElement.dataset.keep") == "filter-recipe"  # the keyboard stays where it was
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("From", exact=True).fill("2026-11-03")
    assert drawn(page) == {key: dollars for key, dollars in charged(warehouse).items() if key[0] >= "2026-11-03"}
    assert {run[:10] for run in page.locator("#all-runs-as-a-table tbody tr").all_inner_texts()} == {f"2026-11-0{day}" for day in (3, 4, 6, 7)}
    page.get_by_label("To", exact=True).fill("2026-11-01")
    assert page.locator("#runs g.point").count() == 0 and "No charge" in page.locator("#cost-by-phase-over-time").inner_text()


def test_a_point_gained_costs_what_run_and_champion_say(warehouse: Environment, address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)
    words = page.locator("#cost-per-point-gained g.gain").evaluate_all("all => all.map(g => g.getAttribute('aria-label'))")
    best = next(r for r in decision.figures(warehouse)["runs"] if r["model_version"] == "3")
    half = 1.959964 * 100 * (2 * 0.02**2) ** 0.5
    assert len(words) == 2  # the first had no champion before it
    assert (
        f"+15.0 points over champion v1 (95 %: +{15 - half:.1f} to +{15 + half:.1f}), {usd(best['cost_usd'])}: {usd(best['cost_usd'] / 15)} a point" in words[0]
    )
    assert "\N{MINUS SIGN}5.0 points over champion v1" in words[1] and "nothing gained" in words[1]


def test_what_to_train_next_is_on_the_predicted_front_and_its_command_runs_it(warehouse: Environment, address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#what-to-train-next tbody tr").all()]
    (first, second), found = rows, decision.figures(warehouse)["next"]
    assert first[0] == "next-one" and first[5] == "on the front" and first[2].startswith(usd(found[0]["cost_usd"]))
    assert first[3].startswith("+11.0 (") and first[4] == usd(found[0]["cost_usd"] / 11)  # forecast 66 %, the champion has 55 %
    assert second[0] == "worse-one" and second[4] == "nothing gained" and second[5] == "dominated"
    assert page.locator("#what-to-train-next code").inner_text() == "moeline run --recipe next-one"
    assert page.locator("#runs g.waiting").evaluate_all("all => all.map(g => g.dataset.recipe)") == ["next-one", "worse-one"]


def test_the_selected_runs_forecast_is_joined_to_its_outcome(warehouse: Environment, address: str, open_page: Callable[..., Any]) -> None:
    run = next(r for r in decision.figures(warehouse)["runs"] if r["model_version"] == "3")
    page = opened(open_page(), f"{address}?run={run['run_id'].replace('+', '%2B')}")
    words = page.locator("#runs g.forecast-point:not(.waiting)").get_attribute("aria-label")
    assert f"Accuracy: 60.5 %, became 55.0 %, Cost: {usd(run['cost_usd'] + 0.1 * 8 * 0.045)}, became {usd(run['cost_usd'])}" in words
    line = page.locator("#runs g.forecast-point:not(.waiting) line").evaluate("l => [l.x2.baseVal.value, l.y2.baseVal.value]")
    mark = page.locator(f'#runs g.point[data-run="{run["run_id"]}"] .hit').evaluate("c => [c.cx.baseVal.value, c.cy.baseVal.value]")
    assert line == pytest.approx(mark)


def test_wasted_budget_and_calibration(warehouse: Environment, address: str, open_page: Callable[..., Any]) -> None:
    page, found = opened(open_page(), address), decision.figures(warehouse)
    lost = sum(row["BilledCost"] for row in delta.rows(warehouse, "costs") if row["x_Outcome"] == "killed")
    every = sum(row["BilledCost"] for row in delta.rows(warehouse, "costs"))
    assert f"{usd(lost)}, {100 * lost / every:.1f} % of these charges" in page.locator("#wasted-dollars").inner_text()
    assert [row.locator("td").nth(4).inner_text() for row in page.locator("#wasted-dollars tbody tr").all()] == [usd(lost)]
    shown = page.locator("#forecast-calibration g.coverage").evaluate_all("all => all.map(g => [g.dataset.coverage, g.getAttribute('aria-label')])")
    assert [metric for metric, _ in shown] == [m["metric"] for m in found["calibration"]]
    assert all(f"{m['inside']} of {m['n']} outcomes inside" in words for m, (_, words) in zip(found["calibration"], shown, strict=True))
    assert "no budget is set" in page.locator("#spend-against-budget").inner_text()


def test_published_models_are_marked_and_priced_by_the_sheet(warehouse: Environment, address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)
    names = [row.locator("td").first.inner_text() for row in page.locator("#published-models tbody tr").all()]
    assert names == [m.name for m in published_models.MODELS]
    assert page.locator("#runs g.published").count() == 0  # only when asked for: their scores are of another suite
    page.get_by_role("button", name="Published: Gauntlet v0.3").click()
    known = [m for m in published_models.priced(warehouse) if m["cost_usd"] is not None and m["gauntlet"] is not None]
    words = page.locator("#runs g.published").evaluate_all("all => all.map(g => g.getAttribute('aria-label'))")
    assert len(words) == len(known) and all(f"{m['name']}: published, not measured here" in w for m, w in zip(known, words, strict=True))
    assert "another suite than any here" in page.locator("#runs").inner_text()


def test_every_figure_is_a_csv_of_the_same_rows(warehouse: Environment, address: str, open_page: Callable[..., Any]) -> None:
    page, found = opened(open_page(), address), decision.figures(warehouse)
    linked = set(page.locator("a.csv").evaluate_all("all => all.map(a => a.dataset.figure)"))
    assert linked == set(decision.COLUMNS)
    for name, columns in decision.COLUMNS.items():
        rows = table(address, name)
        assert len(rows) == len(found[name])
        for row, expected in zip(rows, found[name], strict=True):
            assert list(row) == list(columns)
            for column in columns:
                value = expected[column]
                if column == "projected_usd":  # by the clock
                    assert float(row[column]) == pytest.approx(value, rel=0.01)
                    continue
                assert row[column] == ("" if value is None else str(value)), (name, column)
    page.get_by_label("Recipe", exact=True).select_option("other")
    with page.expect_download() as download:
        page.locator('#cost-by-phase-over-time a[data-figure="spend"]').click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_bytes().decode(), newline="")))
    assert rows and {row["recipe"] for row in rows} == {"other"}
    assert sum(float(row["usd"]) for row in rows) == pytest.approx(sum(r["BilledCost"] for r in delta.rows(warehouse, "costs") if r["x_Recipe"] == "other"))
    assert httpx.get(address.replace("/page", "/api/figure.csv?name=../secrets"), trust_env=False).status_code == 422


def test_what_changes_in_the_tables_is_there_after_a_reload(env: Environment, page_of: str, open_page: Callable[..., Any]) -> None:
    write(env, Build(1, accuracy=0.40, loss=4.2, core_hours=1.0, promoted=True))
    page = opened(open_page(), page_of)
    for number in range(2, 5):  # at once after each other: what is kept between requests must not outlive a change
        write(env, Build(number, accuracy=0.40 + number / 100, loss=4.2, core_hours=1.0))
        page.get_by_role("button", name="Reload").click()
        page.locator("#runs g.point").nth(number - 1).wait_for()
    trained = results.of_stage(env, "train")
    assert page.locator("#runs g.point").count() == len(trained) == 4


def test_hostile_names_are_text_in_every_card_and_no_formula_in_csv(env: Environment, page_of: str, open_page: Callable[..., Any]) -> None:
    write(env, Build(1, accuracy=0.30, loss=4.2, core_hours=1.0, promoted=True))
    write(env, hostile(HOSTILE, 2))
    forecast_only(env, Build(3, accuracy=0.7, loss=3.0, core_hours=9.0, recipe=HOSTILE))
    page = opened(open_page(), page_of)  # a dialog, a failed image or a blocked script would fail the test
    assert HOSTILE in page.locator("#what-to-train-next").inner_text()
    assert page.locator("#what-to-train-next code").count() == 0  # such a name is no command
    page.get_by_label("Recipe", exact=True).select_option(HOSTILE)
    assert HOSTILE[:19] in page.locator("#cost-per-point-gained").inner_text()
    assert page.locator("main img, main script").count() == 0
    assert {row["recipe"] for row in table(page_of, "next")} == {f"'{HOSTILE}"}


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (768, "light"), (1280, "dark")])
def test_nothing_sticks_out_with_filters_and_published_models(address: str, open_page: Callable[..., Any], width: int, scheme: str) -> None:
    page = opened(open_page(width=width, color_scheme=scheme), address)
    page.get_by_role("button", name="Published: Gauntlet v0.3").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_everything_that_acts_has_a_name_and_charts_can_be_walked(address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)
    nameless = page.locator("main button, main a, main select, main input, main [tabindex]").evaluate_all(
        "all => all.filter(e => !(e.getAttribute('aria-label') || e.innerText?.trim() || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert nameless == []
    for chart in page.locator("main svg").all():
        assert chart.get_attribute("aria-label")
    column = page.locator("#cost-by-phase-over-time g.column").first
    column.focus()
    page.locator("#tooltip", has_text="Train: $").wait_for()  # shown although the focus scrolled it into view
    page.keyboard.press("Escape")
    assert not page.locator("#tooltip").is_visible()
