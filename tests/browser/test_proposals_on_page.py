"""Failure groups and their proposals on the page: the numbers of `moeline propose`, the command that makes a recipe of one, hostile text as text."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import reviewed_runs

from jobs import cli, proposals, recipes
from jobs.environment import Environment

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script> $(touch owned) `id`"
CARD = "#where-it-fails"


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A reviewed run with one group in the corpus, a hostile one, and one that is like nothing in the corpus."""
    env = Environment.load("local", tmp_path_factory.mktemp("proposals"))
    groups = [*reviewed_runs.GROUPS, (5, ((HOSTILE, 0.5), ("python-code", 0.5)), HOSTILE)]
    reviewed_runs.write(env, corpus={**reviewed_runs.CORPUS, HOSTILE: 100_000}, groups=groups)
    return env


@pytest.fixture
def address(warehouse: Environment, page_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MOELINE_HOME", str(warehouse.home))
    return page_server


def opened(page: Any, address: str) -> Any:
    page.goto(address, wait_until="load")
    page.wait_for_selector(f"{CARD} details")
    return page


def test_every_group_is_there_with_the_numbers_of_the_command(warehouse: Environment, address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)
    found = proposals.describe(warehouse, reviewed_runs.TRAIN)
    assert page.locator(f"{CARD} details").count() == len(found["groups"]) == 4
    page.locator(f"{CARD} [data-group='0'] summary").focus()
    page.keyboard.press("Enter")
    text = page.locator(f"{CARD} [data-group='0']").inner_text()
    first = found["groups"][0]["proposal"]
    assert "60 of 120 failed" in text and f"${first['added_usd']:.4f} for the added ones, ${first['build_usd']:.4f} for the whole build" in text
    row = page.locator(f"{CARD} [data-group='0'] tbody tr").first.locator("td").all_inner_texts()
    assert row == ["python-docs", "43k", "182k", "0", "42.8k"]
    shares = {source: 100 * weight / sum(first["weights"].values()) for source, weight in first["weights"].items()}
    assert f"python-code {shares['python-code']:.0f} %, python-docs {shares['python-docs']:.0f} %." in text and "Weighed " in text
    page.locator(f"{CARD} [data-group='2'] summary").click()
    assert "land text first" in page.locator(f"{CARD} [data-group='2']").inner_text()
    assert page.locator(f"{CARD} [data-group='2'] .command").count() == 0
    assert found["rule"] in page.locator(CARD).inner_text() and found["mixture"] in page.locator(CARD).inner_text()


def test_the_command_is_copied_as_it_is_and_makes_the_recipe(
    warehouse: Environment, address: str, open_page: Callable[..., Any], capsys: pytest.CaptureFixture
) -> None:
    page = opened(open_page(permissions=["clipboard-read", "clipboard-write"]), address)
    page.locator(f"{CARD} [data-group='1'] summary").click()
    page.locator(f"{CARD} [data-group='1'] button").focus()
    page.keyboard.press("Enter")
    page.locator(f"{CARD} [role=status]", has_text="Copied.").wait_for()
    command = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert command[0] == "moeline" and cli.main([*command[1:], "--home", str(warehouse.home), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["groups"] == [1] and recipes.load(command[-1], home=warehouse.home).tokens == made["proposal"]["recipe_tokens"]


def test_where_copying_is_forbidden_the_command_is_selected(address: str, open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: {writeText: () => Promise.reject(new Error('no'))}})")
    opened(page, address).locator(f"{CARD} [data-group='0'] summary").click()
    page.locator(f"{CARD} [data-group='0'] button").click()
    page.locator(f"{CARD} [role=status]", has_text="Selected").wait_for()
    assert page.evaluate("getSelection().toString()").startswith("moeline propose a1b2c3d4a1b2 --group 0 --as-recipe ")


def test_hostile_names_stay_text_and_never_reach_the_command(address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)
    page.locator(f"{CARD} [data-group='3'] summary").click()
    assert HOSTILE in page.locator(f"{CARD} [data-group='3']").inner_text()
    assert page.locator("main img, main script").count() == 0
    command = page.locator(f"{CARD} [data-group='3'] code").inner_text()
    assert set(command) <= set("abcdefghijklmnopqrstuvwxyz0123456789- ")


def test_a_redraw_keeps_the_open_group_and_the_focus(address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)
    page.locator(f"{CARD} [data-group='0'] summary").click()
    toggle = page.get_by_role("button", name="By task")
    toggle.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.innerText") == "By task" and toggle.get_attribute("aria-pressed") == "true"
    assert page.locator(f"{CARD} [data-group='0']").get_attribute("open") is not None


def test_a_run_that_cannot_be_priced_says_why(env: Environment, page_of: str, open_page: Callable[..., Any]) -> None:
    reviewed_runs.write(env, charged=False)
    page = open_page()
    page.goto(page_of, wait_until="load")
    page.locator(CARD, has_text="no row in the table costs").wait_for()


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_on_any_screen(address: str, open_page: Callable[..., Any], width: int) -> None:
    page = opened(open_page(width=width, color_scheme="dark"), address)
    for summary in page.locator(f"{CARD} summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
