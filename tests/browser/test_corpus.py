"""Corpus statistics: the numbers of the table for every day, source and rule, on any screen; hostile names stay text, strangers get nothing."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from expectations.tables import FUNNEL
from jobs import statistics
from jobs.contract import StageResult
from jobs.environment import Environment
from jobs.services import delta, results

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"
FORMULA = "=HYPERLINK(1)"
SOURCES = ("prose", "python-code", HOSTILE)
FIRST, N_DAYS, SKIPPED = dt.date(2026, 3, 1), 200, 100  # the 101st day was never prepared


def counts(day: int, place: int) -> list[dict[str, Any]]:
    """Rows of one day and source: every end is another number, and they add up."""
    landed = 1000 + 7 * day + 300 * place
    ends = {"rejected": landed // (4 - day % 2), "duplicate": landed // 10, "contaminated": day % 5, "held_out": landed // 100}
    ends["kept"] = landed - sum(ends.values())
    named = [(end, "", n) for end, n in (("landed", landed), *ends.items())]
    named += [("rejected_by_rule", f"rule_{i}", ends["rejected"] // (i + 1)) for i in range(20)]
    named += [("rejected_by_first_rule", "rule_0", ends["rejected"]), ("kept_by_language", "en", ends["kept"] - 9), ("kept_by_language", HOSTILE, 9)]
    named += [("kept_by_licence", FORMULA, 5), ("kept_by_licence", "", ends["kept"] - 5), ("duplicate_by_scope", "near_other_day", ends["duplicate"])]
    named += [("contaminated_by_benchmark", HOSTILE, ends["contaminated"])]
    named += [(what, str(1 << b), 20 * (17 - abs(b - 12))) for what in ("landed_by_bytes", "kept_by_bytes", "kept_by_tokens") for b in range(6, 19)]
    known = {"text_bytes": None, "counted_again": None, "source": SOURCES[place]}
    return [{**known, "what": w, "bucket": b, "documents": n, "bytes": 4000 * n, "tokens": 900 * n if w in ("kept", "held_out") else None} for w, b, n in named]


def write(env: Environment, day: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = env.home / "staged" / day
    folder.mkdir(parents=True)
    schema = pa.schema([f for f in delta.arrow_schema(delta.TABLES["statistics"]) if f.name != "interval"])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "part-0.parquet")
    version = delta.publish(env, "statistics", folder, partition_value=day, metadata={})
    results.record(env, StageResult(
        stage="summarise", run_key=f"summarise-{day}", recipe="smoke", interval=day, inputs={}, outputs={"statistics": str(version)}, metrics={},
        cost_usd=0.0, wall_seconds=0.0, finished_at=f"{day}T00:00:00Z",
    ))  # fmt: skip


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    env = Environment.load("local", tmp_path_factory.mktemp("corpus"))
    for i in range(N_DAYS):
        if i != SKIPPED:
            write(env, str(FIRST + dt.timedelta(i)), [row for place in range(len(SOURCES)) for row in counts(i, place)])
    return env


@pytest.fixture
def address(warehouse: Environment, page_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MOELINE_HOME", str(warehouse.home))
    return page_server.removesuffix("page") + "corpus"


def opened(page: Any, address: str) -> Any:
    page.goto(address, wait_until="load")
    page.wait_for_selector("main[aria-busy=false]")
    return page


def total(warehouse: Environment, what: str, measure: str = "documents", **wanted: str) -> int:
    rows = delta.rows(warehouse, "statistics")
    return sum(r[measure] or 0 for r in rows if r["what"] == what and all(r[k] == v for k, v in wanted.items()))


def labels(page: Any, selector: str) -> list[str]:
    found: list[str] = page.locator(selector).evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
    return found


def test_without_days_it_says_what_to_run(page_of: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), page_of.removesuffix("page") + "corpus")
    shown = page.locator("main").inner_text()
    assert "moeline run --recipe tiny --days 3" in shown and "moeline stage summarise" in shown


def test_bars_tiles_and_table_say_what_the_table_says(warehouse: Environment, address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(width=1440), address)
    words = labels(page, "#days .column")
    for end in ("kept", "rejected", "duplicate", "contaminated", "held_out"):
        shown = sum(int(w.split(f"{end.replace('_', ' ')}: ")[1].split(" ")[0].replace(",", "")) for w in words)
        assert shown == total(warehouse, end), end
    sources = dict(zip(page.locator("#sources .source").evaluate_all("a => a.map(e => e.dataset.name)"), labels(page, "#sources .source"), strict=True))
    assert sorted(sources) == sorted(SOURCES)
    assert all(f", {total(warehouse, 'landed', source=s):,} documents landed," in text for s, text in sources.items())
    assert f"rule_3, {total(warehouse, 'rejected_by_rule', bucket='rule_3'):,} documents" in labels(page, "#rules .bucket")[3]
    assert "8 more with" in page.locator("#rules").inner_text()
    assert f"copy: near other day, {total(warehouse, 'duplicate'):,} documents" in labels(page, "#duplicates .bucket")[0]
    by_length = dict(zip(page.locator("#bytes .length").evaluate_all("a => a.map(e => e.dataset.name)"), labels(page, "#bytes .length"), strict=True))
    assert by_length["kept 4096"] == f"4,096 to 8,191, kept: {total(warehouse, 'kept_by_bytes', bucket='4096'):,} documents"
    newest = page.locator("#table tbody tr").first.locator("td").all_inner_texts()
    row = {r["what"]: r for r in counts(N_DAYS - 1, 1)}
    assert newest == ["2026-09-16", "python-code", *(f"{row[e]['documents']:,}" for e in FUNNEL), f"{row['landed']['bytes']:,}", f"{row['kept']['tokens']:,}"]
    assert page.locator("#table tbody tr").count() == 400 and "400 of 597" in page.locator("#table").inner_text()


def test_a_day_that_was_never_prepared_is_a_gap_and_a_source_alone_is_counted_alone(
    warehouse: Environment, address: str, open_page: Callable[..., Any]
) -> None:
    page = opened(open_page(width=1440), address)
    days = page.locator("#days .column").evaluate_all("all => all.map(c => [c.dataset.from, c.dataset.to])")
    assert len(days) == N_DAYS - 1 and [str(FIRST + dt.timedelta(SKIPPED))] * 2 not in days
    page.get_by_label("Source", exact=True).select_option(HOSTILE)
    page.locator("#sources .source").nth(1).wait_for(state="detached")
    assert f"{total(warehouse, 'landed', source=HOSTILE):,} documents landed" in labels(page, "#sources .source")[0]
    page.get_by_label("From", exact=True).focus()
    page.get_by_label("From", exact=True).select_option("2026-09-16")
    page.locator("#days .column").nth(1).wait_for(state="detached")
    assert labels(page, "#days .column")[0].startswith(f"2026-09-16, kept: {total(warehouse, 'kept', interval='2026-09-16', source=HOSTILE):,} documents")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "From"
    page.get_by_role("button", name="Tokens").press("Enter")
    assert f"kept: {total(warehouse, 'kept', 'tokens', interval='2026-09-16', source=HOSTILE):,} tokens" in labels(page, "#days .column")[0]


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_two_hundred_days_fit_on_any_screen_and_bars_can_be_told_apart(warehouse: Environment, address: str, open_page: Callable[..., Any], width: int) -> None:
    page = opened(open_page(width=width, color_scheme="dark"), address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#days .column rect.end-kept").first.evaluate("bar => bar.getBoundingClientRect().width") >= 4
    shown = sum(int(w.split("kept: ")[1].split(" ")[0].replace(",", "")) for w in labels(page, "#days .column"))
    assert shown == total(warehouse, "kept")  # bins of several days lose none
    page.locator("#days .column").last.focus()
    assert "kept:" in page.locator("#tooltip").inner_text()


def test_hostile_names_are_text(address: str, open_page: Callable[..., Any]) -> None:
    page = opened(open_page(), address)
    assert page.locator("main img, main script, header img").count() == 0
    assert HOSTILE in page.locator("#table").inner_text() and HOSTILE in " ".join(labels(page, "#languages .bucket"))
    assert HOSTILE in page.locator("#filters").inner_text()


def test_the_file_holds_every_row_and_runs_nothing_in_a_spreadsheet(warehouse: Environment, address: str) -> None:
    answer = httpx.get(address.replace("corpus", "api/corpus.csv"), params={"source": "prose"}, trust_env=False)
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    expected = statistics.read(warehouse, source="prose")
    assert len(rows) == len(expected) and "attachment" in answer.headers["content-disposition"]
    assert [(r["interval"], r["what"], r["documents"], r["tokens"]) for r in rows] == [
        (r["interval"], r["what"], str(r["documents"]), "" if r["tokens"] is None else str(r["tokens"])) for r in expected
    ]
    assert {r["bucket"] for r in rows if r["what"] == "kept_by_licence"} == {f"'{FORMULA}", ""}


def test_bad_questions_are_refused_and_the_signed_out_get_nothing(address: str) -> None:
    import cost_vs_accuracy as plugin
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi import HTTPException

    root = address.removesuffix("corpus")

    def ask(route: str) -> int:
        return httpx.get(root + route, trust_env=False, timeout=60).status_code

    assert [ask(f"api/corpus?{bad}") for bad in ("first=../x", "last=2026-1-1", "source=", "first=2026-99-99", "source=nobody")] == [422, 422, 422, 404, 404]

    def refuse() -> None:
        raise HTTPException(401)

    before = plugin.app.dependency_overrides[get_user]
    plugin.app.dependency_overrides[get_user] = refuse
    try:
        routes = ("corpus", "api/corpus", "api/corpus.csv", "static/corpus.js", "static/corpus_charts.js", "static/corpus.css")
        assert [ask(route) for route in routes] == [401] * len(routes)
    finally:
        plugin.app.dependency_overrides[get_user] = before


def test_what_the_page_reads_adds_up_to_the_table(warehouse: Environment) -> None:
    found = statistics.overview(warehouse, "2026-03-05", "2026-03-06", "prose")
    assert [(row["day"], row["source"]) for row in found["funnel"]] == [("2026-03-05", "prose"), ("2026-03-06", "prose")]
    assert len(found["days"]) == N_DAYS - 1 and found["sources"] == sorted(SOURCES)
    for row in found["funnel"]:
        assert row["landed"]["documents"] == sum(row[end]["documents"] for end in FUNNEL[1:])
        assert row["kept"] == {m: total(warehouse, "kept", m, interval=row["day"], source="prose") for m in ("documents", "bytes", "tokens")}
    assert json.loads(json.dumps(found)) == found
