"""Scores over checkpoints: what the tables say, to the last answer, for keyboard and phone; hostile text stays text, strangers get nothing."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from builds import Build, write

from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import delta, results, trend

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"
TASK = "task 0"


def answers(env: Environment, build: Build, n: int, *, prompt: str = "What is {i}?", benchmark: str = TASK) -> None:
    """``n`` answers of a build to one task, and their review; every third is wrong, ever further behind."""
    responses, verdicts = [], []
    for i in range(n):
        wrong = i % 3 == 0
        means = [-2.0 - i / n, -1.0] if wrong else [-1.0, -2.0]
        responses.append({
            "run_key": build.key("evaluate"), "benchmark": benchmark, "category": "language", "item_id": f"i{i:06d}", "kind": "multiple_choice",
            "prompt_hash": "0" * 16, "n_prompt_tokens": 5, "choices": ["=1+1", prompt.format(i=i)], "sum_logprobs": means, "mean_logprobs": means,
            "output": "x", "prediction": int(wrong), "gold": 0, "correct": not wrong, "truncated": False, "weights_digest": "0" * 16,
            "item": json.dumps({"prompt": prompt.format(i=i), "subset": ""}),
        })  # fmt: skip
        verdicts.append({
            "run_key": build.key("review"), "benchmark": benchmark, "item_id": f"i{i:06d}", "verdict": "wrong" if wrong else "proper",
            "margin": means[0] - means[1], "evidence": "because", "second_choice": int(not wrong), "lead": abs(means[0] - means[1]), "pattern": None,
            "pattern_agreement": None, "format": "ok", "contaminated": False, "key_suspect": i == 0, "failure_group": 0 if wrong else None,
        })  # fmt: skip
    delta.append(env, "responses", responses)
    delta.append(env, "verdicts", verdicts)
    for stage, table in (("evaluate", "responses"), ("review", "verdicts"), ("review", "responses")):
        found = results.find(env, stage, build.key(stage))
        side = "outputs" if table in found.outputs else "inputs"
        results.record(env, replace(found, **{side: {**getattr(found, side), table: str(delta.latest(env, table))}}))


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Two evaluated and reviewed builds; every prompt and choice is hostile."""
    env = Environment.load("local", tmp_path_factory.mktemp("trend"))
    for number, accuracy in ((1, 0.4), (2, 0.55)):
        write(env, Build(number, accuracy=accuracy, loss=4.0, core_hours=1.0, recipe="tiny" if number == 1 else "other"))
        answers(env, Build(number, accuracy, 4.0, 1.0), 60, prompt=HOSTILE + " {i}")
    return env


@pytest.fixture
def address(warehouse: Environment, page_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MOELINE_HOME", str(warehouse.home))
    return page_server.removesuffix("page") + "trend"


def opened(page: Any, address: str) -> Any:
    page.goto(address, wait_until="load")
    page.wait_for_selector("main[aria-busy=false]")
    return page


def key(number: int) -> str:
    return Build(number, 0.4, None, 1.0).key("evaluate")


def test_a_page_of_items_is_worst_first_filtered_and_complete(warehouse: Environment) -> None:
    first = trend.items(warehouse, key(1), TASK, limit=10)
    second = trend.items(warehouse, key(1), TASK, offset=10, limit=100)
    assert first["total"] == 60 and len(first["items"]) == 10
    together = [*first["items"], *second["items"]]
    assert sorted(i["item_id"] for i in together) == [f"i{i:06d}" for i in range(60)]
    assert [i["margin"] for i in together] == sorted(i["margin"] for i in together)
    wrong = trend.items(warehouse, key(1), TASK, verdict="wrong")
    assert wrong["total"] == 20 and all(not i["correct"] and i["verdict"] == "wrong" for i in wrong["items"])
    assert trend.items(warehouse, key(1), "no such task")["total"] == 0
    with pytest.raises(MoelineError, match="No evaluation"):
        trend.items(warehouse, "unknown", TASK)


def test_a_cell_that_a_spreadsheet_would_run_is_text_and_numbers_stay_numbers() -> None:
    rows = [{"a": bad, "b": -1.5} for bad in ("=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =1", "\n=1", 'fine, "quoted"')]
    found = list(csv.reader(io.StringIO(trend.as_csv(rows, ("a", "b")), newline="")))
    assert all(cell.startswith("'") for cell, _ in found[1:-1]) and found[-1] == ['fine, "quoted"', "-1.5"]


def test_a_page_among_a_hundred_thousand_answers_is_fast(tmp_path: Any) -> None:
    env = Environment.load("local", tmp_path)
    build = Build(1, 0.4, 4.0, 1.0)
    write(env, build)
    answers(env, build, 100_000, prompt="word " * 40 + "{i}")
    began = time.perf_counter()
    assert trend.items(env, build.key("evaluate"), TASK, offset=50_000)["total"] == 100_000
    assert time.perf_counter() - began < 5


def test_nobody_signed_out_gets_anything_and_bad_questions_are_refused(address: str) -> None:
    import cost_vs_accuracy as plugin
    import httpx
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi import HTTPException

    root = address.removesuffix("trend")
    good = f"api/items?run_key={key(1)}&benchmark=task%200"

    def ask(route: str) -> int:
        return httpx.get(root + route, trust_env=False).status_code

    assert ask(good) == 200
    bad = (
        f"{good}&limit=101",
        f"{good}&offset=-1",
        f"{good}&verdict=x",
        "api/items?run_key=../x&benchmark=y",
        "api/items?run_key=x",
        f"api/items?run_key={key(1)}&benchmark=",
    )
    assert [ask(route) for route in bad] == [422] * len(bad)
    assert ask("api/items?run_key=unknown&benchmark=y") == 404

    def refuse() -> None:
        raise HTTPException(401)

    before = plugin.app.dependency_overrides[get_user]
    plugin.app.dependency_overrides[get_user] = refuse
    try:
        routes = ("trend", "static/trend.js", "api/trend", "api/trend.csv", good, good.replace("items", "items.csv"))
        assert [ask(route) for route in routes] == [401] * len(routes)
    finally:
        plugin.app.dependency_overrides[get_user] = before


def test_from_categories_to_an_answer_by_keyboard_and_hostile_text_stays_text(address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)
    assert page.locator(".card[data-name=language] .trend-point").count() == 2
    words = page.locator(".card[data-name=language] .trend-point").first.get_attribute("aria-label")
    assert "Accuracy 40.0 % ± 3.9 % (95 %)" in words and "Guessing 25.0 %, best fixed answer 27.0 %" in words
    assert page.locator(".card[data-name=language] polyline.chance, .card[data-name=language] polyline.constant").count() == 2
    page.locator(".card[data-name=language] button").focus()
    page.keyboard.press("Enter")
    page.locator(f'.card[data-name="{TASK}"] .trend-point').first.focus()
    page.keyboard.press("Enter")
    page.locator(f'.card[data-name="{TASK}"] button').focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#items details")
    assert "1 to 25 of 60" in page.locator(".pager").inner_text()
    page.locator("#items summary").first.focus()
    page.keyboard.press("Enter")
    detail = page.locator("#items details").first.inner_text()
    assert HOSTILE in detail and "because" in detail and "-1.000" in detail and "key" in detail
    assert page.locator("main img, main script").count() == 0
    page.get_by_label("Verdict").select_option("wrong")
    page.locator(".pager", has_text="of 20").wait_for()


def test_a_redraw_by_keyboard_keeps_the_focus_or_hands_it_to_what_is_near(address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)

    def enter(locator: Any) -> str:
        """Press Enter on an element and say which one has the focus when the page is drawn again."""
        locator.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("main[aria-busy=false]")
        return str(page.evaluate("document.activeElement.dataset.keep ?? document.activeElement.tagName"))

    point = page.locator(".card[data-name=language] .trend-point").first
    assert enter(point) == f"point language {key(1)}"
    assert enter(page.locator(".card[data-name=language] button")) == "categories"  # the card of the category is gone
    assert enter(page.locator(f'.card[data-name="{TASK}"] button')) == f"open {TASK}"
    page.wait_for_selector("#items details")
    assert enter(page.get_by_role("button", name="Next")) == "page after"
    page.locator(".pager", has_text="26 to 50 of 60").wait_for()
    page.get_by_role("button", name="Next").press("Enter")
    page.locator(".pager", has_text="51 to 60 of 60").wait_for()
    assert page.evaluate("document.activeElement.dataset.keep") == "page before"  # there is no next page
    page.get_by_label("Verdict").focus()
    page.keyboard.press("ArrowDown")
    page.locator(".pager", has_text="of 40").wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Verdict"
    assert enter(page.get_by_role("button", name="All categories")).startswith("open ")


def fetched(address: str, route: str) -> list[dict[str, str]]:
    import httpx

    answer = httpx.get(address.removesuffix("trend") + route, trust_env=False)
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/csv; charset=utf-8" and "attachment" in answer.headers["content-disposition"]
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


def same(cell: str, value: Any) -> bool:
    """Whether a cell says exactly this value of the table; None is an empty cell, a formula has an apostrophe before it."""
    if value is None:
        return cell == ""
    if isinstance(value, bool):
        return cell == str(value)
    if isinstance(value, (int, float)):
        return float(cell) == float(value)
    if isinstance(value, list):
        return bool(json.loads(cell) == value)
    return cell in (value, f"'{value}")


def test_the_scores_as_csv_are_the_table(warehouse: Environment, address: str) -> None:
    table = {(row["run_key"], row["benchmark"], row["category"]): row for row in delta.rows(warehouse, "scores")}
    found = fetched(address, "api/trend.csv")
    by_model = {result.run_key: result for result in results.of_stage(warehouse, "evaluate")}
    keys = [(run_key, row["benchmark"], row["category"]) for row in found for run_key, r in by_model.items() if r.recipe == row["recipe"]]
    assert len(found) == len(table) == 14 and sorted(keys) == sorted(table)
    for row, where in zip(found, keys, strict=True):
        assert row["finished_at"] == by_model[where[0]].finished_at and (row["tokens"], row["loss"]) == ("1200000", "4.0")
        assert [name for name in ("model", *trend.POINT) if not same(row[name], table[where][name])] == []


@pytest.mark.parametrize(("verdict", "n"), [("", 60), ("&verdict=wrong", 20), ("&verdict=lucky", 0)])
def test_the_items_as_csv_are_the_responses_and_verdicts(warehouse: Environment, address: str, verdict: str, n: int) -> None:
    build = Build(1, 0.4, None, 1.0)
    answered = {r["item_id"]: r for r in delta.rows(warehouse, "responses") if r["run_key"] == build.key("evaluate")}
    judged = {r["item_id"]: r for r in delta.rows(warehouse, "verdicts") if r["run_key"] == build.key("review")}
    found = fetched(address, f"api/items.csv?run_key={build.key('evaluate')}&benchmark=task%200{verdict}")
    assert len(found) == len({row["item_id"] for row in found}) == n
    for row in found:
        response, review = answered[row["item_id"]], judged[row["item_id"]]
        from_responses = ("correct", "output", "choices", "mean_logprobs", "gold")
        assert [name for name in from_responses if not same(row[name], response[name])] == []
        assert [name for name in ("verdict", "margin", "lead", "key_suspect", "evidence") if not same(row[name], review[name])] == []
        assert row["prompt"] == json.loads(response["item"])["prompt"] and HOSTILE in row["prompt"]


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_on_any_screen(address: str, open_page: Callable[..., Any], width: int) -> None:
    page = opened(open_page(width=width, color_scheme="dark"), address)
    page.get_by_label("Benchmark").select_option(TASK)
    page.wait_for_selector("#items details")
    page.locator("#items summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
