"""The page where a person finds it: in Airflow's navigation and on a run's tab, for those signed in, with the numbers of a real job."""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import httpx
import pytest
from airflow_pages import NAV_PAGE, open_in_airflow, run_tab, sign_in
from whole_job import WholeJob

from jobs import statistics
from jobs.services import report

pytestmark = pytest.mark.integration

ROUTES = (
    "page", "trend", "static/page.js", "static/page.css", "static/icon.svg", "static/decision.js", "api/runs", "api/run?key=x", "api/figure.csv?name=spend",
    "api/dag-run?run=x", "api/proposals?run_key=x", "api/trend",
    "api/trend.csv", "api/items?run_key=x&benchmark=y", "api/items.csv?run_key=x&benchmark=y", "corpus", "api/corpus", "api/corpus.csv",
    "training", "api/trainings", "api/training?run_key=x", "api/compare?a=x&b=x", "api/compare.csv?a=x&b=x", "api/card?name=moeline&version=1",
)  # fmt: skip


def asked(job: WholeJob, route: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{job.env.platform['airflow_url']}/costs/{route}", headers=headers, trust_env=False, timeout=60)


def shown(value: float) -> str:
    """One decimal as JavaScript's toFixed writes it: of two equally near the larger (Python takes the even one: 31.25 is 31.2)."""
    return str(Decimal(value).quantize(Decimal("0.1"), ROUND_HALF_UP))


@pytest.mark.parametrize("route", ROUTES)
def test_nobody_signed_out_gets_anything(whole_job: WholeJob, route: str) -> None:
    assert asked(whole_job, route).status_code == 401
    assert asked(whole_job, route, Authorization="Bearer x.y.z", Cookie="_token=x.y.z").status_code in (401, 403)


def test_no_route_was_forgotten(whole_job: WholeJob, page_server: str) -> None:
    import cost_vs_accuracy as plugin

    routes = {route.path.strip("/").partition("{")[0] for route in plugin.app.routes}
    assert routes == {"static/" if asked_for.startswith("static/") else asked_for.partition("?")[0] for asked_for in ROUTES}


def test_it_is_in_the_navigation_and_shows_what_the_tables_say(whole_job: WholeJob, open_page: Callable[..., Any]) -> None:
    page = open_page()
    sign_in(page, whole_job.env)
    frame = open_in_airflow(page, whole_job.env, NAV_PAGE)
    runs = report.runs(whole_job.env)
    assert frame.locator("#all-runs-as-a-table tbody tr").count() == len(runs)
    run = next(r for r in runs if r["run_id"] == whole_job.build_run_id)
    words = frame.locator(f'#runs g.point[data-run="{run["run_id"]}"]').get_attribute("aria-label")
    assert f"Accuracy: {shown(100 * run['accuracy'])} % ± {shown(196 * run['accuracy_stderr'])} % (95 %)" in words
    assert f"Cost: ${run['cost_usd']:.4f}, wasted ${run['wasted_usd']:.4f}" in words


def test_the_corpus_page_is_in_the_navigation_and_shows_what_the_table_says(whole_job: WholeJob, open_page: Callable[..., Any]) -> None:
    page = open_page()
    sign_in(page, whole_job.env)
    frame = open_in_airflow(page, whole_job.env, "/plugin/corpus-statistics")
    rows = statistics.read(whole_job.env)
    kept = sum(row["documents"] for row in rows if row["what"] == "kept")
    words = frame.locator("#days .column").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
    assert sum(int(w.split("kept: ")[1].split(" ")[0].replace(",", "")) for w in words) == kept > 0
    assert frame.locator("#table tbody tr").count() == len({(row["interval"], row["source"]) for row in rows if row["what"] == "landed"})


def test_a_runs_tab_is_about_that_run(whole_job: WholeJob, open_page: Callable[..., Any]) -> None:
    page = open_page()
    sign_in(page, whole_job.env)
    frame = open_in_airflow(page, whole_job.env, run_tab("build_model", whole_job.build_run_id))
    run = next(r for r in report.runs(whole_job.env) if r["run_id"] == whole_job.build_run_id)
    assert frame.locator("#runs g.point.selected").get_attribute("data-run") == run["run_id"]
    assert frame.locator("#scores g.score").count() == len(run["scores_by_category"])
    assert frame.locator("#forecast-against-outcome [data-metric]").count() == 4
    assert f"{len(run['checks'])} checks" in frame.locator("#data-quality-checks").inner_text()


def test_the_tab_of_a_preparation_run_shows_its_own_cost_and_checks(whole_job: WholeJob, open_page: Callable[..., Any]) -> None:
    run_id = next(run["run_id"] for run in whole_job.outcome["runs"] if run["dag_id"] == "prepare_corpus")
    own = report.of_dag_run(whole_job.env, run_id)
    page = open_page()
    sign_in(page, whole_job.env)
    frame = open_in_airflow(page, whole_job.env, run_tab("prepare_corpus", run_id))
    assert f"It has cost ${own['cost_usd']:.4f}" in frame.locator(".notice").inner_text()
    assert f"{len(own['checks'])} checks of this DAG run" in frame.locator("#data-quality-checks").inner_text()


def test_a_run_that_reused_everything_shows_the_model_it_found(whole_job: WholeJob, open_page: Callable[..., Any]) -> None:
    from jobs import launch

    again = launch.run(whole_job.env, "smoke", 2, echo=lambda _: None)["runs"][-1]["run_id"]
    page = open_page()
    sign_in(page, whole_job.env)
    frame = open_in_airflow(page, whole_job.env, run_tab("build_model", again))
    assert "recomputed nothing" in frame.locator(".notice").inner_text()
    assert frame.locator("#runs g.point.selected").get_attribute("data-run") == whole_job.build_run_id


def test_a_point_leads_to_its_run_in_airflow(whole_job: WholeJob, open_page: Callable[..., Any]) -> None:
    page = open_page()
    sign_in(page, whole_job.env)
    frame = open_in_airflow(page, whole_job.env, NAV_PAGE)
    frame.get_by_role("button", name=f"Open run {whole_job.build_run_id} in Airflow").click()
    page.wait_for_url(lambda url: "/dags/build_model/runs/" in url)
