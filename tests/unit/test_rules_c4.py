"""C4's rules: the lines that stay, what was counted on the way, and the reference's numbers, all counted by hand."""

from __future__ import annotations

import pytest

from jobs.stages import rules
from jobs.stages.rules import c4

GOOD = ("The first line of this page is an ordinary sentence.", "Is the second line one as well, do you think?", '"It certainly is," said the third of them!')
PAGE = "\n".join(GOOD)


def values(*lines: str, name: str = "c4") -> dict[str, float]:
    return {rule.removeprefix(f"{name}."): value for rule, value in rules.measure((name,), "\n".join((*GOOD, *lines))).items()}


def left(*lines: str, name: str = "c4") -> str:
    return rules.features((name,), "\n".join((*GOOD, *lines))).text


def broken(text: str, name: str = "c4") -> set[str]:
    measured = rules.measure((name,), text)
    return {rule.name.removeprefix(f"{name}.") for rule in rules.select((name,)) if rule.broken_limit(measured[rule.name]) is not None}


@pytest.mark.parametrize(
    ("line", "counted"),
    [
        ("a heading that has no end mark", "lines_no_end_mark"),
        ("this one trails off into nothing at all...", "lines_no_end_mark"),
        ("and 'this one ends in a single quote'", "lines_no_end_mark"),  # datatrove takes it for an end mark
        ("Four words are few.", "lines_few_words"),  # datatrove and dolma: 3 are enough
        ("The next word is " + "x" * 1001 + " and long.", "lines_long_word"),
        ("Please switch on JavaScript to see this page.", "lines_javascript"),
        ("By coming here you accept our Terms of Use.", "lines_policy"),
        ("We tell you that this site uses cookies.", "lines_policy"),
    ],
)
def test_a_bad_line_is_taken_out_and_counted_under_its_reason(line, counted):
    assert left(line) == PAGE
    found = values(line)
    assert {name: n for name, n in found.items() if name.startswith("lines_") and n} == {counted: 1}
    assert found["sentences"] == 3


@pytest.mark.parametrize("line", ["Five words are just enough.", "The next word is " + "x" * 1000 + " and long.", "  Blanks around a good line go away.\t"])
def test_a_good_line_stays_without_the_blanks_around_it(line):
    assert left(line) == f"{PAGE}\n{line.strip()}"


def test_citation_marks_are_cut_before_anything_is_counted():
    assert left("It was said that this is so.[12][edit]") == f"{PAGE}\nIt was said that this is so."
    assert left("Only four words here[citation needed] [1].") == f"{PAGE}\nOnly four words here ."  # the mark's words count no more, the lone point does
    assert left("Now only four words[3].") == PAGE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PAGE, set()),
        ("\n".join(GOOD[:2]), {"sentences"}),
        ("All in one line it has one sentence. Then there is another. And then a third one.", set()),
        (PAGE + "\nLorem ipsum is the text that fills this line.", {"lorem_ipsum"}),
        (PAGE + "\nlorem ipsum", set()),  # a line that the line rules take out rejects nothing, as in the reference
        (PAGE + "\nThe body of it is { return 1; } and that is all.", {"curly_brackets"}),
        (PAGE + "\nIn javascript the body is { return 1; } and that is all.", set()),
        ((PAGE + "\n") * 1338, set()),  # 189,996 characters
        ((PAGE + "\n") * 1339, {"characters"}),
        ("", {"sentences"}),
    ],
)
def test_page_rules_reject(text, expected):
    assert (len(PAGE) + 1) * 1338 <= 190_000 < (len(PAGE) + 1) * 1339
    assert broken(text) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("One. Two! Three? Four", 4), ('He said "no." Then he left.', 2), ("It has three points...but is one sentence.", 1),
        ("Version 1.2.3 is out.", 1), ("e.g. this one is no end, it goes on.", 1), ("", 0), (" \t", 0), ("...", 1), ("Wait... What?", 2),
    ],
)  # fmt: skip
def test_sentences_of_a_line(line, expected):
    assert c4.sentences(line) == expected


def test_fineweb_runs_c4_without_end_marks_and_with_the_swapped_numbers():
    lines = ("three words are", "but two are", "no not", "One. Two. Three. Four.")
    assert left(*lines, name="c4_fineweb") == "\n".join((*GOOD, "three words are", "but two are", "One. Two. Three. Four."))
    assert broken(PAGE, "c4_fineweb") == {"sentences"}
    assert broken(f"{PAGE}\nand a fourth\nand a fifth", "c4_fineweb") == set()


def test_rules_of_other_sets_measure_what_the_edits_left():
    found = rules.measure(("c4", "gopher_quality"), f"{PAGE}\na heading\na heading\n")
    assert found["gopher_quality.words"] == rules.measure(("gopher_quality",), PAGE)["gopher_quality.words"]


def test_line_counts_are_scores_that_reject_nothing():
    assert {rule.name for rule in rules.select(("c4",)) if not rule.may_reject} == {f"c4.{name}" for name in values() if name.startswith("lines_")}


@pytest.mark.parametrize("text", ["." * 300_000, '."' * 150_000, ". " * 150_000, ".'" + "'" * 300_000 + "a", ". " + " " * 300_000 + "a", "[" * 300_000])
def test_hostile_text_takes_linear_time(text):
    import time

    start = time.process_time()
    rules.measure(("c4",), f"a b c d e {text}.\n" * 2)
    c4.sentences(text)
    assert time.process_time() - start < 2
