"""``moeline report --html``: one page that opens offline in a real browser, shows what the tables hold, fits one sheet of paper, and runs nothing."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builds import Build, forecast_only, hostile, write

from jobs import cli, decision, report_figures, report_page
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.report_figures import percent, usd
from jobs.services import delta

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script></style></svg>{{7*7}}"


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Three builds, the second champion after the first, one killed try, a hostile build, and a recipe that waits."""
    env = Environment.load("local", tmp_path_factory.mktemp("paper"))
    write(env, Build(1, accuracy=0.40, loss=4.2, core_hours=1.0, promoted=True))
    write(env, Build(2, accuracy=0.35, loss=4.4, core_hours=2.0))
    write(env, Build(3, accuracy=0.55, loss=3.6, core_hours=8.0, wasted_hours=2.0, promoted=True))
    write(env, hostile(HOSTILE, 4))
    forecast_only(env, Build(5, accuracy=0.60, loss=3.0, core_hours=9.0, recipe="next-one"))
    forecast_only(env, Build(6, accuracy=0.30, loss=5.0, core_hours=9.0, recipe="worse-one"))
    return env


@pytest.fixture(scope="module")
def paper(warehouse: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("written") / "report.html"
    assert cli.main(["report", "--html", str(target), "--home", str(warehouse.home)]) == 0
    return target


@pytest.fixture
def opened(paper: Path, open_page: Callable[..., Any]) -> Any:
    """The file in a browser without network; any request fails the test."""
    page = open_page()
    page.context.set_offline(True)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(paper.as_uri(), wait_until="load")
    assert asked == [paper.as_uri()] and complaints == []
    return page


def cells(page: Any, section: str) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator(f"#{section} tbody tr").all()]


def test_every_run_is_a_mark_and_the_front_is_marked(warehouse: Environment, opened: Any) -> None:
    rows = decision.figures(warehouse)["cost-vs-accuracy"]
    scored = {r["run_id"] for r in rows if r["accuracy"] is not None}
    assert set(opened.locator("#cost-vs-accuracy g.run").evaluate_all("all => all.map(g => g.dataset.run)")) == scored
    best = opened.locator("#cost-vs-accuracy g.run.best").evaluate_all("all => all.map(g => g.dataset.run)")
    assert set(best) == {r["run_id"] for r in rows if r["on_front"]} and 0 < len(best) < len(scored)
    titles = opened.locator("#cost-vs-accuracy g.run title").all_text_contents()
    for r in rows:
        if r["accuracy"] is not None:
            said = f"{r['recipe']}, {r['run_id']}: {percent(r['accuracy'])} ± {percent(report_figures.Z95 * r['accuracy_stderr'])} for {usd(r['cost_usd'])}"
            assert said in titles


def test_marks_lie_where_the_numbers_say(warehouse: Environment, opened: Any) -> None:
    rows = [r for r in decision.figures(warehouse)["cost-vs-accuracy"] if r["accuracy"] is not None and HOSTILE not in r["run_id"]]
    boxes = [opened.locator(f'#cost-vs-accuracy g[data-run="{r["run_id"]}"] circle').bounding_box() for r in rows]
    middles = [(b["x"] + b["width"] / 2, b["y"] + b["height"] / 2) for b in boxes]
    by_cost = sorted(range(len(rows)), key=lambda i: rows[i]["cost_usd"])
    by_accuracy = sorted(range(len(rows)), key=lambda i: rows[i]["accuracy"])
    assert sorted(by_cost, key=lambda i: middles[i][0]) == by_cost
    assert sorted(by_accuracy, key=lambda i: -middles[i][1]) == by_accuracy


def test_dollars_by_day_and_phase_are_the_ledgers(warehouse: Environment, opened: Any) -> None:
    drawn = opened.locator("#spend rect[data-usd]").evaluate_all("all => all.map(r => [r.dataset.bucket, r.dataset.phase, Number(r.dataset.usd)])")
    ledger: dict[tuple[str, str], float] = {}
    for row in delta.rows(warehouse, "costs"):
        key = (row["ChargePeriodStart"].date().isoformat(), row["x_Phase"])
        ledger[key] = ledger.get(key, 0.0) + row["BilledCost"]
    assert {(bucket, phase): pytest.approx(dollars) for bucket, phase, dollars in drawn} == ledger
    for phase in {phase for _, phase in ledger}:
        total = sum(dollars for (_, p), dollars in ledger.items() if p == phase)
        assert usd(total) in opened.locator(f'#spend .legend [data-phase="{phase}"]').inner_text()
    assert usd(sum(ledger.values())) in opened.locator("#spend > p").inner_text()


def test_columns_are_as_high_as_their_dollars(opened: Any) -> None:
    drawn = opened.locator("#spend rect[data-usd]").evaluate_all("all => all.map(r => [Number(r.dataset.usd), r.height.baseVal.value])")
    tall = [(dollars, height) for dollars, height in drawn if height > 3]
    ratios = [height / dollars for dollars, height in tall]
    assert len(tall) > 2 and max(ratios) / min(ratios) < 1.05


def test_wasted_forecasts_and_calibration_are_the_tables(warehouse: Environment, opened: Any) -> None:
    found = decision.figures(warehouse)
    killed = [row for row in delta.rows(warehouse, "costs") if row["x_Outcome"] == "killed"]
    assert [row[4] for row in cells(opened, "wasted")] == [usd(sum(k["BilledCost"] for k in killed))]
    for metric in found["calibration"]:
        inside = opened.locator(f'#forecasts .inside[data-metric="{metric["metric"]}"]').count()
        outside = opened.locator(f'#forecasts .outside[data-metric="{metric["metric"]}"]').count()
        assert (inside, inside + outside) == (metric["inside"], metric["n"])
    assert [row[1] for row in cells(opened, "calibration")] == [f"{m['inside']}/{m['n']}" for m in found["calibration"]]


def test_what_to_try_next_and_what_a_point_cost(warehouse: Environment, opened: Any) -> None:
    first, second = cells(opened, "next")
    assert first[0] == "next-one" and first[5] == "on the front" and first[7] == "moeline run --recipe next-one"
    assert first[2] == usd(9 * 0.045 * 1.1 + 9 * 0.3 * 0.045)  # forecast training, and the forecast itself as charged
    assert second[0] == "worse-one" and second[4] == "nothing gained" and second[5] == "dominated"
    runs = {row[2]: row for row in cells(opened, "runs")}
    champion = next(r for r in decision.figures(warehouse)["cost-vs-accuracy"] if r["model_version"] == "3")
    assert runs["v3"][7].startswith("+15.0 (") and runs["v3"][8] == usd(champion["cost_usd"] / 15)
    assert runs["v1"][7] == runs["v1"][8] == ""  # there was no champion before it


def test_budget_and_projection(warehouse: Environment, open_page: Callable[..., Any], tmp_path: Path) -> None:
    import datetime as dt

    limited = dataclasses.replace(warehouse, budgets={"month_usd": 3.0, "recipes": {"tiny": 0.5}})
    now = dt.datetime(2026, 11, 16, tzinfo=dt.UTC)  # the month is half over
    file = tmp_path / "budget.html"
    file.write_text(report_page.document(decision.figures(limited, now=now)))
    spent = sum(row["BilledCost"] for row in delta.rows(warehouse, "costs"))
    page = open_page()
    page.goto(file.as_uri())
    said = page.locator("#budget > p").inner_text()
    assert f"{usd(spent)} so far, {usd(2 * spent)} at this pace by its end; the budget is $3.00" in said
    tiny = sum(row["BilledCost"] for row in delta.rows(warehouse, "costs") if row["x_Recipe"] == "tiny")
    assert cells(page, "budget") == [["tiny", usd(tiny), usd(2 * tiny), "$0.5000", "over"]]
    places = page.evaluate("['.limit', '.projected'].map(s => document.querySelector(`#budget ${s}`).y2.baseVal.value)")
    assert places[0] < places[1]  # 2 x what was spent is still below the budget: lower on the page


def test_hostile_names_are_text_and_nothing_runs(opened: Any) -> None:
    assert HOSTILE in opened.locator("#runs").inner_text()
    assert opened.locator("img, script, iframe, link, object").count() == 0
    assert opened.evaluate("document.querySelectorAll('style').length") == 1
    assert all(not name.startswith("on") for name in opened.evaluate("[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"))


def test_its_own_policy_blocks_what_would_slip_through(paper: Path, chromium: Any, tmp_path: Path) -> None:
    planted = tmp_path / "planted.html"
    planted.write_text(
        paper.read_text().replace("<main>", "<main><script>document.title = 'ran'</script><img src='file:///x.png'><p style='color:red' id='p'>x</p>")
    )
    page = chromium.new_page()
    page.goto(planted.as_uri())
    assert page.title() != "ran"
    assert page.evaluate("getComputedStyle(document.getElementById('p')).color") != "rgb(255, 0, 0)"
    page.close()


def test_it_prints_on_one_sheet_and_fits_a_phone(opened: Any) -> None:
    pages = re.findall(rb"/Type\s*/Page[^s]", opened.pdf(format="A4", prefer_css_page_size=True))
    assert len(pages) == 1
    opened.set_viewport_size({"width": 360, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360


def test_without_anything_it_says_so(env: Environment, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "empty.html"
    assert cli.main(["report", "--html", str(target), "--home", str(env.home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 0
    text = target.read_text()
    assert "No run has both a cost and a score yet." in text and "No charge is recorded yet." in text and "$0.0000" not in text.split("<main>")[0]
    (tmp_path / "file").write_text("x")
    with pytest.raises(MoelineError, match="Name a file in a folder"):
        report_page.write(env, str(tmp_path / "file" / "report.html"))
