"""``moeline explain``: one document's story over several days, as recorded results tell it."""

from __future__ import annotations

import pytest
from prepared_days import RECIPE, write

from jobs import cli
from jobs.contract import MoelineError, StageResult
from jobs.explain import explain, render
from jobs.services import results

KEPT, COPY, REFUSED, PLAIN = ("a" * 31 + c for c in "0123")
DAYS = ("2026-11-01", "2026-11-02")


def landed(doc_id: str, uri: str = "file://x") -> dict:
    return {"doc_id": doc_id, "source": "web", "uri": uri, "licence": None, "text": "t", "n_bytes": 10, "landed_file": "web/f.jsonl"}


def cleaned(doc_id: str) -> dict:
    return {key: value for key, value in landed(doc_id).items() if key != "landed_file"} | {"scores": '{"words": 12.0}', "n_bytes": 9}


def sequence(number: int, split: str, pieces: list[tuple[str, int]], n_tokens: int) -> dict:
    return {"sequence_id": number, "split": split, "tokens": [0] * 8, "boundaries": [at for _, at in pieces], "doc_ids": [d for d, _ in pieces],
            "sources": ["web"] * len(pieces), "n_tokens": n_tokens, "tokenizer_id": "x"}  # fmt: skip


@pytest.fixture
def corpus(env):
    """Two days: KEPT is packed on the first, COPY is dropped for it on the second, REFUSED breaks two rules, PLAIN has only landed."""
    first, second = DAYS
    write(env, "ingest", first, 1, documents=[landed(KEPT, "file://kept"), landed(REFUSED)], quarantine=[])
    broken = [{"doc_id": REFUSED, "source": "web", "stage": "clean", "rule": rule, "value": value, "threshold": limit, "detail": detail}
              for rule, value, limit, detail in (("words", 3.0, 50.0, None), ("licence.refused", None, None, "GPL-3.0-only"))]  # fmt: skip
    write(env, "clean", first, 2, clean_documents=[cleaned(KEPT)], rejections=broken)
    write(env, "deduplicate", first, 3, unique_documents=[cleaned(KEPT)], duplicates=[], fingerprints=[])
    training = {key: value for key, value in cleaned(KEPT).items() if key != "scores"} | {"split": "train"}
    item = {"benchmark": "next_line", "item_id": "i1", "doc_id": KEPT, "source": "web", "item": "{}"}
    hit = {"doc_id": KEPT, "benchmark": "quiz", "item_id": "q7", "ngram": "a b c", "action": "drop_document"}
    write(env, "decontaminate", first, 4, training_documents=[training], contamination=[hit], benchmark_items=[item])
    rows = [sequence(0, "train", [("other", 0), (KEPT, 5)], 8), sequence(1, "train", [(KEPT, 0)], 6), sequence(2, "held_out", [("other", 0)], 8)]
    write(env, "pack", first, 5, sequences=rows)
    write(env, "ingest", second, 6, documents=[landed(COPY), landed(PLAIN)], quarantine=[])
    write(env, "clean", second, 7, clean_documents=[cleaned(COPY)], rejections=[])
    copy = {"doc_id": COPY, "kept_doc_id": KEPT, "kept_interval": first, "jaccard": 0.91, "cluster_size": 2, "scope": "near_other_day"}
    write(env, "deduplicate", second, 8, unique_documents=[], duplicates=[copy], fingerprints=[])
    return env


def test_a_kept_document_is_followed_to_its_tokens_and_its_trainings(corpus):
    training = {"stage": "train", "recipe": "smoke", "interval": None, "outputs": {}, "cost_usd": 0.0, "wall_seconds": 0.0, "code_revision": "x"}
    results.record(
        corpus, StageResult(run_key="t1", inputs={"sequences": "sequences@1"}, metrics={"tokens": 4, "corpus_tokens": 14}, finished_at="z", **training)
    )
    story = explain(corpus, "file://kept")
    (day,) = story["days"]
    assert (story["doc_id"], day["landed"]["interval"], day["rejected"], day["duplicate_of"], day["split"]) == (KEPT, DAYS[0], [], [], "train")
    assert day["cleaned"] == {"n_bytes": 9, "scores": {"words": 12.0}}
    assert [(p["sequence_id"], p["start"], p["tokens"]) for p in day["sequences"]] == [(0, 5, 3), (1, 0, 6)]
    assert [(t["run_key"], t["tokens"], t["trained_tokens"], t["corpus_tokens"]) for t in day["trainings"]] == [("t1", 9, 4, 14)]
    assert [(d["doc_id"], d["interval"]) for d in story["dropped_for_it"]] == [(COPY, DAYS[1])]
    text = render(story)
    for part in ("web/f.jsonl", "words 12", "quiz item q7", "next_line", "sequence 1 (train), tokens 0 to 6", "4 of 14 tokens drawn", COPY):
        assert part in text


def test_a_rejected_document_shows_every_rule_and_a_copy_what_was_kept(corpus):
    text = render(explain(corpus, REFUSED))
    assert "words 3, limit 50" in text and "licence.refused GPL-3.0-only" in text and "packed" not in text
    copy = render(explain(corpus, COPY))
    assert f"of {KEPT} of {DAYS[0]}: near_other_day, Jaccard 0.910" in copy
    assert "kept in place" not in copy and "rejected" not in copy


def test_what_no_recorded_result_vouches_for_is_not_told(corpus):
    write(corpus, "clean", DAYS[1], 9, recorded=False, clean_documents=[cleaned(PLAIN)], rejections=[])  # killed before its result was recorded
    (day,) = explain(corpus, PLAIN)["days"]
    assert day["cleaned"] == [] and day["sequences"] is None


def test_a_cut_document_tells_what_was_removed_and_why(corpus):
    day = "2026-11-04"
    write(corpus, "ingest", day, 20, documents=[landed("c" * 32)], quarantine=[])
    write(corpus, "clean", day, 21, clean_documents=[cleaned("c" * 32)], rejections=[])
    write(corpus, "deduplicate", day, 22, unique_documents=[cleaned("c" * 32)], duplicates=[], fingerprints=[])
    left = {key: value for key, value in cleaned("c" * 32).items() if key != "scores"} | {"split": "train", "piece_starts": [0, 4]}
    hit = {"doc_id": "c" * 32, "benchmark": "quiz", "item_id": "q7", "ngram": "a b c", "action": "cut_passage", "rule": "share", "removed_characters": 1234}
    write(corpus, "decontaminate", day, 23, training_documents=[left], contamination=[hit], benchmark_items=[])
    story = explain(corpus, "c" * 32)
    assert (story["days"][0]["pieces"], story["days"][0]["split"]) == (2, "train")
    text = render(story)
    assert "quiz item q7 by rule share: cut_passage (a b c)" in text and "1,234 characters removed, 2 pieces left" in text


def test_a_document_shows_the_lines_it_lost_and_the_passages_that_were_cut_out(corpus):
    day, doc_id = "2026-11-04", "d" * 32
    whole, unique = "kept line\nlost \x1b[2Jline\nsecret answer here and more", "kept line\nsecret answer here and more"
    write(corpus, "ingest", day, 20, documents=[landed(doc_id)], quarantine=[])
    write(corpus, "clean", day, 21, clean_documents=[cleaned(doc_id) | {"text": whole}], rejections=[])
    lost = {"doc_id": doc_id, "start": 10, "characters": 13, "hash": 1, "kept_interval": DAYS[0], "kept_doc_id": KEPT}
    rows = {"unique_documents": [cleaned(doc_id) | {"text": unique}], "duplicates": [], "repeated_passages": [lost], "fingerprints": []}
    write(corpus, "deduplicate", day, 22, **rows)
    left = {key: value for key, value in cleaned(doc_id).items() if key != "scores"} | {
        "split": "train",
        "piece_starts": [0, 10],
        "text": "kept line\nand more",
    }
    left["text"] = "kept line\nand more"
    hit = {"doc_id": doc_id, "benchmark": "quiz", "item_id": "q7", "ngram": "a", "action": "cut_passage", "rule": "share", "removed_characters": 20}
    write(corpus, "decontaminate", day, 23, training_documents=[left], contamination=[hit], benchmark_items=[])
    story = explain(corpus, doc_id)
    assert story["days"][0]["repeated"][0]["text"] == "lost \x1b[2Jline" and story["days"][0]["cut"] == ["\nsecret answer here "]
    text = render(story)
    assert "13 characters in 1 passages" in text and f"held by {KEPT} of {DAYS[0]}: lost \\x1b[2Jline" in text and "cut out: secret answer here" in text


def test_a_recipe_sees_the_days_it_prepared(corpus):
    write(corpus, "clean", DAYS[0], 9, config="other rules", clean_documents=[cleaned(KEPT), cleaned(REFUSED)], rejections=[])
    assert explain(corpus, REFUSED)["days"][0]["cleaned"]
    assert not explain(corpus, REFUSED, recipe=RECIPE)["days"][0]["cleaned"]


def test_what_is_not_there_or_not_one_document_is_said(corpus):
    with pytest.raises(MoelineError, match="No document 'nothing' in 2 recorded days"):
        explain(corpus, "nothing")
    with pytest.raises(MoelineError, match="means 4 documents"):
        explain(corpus, "a" * 10)
    with pytest.raises(MoelineError, match="No document"):
        explain(corpus, "aaa")  # too short to be a beginning


def test_the_command_prints_no_control_characters_of_a_uri(corpus, capsys):
    write(corpus, "ingest", "2026-11-03", 10, documents=[landed("b" * 32, "file://\x1b[31mred\u202e")], quarantine=[])
    assert cli.main(["explain", "b" * 8, "--home", str(corpus.home)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\u202e" not in shown and r"\x1b[31mred" in shown
    assert "has not run for this day" in shown
