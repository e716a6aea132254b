"""The model card of a really registered version: its numbers are those of the tables, its metadata valid, strangers' texts harmless, gaps told."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import duckdb
import mistune
import pytest
import registered_models as built
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from jobs import cli, model_card, model_card_text, purge
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import delta, results

SHOWN = built.HOSTILE.replace("|", "\u00a6")  # a bar parts cells
RENDERERS = {
    "markdown-it": MarkdownIt("commonmark", {"html": True}).enable("table").render,
    "mistune": mistune.create_markdown(escape=False, plugins=["table", "url"]),
}


@pytest.fixture(scope="module")
def registered(tmp_path_factory) -> Environment:
    return built.home(tmp_path_factory.mktemp("registered"))


@pytest.fixture
def home(registered, tmp_path) -> Environment:
    shutil.copytree(registered.home, tmp_path / "home")
    return Environment.load("local", tmp_path / "home")


class Page(HTMLParser):
    """Tags of a page, and its tables as lists of rows by the heading they stand under."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.tables: dict[str, list[list[str]]] = {}
        self.heading, self._text = "", None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert attrs in ([], [("class", "language-yaml")]) or set(dict(attrs)) <= {"style", "id"}, attrs
        if tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        if tag in ("td", "th", "h2"):
            self._text = ""

    def handle_data(self, data):
        if self._text is not None:
            self._text += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[self.heading][-1].append(self._text)
        elif tag == "h2":
            self.heading = self._text
        if tag in ("td", "th", "h2"):
            self._text = None


def card(env: Environment) -> str:
    return model_card_text.render(model_card.of_version(env, "moeline", "1"))


def body(text: str) -> str:
    return text.split("\n---\n", 1)[1]


def table(env: Environment, heading: str) -> dict[str, list[str]]:
    """First cell -> the others, of the tables under a heading; of equal first cells the first counts."""
    found: dict[str, list[str]] = {}
    for first, *rest in Page(RENDERERS["markdown-it"](body(card(env)))).tables[heading]:
        found.setdefault(first, rest)
    return found


def test_documents_are_those_that_duckdb_counts_in_the_tables(registered):
    funnel = table(registered, "Data")
    for source in (built.HOSTILE, "prose"):
        counts = []
        for name, where in (("documents", ""), ("rejections", ""), ("duplicates", ""), ("training_documents", "and split = 'train'")):
            rows = delta.dataset(registered, delta.latest(registered, name)).to_table()
            documents = delta.dataset(registered, delta.latest(registered, "documents")).to_table()
            query = f"select count(distinct (r.doc_id, r.interval)) from rows r join documents d using (doc_id, interval) where d.source = ? {where}"
            with duckdb.connect() as con:
                con.register("rows", rows)
                con.register("documents", documents)
                counts.append(con.execute(query, [source]).fetchone()[0])
        shown = funnel[source.replace("|", "\u00a6")]
        assert [shown[0], shown[1], shown[2], shown[5]] == [f"{n:,d}" for n in counts] and counts[0] == 84, source
        assert shown[7:] == [f"{built.TRAINED['tokens_by_source'][source]:,d}", f"{built.TRAINED['epochs_by_source'][source]:g}"]


def test_costs_are_the_sums_of_the_ledger_and_small_ones_do_not_become_zero(registered):
    cost = table(registered, "Cost and energy")
    rows = delta.rows(registered, "costs")
    for name, stages in {
        "train": {"train"},
        "eval": {"evaluate", "review"},
        "prepare": {"ingest", "clean", "deduplicate", "decontaminate", "pack", "summarise"},
    }.items():
        own = [r for r in rows if r["x_Stage"] in stages]
        assert float(cost[name][0]) == pytest.approx(sum(r["BilledCost"] for r in own), rel=1e-5) and float(cost[name][0]) > 0
        assert float(cost[name][1]) == pytest.approx(sum(r["x_EnergyKwh"] for r in own), rel=1e-5) and float(cost[name][1]) > 0
        assert int(cost[name][3]) == len({r["x_AttemptId"] for r in own})
    assert float(cost["all"][0]) == pytest.approx(sum(r["BilledCost"] for r in rows), rel=1e-5)


def test_forecast_scores_and_failures_stand_beside_what_came_out(registered):
    forecast = table(registered, "Forecast and outcome")
    assert forecast["loss"] == ["4.4", "4.2 to 4.6", "5", "4.5", "yes"]
    assert forecast["accuracy"] == ["0.9", "0.8 to 1", "not measured", "0.55", "no"]
    scores = table(registered, "Scores")
    assert scores["average"][2:4] == ["0.5500", "0.0219"]
    assert scores[SHOWN] == ["3", "5", "0.6000", "0.0219", "0.2500", "0.3000", "0.4300", "0.5000", "0"]
    assert scores["next_line"][2] == "0.0000" and scores["next_line"][7] == "not measured"  # nothing right, which was measured; clean items, which were not
    failures = Page(RENDERERS["markdown-it"](body(card(registered)))).tables["Known failures"]
    assert failures[1] == [SHOWN, "5", "2", "0", "3", "2"] and failures[3][4:] == ["1 of 1", f"{SHOWN} 75%"]
    architecture = table(registered, "Architecture")
    assert architecture["n_experts"] == ["4"] and architecture["parameters"] == [f"{built.MODEL.params_total:,d}"]
    assert table(registered, "Training")["mfu"] == ["not measured"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_strangers_texts_are_shown_and_never_run(registered, renderer):
    text = card(registered)
    html = RENDERERS[renderer](body(text))
    page = Page(html)  # asserts that no tag has an attribute but a table's
    assert page.tags <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "strong"}
    cells = [cell for rows in page.tables.values() for row in rows for cell in row]
    assert SHOWN in cells and any(cell.startswith("MIT?---?<script>alert(3)</script>") for cell in cells)
    assert {len(row) for row in page.tables["Scores"]} == {10}  # a bar in a name parts no cells


def test_the_metadata_is_valid_for_the_hub_and_holds_nothing_of_a_stranger_but_words(registered):
    text = card(registered)
    front = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    raw = yaml.safe_load(front[1])
    found = ModelCard(text).data  # parses the block and the model index, raises where either is invalid
    assert found.to_dict() == model_card_text.metadata(model_card.of_version(registered, "moeline", "1")).to_dict()
    assert set(raw) == {"license", "library_name", "pipeline_tag", "tags", "metrics", "model-index"}
    assert raw["license"] == "unknown" and raw["library_name"] == "transformers" and raw["pipeline_tag"] == "text-generation"  # identifiers of the Hub
    [model] = raw["model-index"]
    assert {r["dataset"]["type"]: r["metrics"][0]["value"] for r in model["results"]}["next_line"] == 0.0 and len(model["results"]) == 2
    for result in model["results"]:
        assert re.fullmatch(r"[A-Za-z0-9._-]+", result["dataset"]["type"]) and not set(result["dataset"]["name"]) & set("<>`|[]\"'\n")


def test_what_was_not_measured_is_called_so_and_never_zero(home):
    shutil.rmtree(home.warehouse / "costs")
    for stage in ("summarise", "review"):
        version = results.newest(home, stage).outputs["statistics" if stage == "summarise" else "failures"]
        name = version.partition("@")[0]
        shutil.rmtree(home.warehouse / name)  # as if forgotten: recorded, but no longer to be read
    facts = model_card.of_version(home, "moeline", "1")
    assert facts["cost"]["total"] is None and set(facts["cost"]["phases"].values()) == {None} and facts["cost"]["wasted_usd"] is None
    assert facts["data"]["funnel"] is None and facts["data"]["not_counted"] == list(built.DAYS) and facts["failures"] is None
    cost = table(home, "Cost and energy")
    assert {cell for row in list(cost.values())[1:] for cell in row} == {"not measured"}
    text = card(home)
    assert "Not counted, so not in the numbers below: 2026-11-01, 2026-11-02." in text
    assert text.count("Dropped as copies:\n\nnot measured") == 1 and "## Known failures\n\nnot measured" in text


def test_one_phase_without_charges_leaves_the_total_unknown(home):
    facts = model_card.of_version(home, "moeline", "1")
    records = model_card.report.Records(home)
    own = {"train": results.newest(home, "train"), "review": results.newest(home, "review")}
    del records.costs_of[own["review"].run_key]
    cost = model_card._cost(records, [], own)
    assert cost["phases"]["eval"] is None and cost["phases"]["train"] == facts["cost"]["phases"]["train"] and cost["total"] is None
    assert cost["without_charges"] == ["review"]


def test_an_old_charge_without_a_method_leaves_the_energy_unknown():
    charge = {"BilledCost": 1.0, "x_EnergyKwh": 0.0, "x_EnergyMethod": None, "x_WallSeconds": 2.0, "x_AttemptId": "a"}
    assert model_card._sums([charge]) == {"cost_usd": 1.0, "energy_kwh": None, "wall_seconds": 2.0, "attempts": 1}


def test_no_text_and_no_name_of_a_document_or_an_item_is_on_it(registered):
    stored = [p for p in registered.artifacts.rglob("README.md") if "huggingface" in p.parts]
    assert len(stored) == 1
    for text in (card(registered), stored[0].read_text()):
        for word in ("secret-word", "secret-summary", "u:copy", "words 1 of"):
            assert word not in text
        for row in delta.rows(registered, "documents"):
            assert row["doc_id"] not in text
    asked = delta.rows(registered, "documents")[0]["doc_id"]
    assert not [place for place in purge.left(registered, [asked]) if place["file"].endswith("README.md")]


def test_the_card_stored_with_the_model_has_the_same_numbers_and_no_version_yet(registered):
    [stored] = registered.artifacts.rglob("huggingface/README.md")
    text, now = stored.read_text(), card(registered)
    assert text.startswith("---\n") and "\n# moeline\n" in text and "\n# moeline version 1\n" in now
    sections = [dict(part.split("\n", 1) for part in body(t).split("\n## ")[1:]) for t in (text, now)]
    for name in ("Data", "Architecture", "Training", "Forecast and outcome", "Scores", "Known failures"):
        assert sections[0][name] == sections[1][name], name
    assert "`register`" not in sections[0]["Cost and energy"] and "`register`" in sections[1]["Cost and energy"]


def test_the_command_prints_it_and_says_which_versions_there_are(registered, capsys):
    home = ["--home", str(registered.home)]
    assert cli.main(["model", "card", "moeline/v1", *home]) == 0
    assert capsys.readouterr().out == card(registered)
    assert cli.main(["model", "card", "1", "--json", *home]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["trained"]["held_out_loss"] == 4.5
    assert cli.main(["model", "card", "moeline/7", *home]) == 1
    assert "No model moeline/7 is registered here; versions of moeline: 1." in capsys.readouterr().err
    assert cli.main(["model", "card", "../1", *home]) == 1
    assert "No model ../1 is registered here" in capsys.readouterr().err
    with pytest.raises(MoelineError, match="Write NAME/VERSION"):
        cli.main(["model", "card", "moeline/latest", "--debug", *home])
