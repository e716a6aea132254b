"""The rules of decontamination on texts alone, against brute force: words and where they stand, n-grams of items, cutting."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.config import DecontaminateConfig
from jobs.contract import MoelineError, canonical
from jobs.decontamination import ItemNgrams, Punctuation, check_names, is_among, kept_pieces, matched_spans, ngram_tokens, split_pieces, tokens_at
from jobs.minhash import WordHashes, ngram_hashes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "oracles"))
from decontamination_by_hand import grams_of, pieces_of, words_of

WORDS = st.sampled_from(["a", "b", "c", "Größe", "ΣΑΣ", "İstanbul", "東京", "...", "—", "b,", "«c»", "don't", "e\u0301"])
GAPS = st.sampled_from([" ", "\n", "\t", "\u00a0", "  ", "\u2003\n", "\x1c"])
TEXTS = st.builds(
    lambda parts, head, tail: head + "".join(w + g for w, g in parts) + tail,
    st.lists(st.tuples(WORDS, GAPS), max_size=40),
    GAPS | st.just(""),
    WORDS | st.just(""),
)


def hashes(ngrams: list[tuple[str, ...]], n: int) -> np.ndarray:
    return np.array([int(ngram_hashes(list(g), n, WordHashes())[0]) for g in ngrams], np.uint64)


@given(TEXTS | st.text())
@settings(max_examples=400, deadline=None)
def test_words_and_their_places_are_what_looking_at_every_character_gives(text: str) -> None:
    words, places = tokens_at(text)
    assert words == ngram_tokens(text) == [word for word, _, _ in words_of(text)]
    assert [tuple(p) for p in places.tolist()] == [(start, end) for _, start, end in words_of(text)]


@given(
    st.text(min_size=0, max_size=300),
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20)), max_size=8),
    st.integers(0, 30),
    st.integers(1, 40),
    st.integers(1, 6),
)
@settings(max_examples=400, deadline=None)
def test_pieces_are_what_striking_out_characters_leaves(text: str, places: list[tuple[int, int]], around: int, least: int, most: int) -> None:
    spans = [(start, min(len(text), start + length)) for start, length in places if start < len(text)]
    kept = kept_pieces(len(text), spans, around=around, least=least, most=most)
    assert [text[start:end] for start, end in kept] == pieces_of(text, spans, around, least, most)


@given(TEXTS, TEXTS, st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_every_occurrence_of_a_wanted_ngram_is_a_span(text: str, item: str, n: int) -> None:
    wanted = {gram for gram, _, _ in grams_of(item, n)}
    found = matched_spans(text, [(n, hashes(sorted(wanted), n))], WordHashes(), Punctuation())
    assert sorted(found) == sorted((start, end) for gram, start, end in grams_of(text, n) if gram in wanted)


@given(st.lists(st.tuples(st.sampled_from("xy"), st.sampled_from("123"), TEXTS), max_size=8), st.lists(TEXTS, max_size=4), st.integers(1, 4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_which_ngrams_of_which_items_are_found(texts: list[tuple[str, str, str]], training: list[str], n: int, first_only: bool) -> None:
    items = ItemNgrams(texts, n, first_only=first_only)
    of_item: dict[tuple[str, str], list[str]] = {}
    for benchmark, item_id, text in texts:
        of_item.setdefault((benchmark, item_id), []).append(text)
    used = {item: parts[:1] if first_only else parts for item, parts in of_item.items()}
    grams = {item: list(dict.fromkeys(g for part in parts for g, _, _ in grams_of(part, n))) for item, parts in used.items()}
    seen = {g for text in training for g, _, _ in grams_of(text, n)}
    found = hashes(sorted(seen), n)
    expected = {item: [i for i, g in enumerate(own) if g in seen] for item, own in grams.items()}
    assert items.places(found) == {item: at for item, at in expected.items() if at}
    assert {item: items.count(item) for item in items.items} == {item: len(own) for item, own in grams.items() if own}
    reached = items.reached(found, 0.7)
    assert {row[1:3] for row in reached} == {item for item, own in grams.items() if own and len(expected[item]) / len(own) >= 0.7}
    assert all(row[3] == len(grams[row[1], row[2]]) for row in reached)
    assert sorted(row[0] for row in reached) == sorted(int(h) for row in {r[1:3] for r in reached} for h in hashes(grams[row], n).view(np.int64))


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_membership_among_sorted_hashes_is_that_of_sets(found: set[int], wanted: set[int]) -> None:
    given = np.array(sorted(found), np.uint64)
    assert set(given[is_among(given, np.array(sorted(wanted), np.uint64))].tolist()) == found & wanted


def test_exactly_seven_of_ten_ngrams_are_enough_and_six_are_not() -> None:
    words = [f"w{i}" for i in range(17)]  # ten 8-grams
    items = ItemNgrams([("quiz", "1", " ".join(words))], 8)
    for held, enough in ((7, True), (6, False)):
        found = ngram_hashes(words[: 7 + held], 8, WordHashes())
        assert len(items.places(found)["quiz", "1"]) == held and bool(items.reached(found, 0.7)) is enough


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=5))
def test_pieces_are_read_back_from_the_text_they_were_joined_to(pieces: list[str]) -> None:
    starts = [sum(len(p) + 1 for p in pieces[:i]) for i in range(len(pieces))]
    assert split_pieces("\n".join(pieces), starts) == pieces
    assert split_pieces("\n".join(pieces), None) == ["\n".join(pieces)]


def test_the_numbers_of_gpt_3() -> None:
    config = DecontaminateConfig(action="cut_passage")
    limits = {"around": config.cut_characters, "least": config.min_piece_characters, "most": config.max_pieces}
    assert kept_pieces(1000, [(450, 550)], **limits) == [(0, 250), (750, 1000)]
    assert kept_pieces(1000, [(399, 550)], **limits) == [(750, 1000)]  # 199 characters before it
    assert kept_pieces(1000, [(0, 90), (910, 1000)], **limits) == [(290, 710)]
    ten_cuts = [(1000 * i, 1000 * i + 10) for i in range(1, 11)]
    assert len(kept_pieces(10_500, ten_cuts[:9], **limits)) == 10
    assert kept_pieces(11_000, ten_cuts, **limits) == []  # 11 pieces
    assert kept_pieces(1000, [(300, 600), (350, 360)], **limits) == [(800, 1000)]  # a hit within a hit
    assert kept_pieces(300, [], **limits) == [(0, 300)] and kept_pieces(0, [], **limits) == []


def test_rules_are_found_by_name_or_pattern_and_an_unknown_name_is_refused_with_the_closest() -> None:
    config = DecontaminateConfig(rules=(("mmlu_law", "ngram"), ("mmlu*", "share")))
    assert [config.rule_of(name) for name in ("mmlu_law", "mmlu_art", "piqa")] == ["ngram", "share", "ngram"]
    check_names(config, {"mmlu_law", "mmlu_art", "piqa"})
    with pytest.raises(MoelineError, match=r"'hellaswga', which is no benchmark of suite moeline-v1; the closest one in use is 'hellaswag'"):
        check_names(DecontaminateConfig(rules=(("hellaswga", "share"),)), {"hellaswag", "piqa"})
    with pytest.raises(MoelineError, match="none is in use"):
        check_names(DecontaminateConfig(rules=(("x", "share"),)), set())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rule": "bloom"}, "ngram or share, not 'bloom'"), ({"rules": (("a", "x"),)}, "not 'x'"), ({"action": "mask"}, "drop_document or cut_passage"),
        ({"share": 0.0}, "above 0"), ({"share": 1.1}, "at most at 1"), ({"max_pieces": 0}, "at least 1"), ({"share_words": 0}, "share_words"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_meant_is_refused(asked: dict, said: str) -> None:
    with pytest.raises(MoelineError, match=said):
        DecontaminateConfig(**asked)


def test_defaults_are_the_identity_there_was_before() -> None:
    assert set(canonical(DecontaminateConfig())) == {"suite", "ngram_words", "max_documents"}
    assert canonical(DecontaminateConfig(action="cut_passage"))["action"] == "cut_passage"
