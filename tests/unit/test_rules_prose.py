# ruff: noqa: RUF001 - look-alike characters are what is tested
"""Gopher and FineWeb rules: values calculated by hand, and the fast n-gram scan against its definition read literally."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import MoelineError
from jobs.stages import rules
from jobs.stages.rules import fineweb, gopher
from jobs.stages.rules.features import _WORD, Features

TEN_WORDS = "the quick brown foxes jumps over lazy dogs every morning"  # 47 letters
PROSE = ("gopher_quality", "gopher_repetition", "fineweb")


def value(rule: str, text: str) -> float:
    return rules.measure((rule.partition(".")[0],), text)[rule]


def broken(text: str, *names: str) -> set[str]:
    values = rules.measure(names, text)
    return {rule.name for rule in rules.select(names) if rule.broken_limit(values[rule.name]) is not None}


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("gopher_quality.words", "This is a test.", 4),
        ("gopher_quality.words", "don't stop -- now!", 3),
        ("gopher_quality.mean_word_length", "This is a test.", (4 + 2 + 1 + 4) / 4),
        ("gopher_quality.letter_word_share", "This is a test.", 1.0),  # dolma's fraction_of_words_with_alpha_character
        ("gopher_quality.letter_word_share", "one 2 three 44", 0.5),
        ("gopher_quality.hashes_per_word", "# one two #three", 2 / 5),  # words: # one two # three
        ("gopher_quality.ellipses_per_word", "wait... what… no", 2 / 5),
        ("gopher_quality.bullet_line_share", "- a\n  • b\n* c\nd", 0.5),
        ("gopher_quality.ellipsis_line_share", "a...\nb…  \nc.\n\n", 2 / 4),
        ("gopher_quality.stop_words", "the the of The", 2),  # distinct, case-sensitive
        ("gopher_repetition.duplicate_line_share", "a\nb\na\na", 2 / 4),
        ("gopher_repetition.duplicate_line_char_share", "abc\nd\nabc", 3 / 9),
        ("gopher_repetition.duplicate_paragraph_share", "a\nb\n\nc\n\na\nb", 1 / 3),
        ("gopher_repetition.duplicate_paragraph_char_share", "a\nb\n\nc\n\na\nb", 3 / 11),
        ("gopher_repetition.top_2gram_char_share", "a b a b c", 2 * len("a b") / 9),
        ("gopher_repetition.top_2gram_char_share", "This is a test.", len("This is") / 15),
        ("gopher_repetition.top_3gram_char_share", "This is a test.", len("This is a") / 15),
        ("gopher_repetition.top_4gram_char_share", "This is", 0.0),
        ("gopher_repetition.duplicate_5gram_char_share", f"{TEN_WORDS} {TEN_WORDS}", 47 / 113),  # 0.416, datatrove's definition
        ("gopher_repetition.duplicate_10gram_char_share", f"{TEN_WORDS} {TEN_WORDS}", 47 / 113),
        ("gopher_repetition.duplicate_6gram_char_share", f"{TEN_WORDS} {TEN_WORDS}", 27 / 113),  # its first 6 words; the 4 left are no 6-gram
        ("fineweb.punctuated_line_share", "One.\nTwo!\n\nthree\nfour. ", 2 / 4),
        ("fineweb.punctuated_line_share", "終わり。\n끝\u061f", 1.0),
        ("fineweb.short_line_share", "x" * 30 + "\n" + "x" * 31, 0.5),
        ("fineweb.duplicate_line_char_share", "abc\n  \nd\nabc", 3 / 9),  # blank lines are characters, not lines
        ("fineweb.newlines_per_word", "a\nb\nc d", 2 / 4),
    ],
)  # fmt: skip
def test_a_rule_measures_what_was_counted_by_hand(rule, text, expected):
    assert value(rule, text) == pytest.approx(expected, rel=1e-12)


def test_the_known_value_of_a_ten_word_passage_repeated_twice():
    assert value("gopher_repetition.duplicate_5gram_char_share", f"{TEN_WORDS} {TEN_WORDS}") == pytest.approx(0.416, abs=5e-4)


def test_words_go_on_over_inner_marks_and_stop_at_separators():
    assert Features("don't np.array f(x)=y a-b a/b 1,000 ... ---- (end).").words == [
        "don't", "np.array", "f(x", ")", "=", "y", "a", "-", "b", "a", "/", "b", "1,000", "...", "----", "(", "end", ")", ".",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("n_words", "expected"),
    [(49, {"gopher_quality.words"}), (50, set()), (100_000, set()), (100_001, {"gopher_quality.words"})],
)
def test_gopher_keeps_50_to_100000_words(n_words, expected):
    text = " ".join(["the", "of"] + ["word"] * (n_words - 2))
    assert broken(text, "gopher_quality") == expected


@pytest.mark.parametrize(
    ("punctuated", "lines", "expected"),
    [(12, 100, set()), (11, 100, {"fineweb.punctuated_line_share"})],
)
def test_fineweb_keeps_a_text_exactly_at_the_threshold(punctuated, lines, expected):
    text = "\n".join(f"line {i} has some more words than that in it{'.' if i < punctuated else ''}" for i in range(lines))
    assert broken(text, "fineweb") == expected


def test_every_broken_rule_is_found_and_not_only_the_first():
    assert broken("# # # #\n# # # #\n# # # #", "gopher_quality", "fineweb") >= {
        "gopher_quality.words", "gopher_quality.mean_word_length", "gopher_quality.hashes_per_word", "gopher_quality.stop_words",
        "fineweb.punctuated_line_share", "fineweb.short_line_share", "fineweb.duplicate_line_char_share",
    }  # fmt: skip


def test_a_broken_rule_names_the_limit_it_broke():
    rule = next(r for r in rules.select(PROSE) if r.name == "gopher_quality.mean_word_length")
    assert [rule.broken_limit(v) for v in (2.9, 3, 10, 10.1)] == [3, None, None, 10]


def test_plain_english_prose_breaks_no_rule():
    text = (
        "The reader of this page will have seen that the rules are meant to keep ordinary prose.\n"
        "It has sentences of different length, and lines which end the way that people end them.\n"
        "Nothing in it is repeated, there are no bullets, and every line is longer than thirty characters.\n"
        "A document with fewer than fifty words would be dropped, so this one goes on for a while with another sentence.\n"
    )
    assert broken(text, "gopher_quality", "gopher_repetition", "fineweb") == set()


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\x0b", "…", "\ud7ff\U0010ffff"])
def test_no_text_makes_a_rule_fail(text):
    assert all(0 <= v < 1e9 for v in rules.measure(PROSE, text).values())


def literal_duplicate_share(words: list[str], n: int, n_chars: int) -> float:
    """The definition of datatrove's find_all_duplicate, step by step."""
    seen, chars, i = set(), 0, 0
    while i + n <= len(words):
        gram = tuple(words[i : i + n])
        if gram in seen:
            chars += sum(len(w) for w in gram)
            i += n
        else:
            seen.add(gram)
            i += 1
    return chars / n_chars if n_chars else 0.0


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "."]), max_size=60))
def test_the_fast_ngram_scan_equals_its_definition(words):
    features = Features(" ".join(words))
    shares = gopher.duplicate_ngram_char_shares(features, (5, 6, 7, 8, 9, 10))
    assert shares == {n: literal_duplicate_share(features.words, n, len(features.text)) for n in (5, 6, 7, 8, 9, 10)}


@given(st.text(alphabet=st.one_of(st.sampled_from("ab9._-,'( \n\t\x0b\x1c\x85\xa0\u2003\u2028\u200b\u3000"), st.characters()), max_size=60))
def test_words_are_those_of_the_pattern_on_the_whole_text(text):
    """Pieces between white space are split apart and remembered, which is right only while no word reaches over white space."""
    for _ in range(2):
        assert Features(text).words == _WORD.findall(text)


@given(st.text(alphabet="a \n", max_size=30))
def test_paragraphs_are_split_at_two_or_more_line_ends(text):
    assert Features(text).paragraphs == re.split("\n{2,}", text.strip())


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "."]), max_size=60), st.integers(2, 4))
def test_the_most_frequent_ngram_is_the_first_among_equals(words, n):
    features = Features(" ".join(words))
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    top = max(counts, key=counts.__getitem__, default=())
    expected = len(" ".join(top)) * counts[top] / len(features.text) if top else 0.0
    assert gopher.top_ngram_char_share(features, n) == expected


@given(st.lists(st.text(alphabet="ab", max_size=2), max_size=12))
def test_duplicates_counts_repeats_and_their_characters(parts):
    seen, repeats = set(), []
    for part in parts:
        repeats += [part] if part in seen else []
        seen.add(part)
    assert gopher.duplicates(parts) == (len(repeats), sum(map(len, repeats)))


def test_sentence_ends_of_other_scripts_are_known():
    assert {".", "!", "?", "。", "？", "।", "۔", "։", "។"} <= fineweb.TERMINAL_PUNCTUATION
    assert not fineweb.TERMINAL_PUNCTUATION & set(",;:\"')-abc0")


def test_unknown_rule_sets_are_refused_with_the_known_ones():
    with pytest.raises(MoelineError, match=r"'gopher'.*Known rule sets: c4, c4_fineweb, code, english, fineweb, gopher_quality, gopher_repetition"):
        rules.select(("fineweb", "gopher"))
    with pytest.raises(MoelineError, match="twice"):
        rules.select(("fineweb", "fineweb"))


def test_rule_names_are_unique_and_start_with_their_set():
    names = [rule.name for chosen in rules.RULE_SETS.values() for rule in chosen]
    assert len(names) == len(set(names))
    assert all(rule.name.startswith(f"{name}.") for name, chosen in rules.RULE_SETS.items() for rule in chosen)


def test_rules_travel_to_spark_workers_by_value():
    """The session ships the code of jobs by value; a rule that cannot be pickled so would fail every clean stage."""
    import subprocess
    import sys

    from jobs.environment import REPO

    script = (
        "import jobs, sys; from pyspark import cloudpickle as c; c.register_pickle_by_value(jobs)\n"
        "from jobs.stages import clean; sys.stdout.buffer.write(c.dumps((clean.Judge, clean.CleanConfig())))"
    )
    shipped = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, check=True).stdout
    receive = (
        "import sys, pickle; judge, config = pickle.loads(sys.stdin.buffer.read())\n"
        "assert not any(m.startswith('jobs') for m in sys.modules); print(judge(config)('python-code', 'MIT', 'x = 1\\n' * 50)[3])"
    )
    done = subprocess.run([sys.executable, "-c", receive], input=shipped, cwd="/", capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"
