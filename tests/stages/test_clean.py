"""Clean on real Spark: every document is kept or rejected with every rule it broke."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expectations.tables import TABLES
from jobs.config import CleanConfig
from jobs.contract import MoelineError
from jobs.services.spark import cast_to_table, rows_schema
from jobs.stages import clean, rules

DAY = "2026-11-01"
REPO = Path(__file__).resolve().parents[2]
PROSE = (
    "The reader of this page will have seen that the rules are meant to keep ordinary prose.\n"
    "It has sentences of different length, and lines which end the way that people end them.\n"
    "Nothing in it is repeated, there are no bullets, and every line is longer than thirty characters.\n"
    "A document with fewer than fifty words would be dropped, so this one goes on for a while with another sentence.\n"
)
CODE = "def area(width, height):\n    return width * height\n\n\nprint(area(2, 3))\nprint(area(4, 5))\nprint(area(6, 7))\n"


def documents(spark, *rows: tuple[str, str | None, str]):
    made = [
        (f"{i:032d}", DAY, source, f"u:{i}", licence, text, len(text.encode()), f"{source}/{DAY}/a.jsonl") for i, (source, licence, text) in enumerate(rows)
    ]
    return spark.createDataFrame(made, rows_schema(TABLES["documents"]))


def cleaned(frame, tools, config: CleanConfig | None = None):
    output = clean.run(config or CleanConfig(), {"documents": frame}, tools)
    tables = {name: cast_to_table(rows, TABLES[name], DAY).toArrow().to_pylist() for name, rows in output.tables.items()}
    return tables["clean_documents"], tables["rejections"], output.metrics


def test_documents_are_kept_with_scores_or_rejected_with_every_broken_rule(spark, tools):
    frame = documents(
        spark,
        ("python-code", "MIT", CODE.replace("\n", "\r\n")),
        ("python-code", "GPL-3.0-only", "# auto-generated\n" + "x = 'a b' " * 101),
        ("web", None, PROSE),
        ("web", "MIT", "too short"),
        ("web", "MIT", "\x00\x07"),
    )
    kept, rejected, metrics = cleaned(frame, tools)

    assert {k["uri"]: (k["text"], k["n_bytes"], k["licence"], k["interval"]) for k in kept} == {
        "u:0": (CODE, len(CODE), "MIT", DAY), "u:2": (PROSE, len(PROSE), None, DAY),
    }  # fmt: skip
    scores = {k["uri"]: json.loads(k["scores"]) for k in kept}
    redacted = {f"pii.{kind}" for kind in CleanConfig().redact}
    assert set(scores["u:0"]) == redacted | {"text.bytes", *(rule.name for rule in rules.select(("code",)))}
    assert scores["u:0"]["code.size_bytes"] == len(CODE)
    assert set(scores["u:2"]) == redacted | {"text.bytes", *(rule.name for rule in rules.select(("gopher_quality", "gopher_repetition", "fineweb")))}

    by_document: dict[str, dict] = {}
    for r in rejected:
        assert (r["stage"], r["interval"]) == ("clean", DAY)
        by_document.setdefault(r["doc_id"][-1], {})[r["rule"]] = (r["value"], r["threshold"], r["detail"])
    assert by_document["1"] == {
        "licence.not_allowed": (None, None, "GPL-3.0-only"),
        "code.max_line_length": (1010.0, 1000.0, None),
        "code.mean_line_length": (513.0, 100.0, None),
        "code.generated_marks": (1.0, 0.0, None),
    }
    assert by_document["3"].keys() >= {"gopher_quality.words", "gopher_quality.stop_words", "fineweb.punctuated_line_share", "fineweb.short_line_share"}
    assert by_document["3"]["gopher_quality.words"] == (2.0, 50.0, None)
    assert by_document["4"]["text.bytes"] == (0.0, 1.0, None)
    assert set(by_document) == {"1", "3", "4"}

    assert (metrics["documents"], metrics["kept"], metrics["rejected"], metrics["kept_unknown_licence"]) == (5, 2, 3, 1)
    assert metrics["by_source"] == {"python-code": {"documents": 2, "kept": 1, "bytes": len(CODE)}, "web": {"documents": 3, "kept": 1, "bytes": len(PROSE)}}
    assert metrics["bytes"] == sum(k["n_bytes"] for k in kept)
    assert metrics["rejected_by_rule"]["gopher_quality.words"] == 2
    assert sum(metrics["rejected_by_rule"].values()) == len(rejected)
    assert "code.encoded_share" in metrics["rules_without_rejection"]


def test_on_real_files_nothing_disappears_and_the_result_does_not_depend_on_partitions(spark, tools):
    sources = [p for p in sorted(REPO.rglob("*.py")) if ".venv" not in p.parts][:60]
    files = [*sources, REPO / "pyproject.toml", REPO / "requirements.lock"]
    texts = [("python-code" if i % 2 else "web", None, file.read_text() or " ") for i, file in enumerate(files)]
    frame = documents(spark, *texts)
    kept, rejected, metrics = cleaned(frame.repartition(1), tools)
    assert {k["doc_id"] for k in kept} | {r["doc_id"] for r in rejected} == {f"{i:032d}" for i in range(len(files))}
    assert not {k["doc_id"] for k in kept} & {r["doc_id"] for r in rejected}
    assert metrics["kept"] + metrics["rejected"] == metrics["documents"] == len(files)
    assert 0 < metrics["kept"] < len(files)

    again, rejected_again, metrics_again = cleaned(frame.repartition(7), tools)
    assert sorted(map(str, again)) == sorted(map(str, kept))
    assert sorted(map(str, rejected_again)) == sorted(map(str, rejected))
    assert metrics_again == metrics


def test_personal_data_leave_only_placeholders_and_counts(spark, tools):
    code = f"# Ann <ann@some-firm.com>, bob@some-firm.com, 81.47.200.13\n{CODE}"
    frame = documents(spark, ("python-code", "MIT", code), ("python-code", "MIT", "x@y.com"))
    kept, _, metrics = cleaned(frame, tools)
    assert [k["text"] for k in kept] == [f"# Ann <<EMAIL>>, <EMAIL>, <IP_ADDRESS>\n{CODE}"]
    scores = json.loads(kept[0]["scores"])
    assert {name: n for name, n in scores.items() if name.startswith("pii.") and n} == {"pii.email": 2, "pii.ip": 1}
    assert metrics["redacted"] == {"card": 0, "email": 2, "iban": 0, "ip": 1, "phone": 0, "secret": 0}
    kept, _, metrics = cleaned(frame, tools, CleanConfig(redact=()))
    assert (kept[0]["text"], metrics["redacted"]) == (code, {})


def test_unknown_licences_are_rejected_where_the_recipe_says_so(spark, tools):
    kept, rejected, _ = cleaned(documents(spark, ("python-code", None, CODE)), tools, CleanConfig(allow_unknown_licence=False))
    assert kept == []
    assert [(r["rule"], r["detail"]) for r in rejected] == [("licence.unknown", None)]


def test_a_day_in_which_everything_is_rejected_or_nothing_landed_is_no_failure(spark, tools):
    kept, rejected, metrics = cleaned(documents(spark).where("false"), tools)
    assert (kept, rejected, metrics["documents"], metrics["by_source"]) == ([], [], 0, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CleanConfig(rules=(("*", ("gopher",)),)), "Unknown rule set 'gopher'"),
        (CleanConfig(rules=(("web", ("code",)),)), "no entry '\\*'"),
        (CleanConfig(rules=(("*", ()), ("*", ("code",)))), "twice"),
        (CleanConfig(allowed_licences=("MIT or ISC",)), "MIT or ISC"),
        (CleanConfig(redact=("names",)), "redact names 'names'"),
    ],
)
def test_a_wrong_config_is_refused_before_any_work(config, message):
    with pytest.raises(MoelineError, match=message):
        clean.run(config, {}, None)  # neither rows nor tools are touched
