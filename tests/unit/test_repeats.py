"""What is a passage and what is left without it, on texts small enough to write the answer down."""

from __future__ import annotations

import pytest

from jobs.config import DeduplicateConfig
from jobs.contract import MoelineError, config_hash
from jobs.minhash import text_hash
from jobs.repeats import passages, without

A, B, C = "one two three four five", "the second line has six words", "a third of six words here"
HERE = ("2026-11-01", "me")
OTHER = ("2026-11-02", "other")


def cut(text: str, unit: str, *gone: str) -> tuple[str, list[str]]:
    left, removed = without(text, passages(text, unit, 5), {text_hash(g): OTHER for g in gone}, HERE)
    return left, [text[r["start"] : r["start"] + r["characters"]] for r in removed]


def test_a_line_goes_with_its_end_and_its_neighbours_stay() -> None:
    assert cut(f"{A}\n{B}\n{C}", "line", B) == (f"{A}\n{C}", [B])
    assert cut(f"{A}\n{B}\n{C}", "line", A, C) == (B, [A, C])
    assert cut(f"{A}\n{B}\n{C}\n", "line", C) == (f"{A}\n{B}", [C])
    assert cut(f"{A}\n\n  {B.upper()}  \n{C}", "line", B) == (f"{A}\n\n{C}", [f"  {B.upper()}  "])
    assert cut(A, "line", A) == ("", [A])


def test_a_paragraph_goes_with_the_blank_lines_after_it() -> None:
    text = f"{A}\n{B}\n \n\n{C}\n\n{A}"
    assert cut(text, "paragraph", f"{A} {B}") == (f"{C}\n\n{A}", [f"{A}\n{B}"])
    assert cut(text, "paragraph", C) == (f"{A}\n{B}\n \n\n{A}", [C])
    assert cut(text, "paragraph", A) == (f"{A}\n{B}\n \n\n{C}", [A])
    assert cut(f"\n\n{C}\n", "paragraph", C) == ("", [C])


def test_a_second_copy_in_the_same_document_goes_and_is_held_by_the_document_itself() -> None:
    text = f"{A}\n{B}\n{A.upper()}"
    left, removed = without(text, passages(text, "line", 5), {}, HERE)
    assert left == f"{A}\n{B}" and [(r["start"], r["kept_interval"], r["kept_doc_id"]) for r in removed] == [(len(A) + len(B) + 2, *HERE)]


def test_short_passages_stay_and_a_text_that_loses_nothing_is_the_same_to_the_last_blank() -> None:
    text = "return x\nreturn x\n\n\n" + A + "  \n"
    assert passages(text, "line", 5)[0].hash == text_hash(A) and len(passages(text, "line", 5)) == 1
    assert cut(text, "line", "return x") == (text, []) and cut(text, "paragraph", B) == (text, [])
    assert passages("", "line", 5) == passages("", "paragraph", 5) == passages("\n\n", "paragraph", 1) == []


def test_the_name_of_a_source_makes_other_hashes() -> None:
    one, two, none = (passages(A, "line", 5, seed)[0].hash for seed in (7, 8, 0))
    assert len({one, two, none}) == 3


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"repeats": "lines"}, "'line', 'paragraph' or ''"),
        ({"repeats": "line", "repeats_max_documents": 0}, "repeats_max_documents of deduplication must be at least 1"),
        ({"repeats": "line", "repeats_min_words": 4}, "repeats_min_words of deduplication must be at least 5"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict, said: str) -> None:
    with pytest.raises(MoelineError, match=said):
        DeduplicateConfig(**asked)


def test_a_recipe_that_does_not_ask_for_it_keeps_its_identity() -> None:
    assert config_hash(DeduplicateConfig()) == config_hash(DeduplicateConfig(repeats="", repeats_max_documents=1))
    assert config_hash(DeduplicateConfig()) != config_hash(DeduplicateConfig(repeats="line"))
