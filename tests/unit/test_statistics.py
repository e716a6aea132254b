"""Statistics: every document of every source is counted where it ended, as DuckDB counts it in the same tables; what does not add up is refused."""

from __future__ import annotations

import json

import duckdb
import pytest
from prepared_days import RECIPE, write

from jobs import run, statistics
from jobs.contract import CheckFailed, TableVersion
from jobs.services import delta, report, results

DAY = "2026-11-01"
GRAMS = "gopher_repetition.top_2gram_char_share"
HOSTILE = "<img src=x onerror=alert(1)>'\"; drop table"


def doc(number: int) -> str:
    return f"{number:032x}"


def landed(number: int, source: str, n_bytes: int, licence: str | None = "MIT") -> dict:
    return {"doc_id": doc(number), "source": source, "uri": f"u{number}", "licence": licence, "text": "x", "n_bytes": n_bytes, "landed_file": f"{source}/a"}


def broke(number: int, source: str, *rules: str) -> list[dict]:
    return [{"doc_id": doc(number), "source": source, "stage": "clean", "rule": rule, "value": 1.0, "threshold": 0.0, "detail": None} for rule in rules]


def copy(number: int, scope: str) -> dict:
    return {"doc_id": doc(number), "kept_doc_id": doc(1), "kept_interval": DAY, "jaccard": 1.0, "cluster_size": 2, "scope": scope, "containment": None}


def trained(number: int, source: str, n_bytes: int, split: str = "train") -> dict:
    return {"doc_id": doc(number), "source": source, "uri": "u", "licence": "MIT", "text": "x", "n_bytes": n_bytes, "split": split}


def sequence(number: int, split: str, pieces: list[tuple[int, str, int]], n_tokens: int) -> dict:
    """``pieces``: (document, source, where it starts)."""
    return {
        "sequence_id": number, "split": split, "tokens": [0] * 8, "boundaries": [start for _, _, start in pieces], "doc_ids": [doc(n) for n, _, _ in pieces],
        "sources": [source for _, source, _ in pieces], "n_tokens": n_tokens, "tokenizer_id": "t",
    }  # fmt: skip


def a_day() -> dict[str, dict[str, list]]:
    """Nine documents of two sources, one of a hostile name, with every end there is."""
    a, b = "prose", HOSTILE
    unique = [{**trained(n, s, size), "scores": json.dumps({"language": code} if code else {})} for n, s, size, code in (
        (1, a, 7, "en"), (2, a, 8, "de"), (3, a, 9, "en"), (4, b, 63, None), (5, b, 64, None),
    )]  # fmt: skip
    cut = {"ngram": "n", "rule": "ngram", "removed_characters": 3}
    return {
        "ingest": {
            "documents": [
                landed(1, a, 10), landed(2, a, 16, None), landed(3, a, 15), landed(4, b, 64), landed(5, b, 65, HOSTILE), landed(6, a, 1),
                landed(7, a, 2, "GPL"),
                landed(8, a, 31), landed(9, b, 32),
            ],
            "quarantine": [{"file": f"{b}/x.gz", "offset": -1, "error": "e", "raw": b""}, {"file": "elsewhere/y/x.gz", "offset": 3, "error": "e", "raw": b""}],
        },
        "clean": {"rejections": [*broke(6, a, "gopher_quality.words", "fineweb.punctuated_line_share"), *broke(7, a, GRAMS, "licence.not_allowed")]},
        "deduplicate": {"duplicates": [copy(8, "exact"), copy(9, "near_other_day")], "unique_documents": unique},
        "decontaminate": {
            "contamination": [
                *({"doc_id": doc(3), "benchmark": "arc", "item_id": i, "action": "drop_document", **cut} for i in ("1", "2")),
                {"doc_id": doc(1), "benchmark": "arc", "item_id": "1", "action": "cut_passage", **cut},
            ],
            "training_documents": [trained(1, a, 7), trained(2, a, 8, "held_out"), trained(4, b, 63), trained(5, b, 64)],
        },
        "pack": {"sequences": [
            sequence(0, "train", [(1, a, 0), (4, b, 3)], 8), sequence(1, "train", [(4, b, 0), (5, b, 2)], 5), sequence(2, "held_out", [(2, a, 0)], 4)
        ]},
    }  # fmt: skip


def prepare(env, day: dict[str, dict[str, list]]) -> None:
    for second, (stage, tables) in enumerate(day.items(), 1):
        write(env, stage, DAY, second, **tables)


def counts(env, what: str) -> dict:
    return {(r["source"], r["bucket"]): (r["documents"], r["bytes"]) for r in delta.rows(env, "statistics") if r["what"] == what}


@pytest.fixture(scope="module")
def summarised(tmp_path_factory):
    from jobs.environment import Environment

    env = Environment.load("local", tmp_path_factory.mktemp("statistics"))
    prepare(env, a_day())
    return env, run.run_stage(env, "summarise", RECIPE, interval=DAY)


def test_every_document_of_every_source_has_one_end_and_bytes_add_up_too(summarised) -> None:
    env, result = summarised
    ends = ("rejected", "duplicate", "contaminated", "held_out", "kept")
    for source, documents, size in (("prose", 6, 75), (HOSTILE, 3, 161)):
        assert counts(env, "landed")[source, ""] == (documents, size)
        found = [counts(env, end)[source, ""] for end in ends]
        assert (sum(n for n, _ in found), sum(b for _, b in found)) == (documents, size)
    assert {end: result.metrics[end] for end in ends} == {"rejected": 2, "duplicate": 2, "contaminated": 1, "held_out": 1, "kept": 3}


def test_every_broken_rule_counts_and_the_first_in_the_recipes_order_counts_once(summarised) -> None:
    env, _ = summarised
    assert set(counts(env, "rejected_by_rule").values()) == {(1, 1), (1, 2)} and len(counts(env, "rejected_by_rule")) == 4
    assert counts(env, "rejected_by_first_rule") == {("prose", "gopher_quality.words"): (1, 1), ("prose", "licence.not_allowed"): (1, 2)}


def test_what_is_dropped_is_told_by_scope_and_benchmark_and_a_cut_document_stays(summarised) -> None:
    env, _ = summarised
    assert counts(env, "duplicate_by_scope") == {("prose", "exact"): (1, 31), (HOSTILE, "near_other_day"): (1, 32)}
    assert counts(env, "contaminated_by_benchmark") == {("prose", "arc"): (1, 15)}
    assert counts(env, "quarantined") == {(HOSTILE, ""): (1, None), ("elsewhere", ""): (1, None)}


def test_languages_licences_and_lengths(summarised) -> None:
    env, _ = summarised
    assert counts(env, "kept_by_language") == {("prose", "en"): (1, 10), (HOSTILE, ""): (2, 129)}
    assert counts(env, "landed_by_licence")[HOSTILE, HOSTILE] == (1, 65) and counts(env, "landed_by_licence")["prose", ""] == (1, 16)
    assert counts(env, "landed_by_bytes") == {
        ("prose", "1"): (1, 1), ("prose", "2"): (1, 2), ("prose", "8"): (2, 25), ("prose", "16"): (2, 47), (HOSTILE, "32"): (1, 32), (HOSTILE, "64"): (2, 129),
    }  # fmt: skip
    assert counts(env, "kept_by_bytes") == {("prose", "4"): (1, 10), (HOSTILE, "32"): (1, 64), (HOSTILE, "64"): (1, 65)}
    assert counts(env, "kept_by_tokens") == {("prose", "2"): (1, 10), (HOSTILE, "4"): (1, 64), (HOSTILE, "2"): (1, 65)}


def test_tokens_are_those_of_the_sequences_without_padding(summarised) -> None:
    env, result = summarised
    tokens = {(r["source"], r["what"]): (r["tokens"], r["text_bytes"]) for r in delta.rows(env, "statistics") if r["what"] in ("kept", "held_out")}
    assert tokens["prose", "kept"] == (3, 7) and tokens[HOSTILE, "kept"] == (10, 127) and tokens["prose", "held_out"] == (4, 8)
    assert result.metrics["training_tokens"] == 13


def test_duckdb_counts_the_same_in_the_tables(summarised) -> None:
    env, _ = summarised

    def query(sql: str, *names: str) -> set:
        return set(duckdb.execute(sql, [delta.open_table(env, name).file_uris() for name in names]).fetchall())

    def table(what: str) -> set:
        return {(r["source"], r["bucket"], r["documents"], r["bytes"]) for r in delta.rows(env, "statistics") if r["what"] == what and r["documents"]}

    assert table("landed") == query("select source, '', count(*), sum(n_bytes)::bigint from read_parquet(?) group by 1", "documents")
    assert table("rejected_by_rule") == query(
        "select r.source, rule, count(distinct r.doc_id), sum(n_bytes)::bigint from read_parquet(?) r join read_parquet(?) d using (doc_id) group by 1, 2",
        "rejections", "documents",
    )  # fmt: skip
    assert table("duplicate_by_scope") == query(
        "select d.source, scope, count(*), sum(n_bytes)::bigint from read_parquet(?) x join read_parquet(?) d using (doc_id) group by 1, 2",
        "duplicates", "documents",
    )  # fmt: skip
    assert table("landed_by_bytes") == query(
        "select source, (1 << (length(bin(n_bytes)) - 1))::varchar, count(*), sum(n_bytes)::bigint from read_parquet(?) group by 1, 2", "documents"
    )
    tokens = query(
        "with p as (select unnest(sources) s, unnest(boundaries) b, generate_subscripts(boundaries, 1) i, boundaries bs, n_tokens n from read_parquet(?)) "
        "select s, sum(coalesce(bs[i + 1], n) - b)::bigint from p group by 1", "sequences",
    )  # fmt: skip
    found: dict[str, int] = {}
    for row in delta.rows(env, "statistics"):
        if row["what"] in ("kept", "held_out"):
            found[row["source"]] = found.get(row["source"], 0) + (row["tokens"] or 0)
    assert set(found.items()) == tokens


def lose(day) -> None:
    day["decontaminate"]["training_documents"].pop()


def end_twice(day) -> None:
    day["deduplicate"]["duplicates"].append(copy(5, "exact"))


def invent(day) -> None:
    day["deduplicate"]["duplicates"].append(copy(77, "exact"))


def never_pack(day) -> None:
    day["pack"]["sequences"][1] = sequence(1, "train", [(4, HOSTILE, 0)], 5)


def swap_sources(day) -> None:
    """A document lost of one source, another one counted twice: the day's sum is right, its sources are not."""
    lose(day)
    day["deduplicate"]["duplicates"].append(copy(1, "exact"))


@pytest.mark.parametrize("breach", [lose, end_twice, invent, never_pack, swap_sources])
def test_a_day_whose_documents_do_not_add_up_is_refused(env, breach) -> None:
    day = a_day()
    breach(day)
    prepare(env, day)
    with pytest.raises(CheckFailed, match="documents,counted_again"):
        run.run_stage(env, "summarise", RECIPE, interval=DAY)
    assert delta.latest(env, "statistics") is None and results.of_stage(env, "summarise") == []
    seen = [c["observed"] for c in delta.rows(env, "checks") if c["rule"] == "EveryDocumentHasOneEnd"]
    assert len(seen) == (0 if breach is never_pack else 1)


def test_a_day_that_rejected_and_dropped_nothing_is_summarised(env) -> None:
    day = a_day()
    day["ingest"] = {"documents": [landed(1, "prose", 10)], "quarantine": []}
    day["clean"]["rejections"], day["deduplicate"]["duplicates"] = [], []
    day["decontaminate"] = {"contamination": [], "training_documents": [trained(1, "prose", 7)]}
    day["pack"]["sequences"] = [sequence(0, "train", [(1, "prose", 0)], 3)]
    prepare(env, day)
    assert run.run_stage(env, "summarise", RECIPE, interval=DAY).metrics["kept"] == 1


def test_it_is_priced_as_preparation_and_the_second_time_nothing_is_counted(summarised) -> None:
    env, first = summarised
    again = run.run_stage(env, "summarise", RECIPE, interval=DAY)
    assert again.reused and again.run_key == first.run_key
    charges = [c for c in delta.rows(env, "costs") if c["x_RunKey"] == first.run_key and c["x_Outcome"] == "succeeded"]
    assert sorted((c["x_Phase"], c["x_Interval"]) for c in charges) == [("checks", DAY), ("prepare", DAY)] and charges[0]["BilledCost"] > 0
    assert first.run_key in {r.run_key for r in report.Records(env).corpus(str(TableVersion("sequences", 1))).results}


def test_the_command_shows_one_screen_and_hostile_names_cannot_move_the_cursor(summarised, capsys) -> None:
    from jobs import cli

    env, _ = summarised
    assert cli.main(["statistics", "--home", str(env.home), "--source", "prose", "--from", DAY, "--to", DAY]) == 0
    shown = capsys.readouterr().out
    assert [line.split() for line in shown.splitlines() if line.startswith(DAY)] == [[DAY, "prose", "6", "2", "1", "1", "1", "1", "3"]]
    assert "gopher_quality.words" in shown and " en\n" in shown and f"4+ {'#' * 40} 1" in shown
    assert cli.main(["statistics", "--home", str(env.home), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == len(delta.rows(env, "statistics"))
    assert cli.main(["statistics", "--home", str(env.home), "--from", "2027-01-01"]) == 1
    assert "moeline stage summarise" in capsys.readouterr().err
    assert statistics._plain("a\x1b[2Jb\n") == "a?[2Jb?"
