"""The page "Cost vs accuracy" in a real browser, over real tables: it shows what the tables say, to everyone, and runs nothing of theirs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from builds import Build, hostile, write

from jobs.environment import Environment
from jobs.services import report

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>{{7*7}}"


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A cheap weak build, a dear good one (champion, with a killed try), and one that is dearer and worse than the cheap one."""
    env = Environment.load("local", tmp_path_factory.mktemp("builds"))
    write(env, Build(1, accuracy=0.40, loss=4.2, core_hours=1.0))
    write(env, Build(2, accuracy=0.35, loss=4.4, core_hours=2.0, failed_rule="ExpectColumnValuesToBeBetween(loss)"))
    write(env, Build(3, accuracy=0.55, loss=3.6, core_hours=8.0, wasted_hours=2.0, promoted=True))
    return env


@pytest.fixture
def three_builds(warehouse: Environment, page_of: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the report says of the three, with the page showing them."""
    monkeypatch.setenv("MOELINE_HOME", str(warehouse.home))
    return report.runs(warehouse)


def opened(page: Any, address: str) -> Any:
    page.goto(address, wait_until="load")
    page.wait_for_selector("main[aria-busy=false]")
    return page


def text(page: Any, selector: str) -> str:
    return " ".join(page.locator(selector).inner_text().split())


def test_without_runs_it_says_what_to_run(page_of: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), page_of)
    assert "moeline run --recipe tiny --days 3" in text(page, "main")


def test_every_run_is_a_point_and_dominated_ones_are_dimmed(three_builds: list, page_of: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), page_of)
    points = page.locator("#runs g.point")
    assert points.count() == 3
    best = page.locator("#runs g.point.best")
    assert sorted(best.evaluate_all("all => all.map(p => p.dataset.run)")) == sorted(three_builds[i]["run_id"] for i in (0, 2))
    dimmed = page.locator(f'#runs g.point[data-run="{three_builds[1]["run_id"]}"]').evaluate("p => Number(getComputedStyle(p).opacity)")
    assert dimmed < 0.6
    assert page.locator("#runs g.point path.mark").count() == 1  # the champion's star


def test_a_points_words_are_the_numbers_of_the_tables(three_builds: list, page_of: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), page_of)
    for run in three_builds:
        words = page.locator(f'#runs g.point[data-run="{run["run_id"]}"]').get_attribute("aria-label")
        assert f"Accuracy: {100 * run['accuracy']:.1f} % ± {196 * run['accuracy_stderr']:.1f} %" in words
        assert f"Cost: ${run['cost_usd']:.4f}, wasted ${run['wasted_usd']:.4f}" in words


def test_points_lie_where_the_numbers_say(three_builds: list, page_of: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), page_of)

    def places() -> list[tuple[float, float]]:
        boxes = [page.locator(f'#runs g.point[data-run="{run["run_id"]}"] .hit').bounding_box() for run in three_builds]
        return [(box["x"], box["y"]) for box in boxes]

    cost_order = sorted(range(3), key=lambda i: three_builds[i]["cost_usd"])
    accuracy_order = sorted(range(3), key=lambda i: three_builds[i]["accuracy"])
    logarithmic = places()
    assert sorted(range(3), key=lambda i: logarithmic[i][0]) == cost_order
    assert sorted(range(3), key=lambda i: -logarithmic[i][1]) == accuracy_order
    page.get_by_role("button", name="Log cost").click()
    linear = places()
    gaps = [(at[cost_order[1]][0] - at[cost_order[0]][0]) / (at[cost_order[2]][0] - at[cost_order[0]][0]) for at in (logarithmic, linear)]
    costs = sorted(run["cost_usd"] for run in three_builds)
    assert gaps[1] == pytest.approx((costs[1] - costs[0]) / (costs[2] - costs[0]), abs=0.02)
    assert gaps[0] > gaps[1] + 0.1


def test_forecast_stands_beside_the_outcome(three_builds: list, page_of: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), page_of)
    rows = {name: text(page, f'[data-metric="{name}"]') for name in ("loss", "accuracy", "cost_usd", "wall_seconds")}
    assert "✓ inside the interval" in rows["loss"]
    assert "forecast 3.960 (3.240 to 4.680), outcome 3.600" in rows["loss"]
    assert "✗ outside the interval (below)" in rows["accuracy"]
    assert "outcome 55.0 %" in rows["accuracy"]


def test_wasted_money_is_shown_where_it_was_lost(three_builds: list, page_of: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), page_of)
    words = page.locator("#cost-by-stage g.segment").evaluate_all("all => all.map(s => s.getAttribute('aria-label'))")
    wasted = [w for w in words if "failed or killed" in w]
    assert len(wasted) == 1
    assert wasted[0].startswith(f"train, failed or killed attempts, ${three_builds[2]['wasted_usd']:.4f}")
    assert len(words) == sum(len(run["cost_by_stage"]) for run in three_builds) + 1


def test_scores_stand_beside_their_baselines(three_builds: list, page_of: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), page_of)
    shown = page.locator("#scores g.score").evaluate_all("all => all.map(s => s.getAttribute('aria-label'))")
    assert len(shown) == len(three_builds[2]["scores_by_category"]) == 3
    assert "language, Accuracy 55.0 % ± 3.9 % (95 %), 400 items, Guessing 25.0 %, best fixed answer 27.0 %" in shown[0]
    page.get_by_role("button", name="By task").click()
    assert page.locator("#scores g.score").evaluate_all("all => all.map(s => s.dataset.name)") == [s["benchmark"] for s in three_builds[2]["scores"]]


def test_another_run_can_be_chosen_by_keyboard_and_its_failing_check_comes_first(three_builds: list, page_of: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), page_of)
    point = f'#runs g.point[data-run="{three_builds[1]["run_id"]}"]'
    page.focus(point)
    assert page.locator("#tooltip").is_visible()
    page.keyboard.press("Enter")
    assert page.locator(point).get_attribute("aria-pressed") == "true"
    first = text(page, "#data-quality-checks tbody tr:first-child")
    assert first.startswith("FAILED train")
    assert "ExpectColumnValuesToBeBetween(loss)" in first and " 12 " in first
    page.get_by_role("button", name=re.compile("Failed only")).click()
    assert page.locator("#data-quality-checks tbody tr").count() == 1


def test_the_table_has_every_number_of_the_charts(three_builds: list, page_of: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), page_of)
    rows = [" ".join(row.split()) for row in page.locator("#all-runs-as-a-table tbody tr").all_inner_texts()]
    assert len(rows) == 3
    for run, row in zip(reversed(three_builds), rows, strict=True):
        for number in (
            f"${run['cost_usd']:.4f}",
            f"{run['loss']:.3f} ({run['loss_forecast']:.3f})",
            f"{100 * run['accuracy']:.1f} %",
            f"v{run['model_version']}",
        ):
            assert number in row


def test_text_from_data_is_text(env: Environment, page_of: str, open_page: Callable[..., Any]) -> None:
    write(env, Build(1, accuracy=0.40, loss=4.2, core_hours=1.0))
    write(env, hostile(HOSTILE, 2))
    page = opened(open_page(), page_of)  # a dialog, a failed image or a blocked script would fail the test
    for button in ("Loss", "Share", "By task", "Accuracy"):
        page.get_by_role("button", name=button, exact=True).click()
    page.locator("#runs g.point").last.hover(force=True)
    page.locator("#runs g.point").last.click(force=True)
    assert HOSTILE in page.locator("#data-quality-checks").inner_text()
    assert HOSTILE in page.locator("#all-runs-as-a-table").inner_text()
    assert page.locator("main img, main script, #tooltip img, #tooltip script").count() == 0
    opened(page, f"{page_of}?dag=%3Cscript%3E&run=%22%3E%3Cscript%3Ealert(3)%3C/script%3E")
    assert '"><script>alert(3)</script>' in text(page, "main .notice")


def test_a_number_nobody_measured_is_missing_not_zero(env: Environment, page_of: str, open_page: Callable[..., Any]) -> None:
    write(env, Build(1, accuracy=0.40, loss=None, core_hours=1.0))
    page = opened(open_page(), page_of)
    assert "— (—)" in text(page, "#all-runs-as-a-table tbody tr")
    page.get_by_role("button", name="Loss", exact=True).click()
    assert "No run has both" in text(page, "#runs")


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_on_any_screen(three_builds: list, page_of: str, open_page: Callable[..., Any], width: int) -> None:
    page = opened(open_page(width=width), page_of)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_is_dark_where_the_system_or_airflow_is(three_builds: list, page_of: str, open_page: Callable[..., Any]) -> None:
    def brightness(page: Any) -> float:
        return sum(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)")) / 3

    assert brightness(opened(open_page(color_scheme="light"), page_of)) > 200
    dark = opened(open_page(color_scheme="dark"), page_of)
    assert brightness(dark) < 60
    dark.evaluate("localStorage.setItem('theme', 'light')")
    assert brightness(opened(dark, page_of)) > 200


def test_it_needs_nothing_from_elsewhere_and_forbids_it(three_builds: list, page_of: str, open_page: Callable[..., Any]) -> None:
    page = open_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    answer = page.goto(page_of)
    page.wait_for_selector("main[aria-busy=false]")
    origin = page_of.removesuffix("/costs/page")
    assert asked and all(url.startswith(origin) for url in asked)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
