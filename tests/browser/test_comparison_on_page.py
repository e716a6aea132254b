"""Two runs side by side in a real browser: what is shown is what the tables hold, whatever the texts are; and the way to a model card."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from builds import Build, answered, asked, hostile, write

from jobs import recipes, run_comparison
from jobs.environment import PLATFORM_FILE, Environment
from jobs.services import delta, report

HOSTILE = "=1+1<img src=x onerror=alert(1)>\"'><svg onload=alert(2)>"  # without a slash: what is before one names a suite of its own
SMOKE = recipes.load("smoke")
OTHER = dataclasses.replace(SMOKE, name="other", train=dataclasses.replace(SMOKE.train, tokens=SMOKE.train.tokens + 7))


@pytest.fixture
def two(env: Environment) -> Environment:
    """A dear build named in a hostile way, better than a cheap one."""
    right = np.random.default_rng(0).random(400) < 0.5
    dear = dataclasses.replace(hostile(HOSTILE, 2), accuracy=0.6, core_hours=4.0)
    for build, recipe, answers in ((Build(1, 0.5, 4.0, 1.0), SMOKE, right), (dear, OTHER, right | (np.arange(400) % 4 == 0))):
        write(env, build)
        asked(env, build, recipe)
        answered(env, build, answers, HOSTILE)
    return env


def compared(page: Any, address: str) -> Any:
    page.goto(address, wait_until="load")
    page.wait_for_selector("main[aria-busy=false]")
    picker = page.get_by_label("Compare with", exact=True)
    picker.focus()
    picker.select_option(index=1)
    page.locator("#recipe-comparison .facts").wait_for()
    return page.locator("#recipe-comparison")


def test_it_shows_the_paired_difference_the_settings_and_the_costs(two: Environment, page_of: str, open_page: Callable[..., Any]) -> None:
    page = open_page()
    card = compared(page, page_of)
    records = report.Records(two)
    first, second = report.runs_of(records, checks=False)
    found = run_comparison.of_runs(two, records, first, second)
    drawn = card.locator("g.difference").evaluate_all("all => all.map(g => [g.dataset.effect, Number(g.dataset.difference)])")
    assert drawn == [[e["name"], pytest.approx(e["difference"])] for e in found["effects"] if e["level"] != "task"]
    assert any(name == HOSTILE for name, _ in drawn)
    facts = card.locator(".facts").inner_text()
    assert f"+{100 * found['effects'][0]['difference']:.1f} points" in facts and f"${found['usd_per_point']:.4f}" in facts
    tables = [[row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()] for table in card.locator("table").all()]
    assert tables[0] == [["train.tokens", str(SMOKE.train.tokens), str(OTHER.train.tokens)]]
    assert [row[0] for row in tables[1]] == [c["stage"] for c in found["costs"]]
    assert tables[1][1][3] == f"+${found['costs'][1]['difference']:.4f}"
    assert page.evaluate("document.activeElement.dataset.keep") == "compare-with"  # the keyboard stays where it was
    answer = httpx.get(page_of.replace("/page", f"/{card.locator('a.csv').get_attribute('href')}"), trust_env=False)
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [r["name"] for r in rows if r["kind"] == "setting"] == ["train.tokens"]
    assert not any(value.startswith("=") for row in rows for value in row.values())


def test_choosing_another_run_turns_the_comparison_round(two: Environment, page_of: str, open_page: Callable[..., Any]) -> None:
    page = open_page()
    before = compared(page, page_of).locator(".facts").inner_text()
    assert "\N{MINUS SIGN}" not in before.split("Cost of the whole run")[1].splitlines()[1]
    page.locator("#run-picker").select_option(index=0)
    page.get_by_label("Compare with", exact=True).select_option(index=1)
    page.locator("#recipe-comparison .facts", has_text="not both better and dearer").wait_for()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(two: Environment, page_of: str, open_page: Callable[..., Any], width: int) -> None:
    page = open_page(width=width)
    compared(page, page_of)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_builds_nobody_made_and_keys_that_are_none_are_refused(two: Environment, page_of: str) -> None:
    key = report.runs(two)[0]["key"]
    for a, status in (("nobody", 404), ("../../x", 422), ("x" * 65, 422)):
        for kind in ("compare", "compare.csv"):
            assert httpx.get(page_of.replace("/page", f"/api/{kind}"), params={"a": a, "b": key}, trust_env=False).status_code == status


def test_the_card_of_a_version_is_plain_text(two: Environment, page_of: str) -> None:
    address = page_of.replace("/page", "/api/card")
    answer = httpx.get(address, params={"name": "moeline", "version": "1"}, trust_env=False)
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff" and "# moeline" in answer.text
    assert httpx.get(address, params={"name": "moeline", "version": "9"}, trust_env=False).status_code == 404
    assert httpx.get(address, params={"name": "moeline", "version": "1;x"}, trust_env=False).status_code == 422


def test_a_build_leads_to_its_training_and_its_version_in_mlflow(two: Environment, page_of: str, open_page: Callable[..., Any]) -> None:
    row = {"run_key": Build(2, 0.5, 4.0, 1.0).key("train"), "uri": "checkpoints/x", "sha256": "0" * 64, "step": 1, "tokens": 1, "loss": 1.0,
           "held_out_loss": 1.0, "config": "{}", "final": True, "mlflow_run_id": "abc/../1"}  # fmt: skip
    delta.append(two, "checkpoints", [row])
    (two.home / PLATFORM_FILE).write_text(json.dumps({"addresses": {"mlflow_uri": "http://127.0.0.1:9"}}))  # where nobody answers
    page = open_page()
    page.goto(page_of, wait_until="load")
    page.evaluate("""() => document.addEventListener("click", (e) => {
        if (e.target.tagName === "A") { e.preventDefault(); (window.went ??= []).push([e.target.href, e.target.target, e.target.rel]); }
    }, true)""")
    for name in ("Training in MLflow", "Open in MLflow"):
        page.get_by_role("button", name=name).click()
    mlflow = "http://127.0.0.1:9/#"
    assert page.evaluate("window.went") == [[f"{mlflow}/{place}", "_blank", "noopener"] for place in ("runs/abc%2F..%2F1", "models/moeline/versions/2")]


def test_the_card_opens_beside_the_page(two: Environment, page_of: str, open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.goto(page_of, wait_until="load")
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Model card").click()
    opened.value.wait_for_load_state()
    assert "# moeline" in opened.value.locator("body").inner_text()
    assert opened.value.locator("img, script").count() == 0
