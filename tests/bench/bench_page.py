"""make bench-page: the page "Cost vs accuracy" over 10,000 builds (MOELINE_BENCH_RUNS): reading the tables, and the first paint in Chromium.

Prints seconds; asserts only that the page shows all builds. The rows are written in a few large commits: a history of one commit per attempt has as
many small files, which `moeline` does not compact.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import builds
import httpx
import pytest

from jobs import decision
from jobs.contract import StageResult
from jobs.environment import Environment
from jobs.services import delta, report


def fixtures_of_the_browser_tests() -> Any:
    spec = importlib.util.spec_from_file_location("browser_conftest", Path(__file__).resolve().parent.parent / "browser" / "conftest.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = fixtures_of_the_browser_tests()
chromium, page_server = pages.chromium, pages.page_server

RUNS = int(os.environ.get("MOELINE_BENCH_RUNS", "10000"))
# When the marks of the chart were painted, seen from the page itself: two frames after they are in the document.
WATCH = """new MutationObserver((_, o) => { if (document.querySelector('#runs svg')) { o.disconnect();
requestAnimationFrame(() => requestAnimationFrame(() => { window.painted = performance.now(); })); } }).observe(document, { childList: true, subtree: true })"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    env = Environment.load("local", tmp_path_factory.mktemp("many"))
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    chance = random.Random(0)

    def record(env: Environment, result: StageResult) -> None:
        folder = env.warehouse / "_results" / result.stage
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{result.run_key}.json").write_text(result.to_json())

    for number in range(RUNS):  # keys of builds have four digits
        hours = 10 ** chance.uniform(-1, 2)
        accuracy = min(0.95, 0.3 + 0.1 * hours**0.3 + chance.gauss(0, 0.03))
        build = builds.Build(number, accuracy, 5 - hours**0.2, hours, hours / 4 if number % 20 == 0 else 0.0, recipe=f"recipe-{number % 20}",
                      promoted=number % 500 == 1, day=-365 * chance.random())  # fmt: skip
        builds.write(env, build, append=lambda _, table, new: rows[table].extend(new), record=record)
    for table, new in rows.items():
        delta.append(env, table, new)
    return env


def test_the_tables_are_read(many: Environment) -> None:
    started = time.monotonic()
    records = report.Records(many)
    read = time.monotonic() - started
    found = decision.figures(many, records=records)
    print(f"\n{len(found['runs'])} builds, {len(records.costs)} charges: tables read in {read:.2f} s, figures in {time.monotonic() - started - read:.2f} s")
    assert len(found["runs"]) == RUNS


def test_the_page_paints(many: Environment, chromium: Any, page_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOELINE_HOME", str(many.home))
    time.sleep(2.5)  # what was written just now is not kept between requests
    api = page_server.replace("/page", "/api/runs")
    for what in ("first request", "second request"):
        started = time.monotonic()
        answer = httpx.get(api, trust_env=False, timeout=600)
        print(f"\n{what}: {time.monotonic() - started:.3f} s, {len(answer.content) / 1e6:.1f} MB", end="")
    assert len(json.loads(answer.content)["runs"]["rows"]) == RUNS
    times = []
    for _ in range(5):
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(WATCH)
        page.goto(page_server, wait_until="load")
        while page.evaluate("window.painted ?? null") is None:  # the page's policy forbids wait_for_function
            time.sleep(0.02)
        times.append(
            page.evaluate(
                "[performance.getEntriesByType('paint').at(-1).startTime, performance.getEntriesByType('navigation')[0].loadEventEnd, window.painted]"
            )
        )
        page.wait_for_selector("main[aria-busy=false]")
        if len(times) == 5:
            started = time.monotonic()
            page.get_by_role("button", name="Loss", exact=True).click()
            page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            print(
                f"\nredraw after a click: {time.monotonic() - started:.3f} s; elements in the page: {page.evaluate('document.querySelectorAll(`*`).length')}",
                end="",
            )
            if os.environ.get("MOELINE_BENCH_SHOT"):
                page.screenshot(path=os.environ["MOELINE_BENCH_SHOT"])
        page.close()
    first, load, chart = (statistics.median(t[i] for t in times) / 1000 for i in range(3))
    print(f"\nmedian of 5: first paint {first:.3f} s, load event {load:.3f} s, chart painted {chart:.3f} s: {chart - load:.3f} s after load")
