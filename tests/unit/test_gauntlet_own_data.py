"""Own-data and symbolic items: true, repeatable, and not answerable from form alone."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import pytest
from gauntlet_examples import documents, encoder

from models.gauntlet import own_data, suite, symbolic
from models.gauntlet.own_data import make_items
from models.gauntlet.tasks import Item

DOCUMENTS = documents()
TEXT = {doc_id: text for doc_id, _, text in DOCUMENTS}


@pytest.fixture(scope="module", params=own_data.TASKS)
def made(request):
    return request.param, make_items(DOCUMENTS, task=request.param, seed=1234)


def test_items_are_repeatable_whatever_the_order_of_the_documents(made):
    task, items = made
    mixed = list(DOCUMENTS)
    random.Random(5).shuffle(mixed)
    assert make_items(iter(mixed), task=task, seed=1234) == items
    assert make_items(mixed, task=task, seed=1) != items
    assert len({item.item_id for item in items}) == len(items) and [i.item_id for i in items] == sorted(i.item_id for i in items)


def test_a_few_documents_give_hundreds_of_items(made):
    _, items = made
    assert len(items) >= 200
    most = Counter(item.doc_id for item in items).most_common(1)[0][1]
    assert most <= max(own_data.PLACES_PER_DOCUMENT.values())


def test_the_right_answer_is_what_the_document_says(made):
    _, items = made
    for item in items:
        row, text = item.row, " ".join(TEXT[item.doc_id].split())
        stands = " ".join(f"{row['query']}{row['choices'][row['gold']]}".split())
        assert stands in text, item


def test_choices_differ_and_no_wrong_one_equals_the_right_one(made):
    _, items = made
    for item in items:
        normal = [" ".join(choice.lower().split()) for choice in item.row["choices"]]
        assert len(set(normal)) == own_data.CHOICES and all(normal)


def test_places_of_the_right_answer_are_balanced(made):
    _, items = made
    counts = Counter(item.row["gold"] for item in items)
    assert max(counts.values()) - min(counts.values()) <= 1 and len(counts) == own_data.CHOICES
    kept = suite.capped([Item(i.item_id, i.row) for i in items], 200, seed=9)
    assert Counter(item.row["gold"] for item in kept) == {0: 50, 1: 50, 2: 50, 3: 50}


@pytest.mark.parametrize("measure", [len, lambda c: len(encoder().encode(c, False)), lambda c: -len(c.split()), lambda c: sum(not x.isalnum() for x in c)])
def test_the_form_of_a_choice_does_not_give_it_away(made, measure):
    """Picking the longest, the one with most tokens, fewest words, most signs (ties shared) is right about as often as guessing."""
    _, items = made
    earned = 0.0
    for item in items:
        values = [measure(choice) for choice in item.row["choices"]]
        best = max(values)
        earned += (values[item.row["gold"]] == best) / values.count(best)
    share, n = earned / len(items), len(items)
    assert abs(share - 0.25) < 3.5 * math.sqrt(0.25 * 0.75 / n) + 0.03, share


def test_an_item_fits_a_short_sequence(made):
    _, items = made
    for item in items:
        assert len(item.row["query"]) <= own_data.CONTEXT_CHARS and max(map(len, item.row["choices"])) <= 220


def test_max_items_keeps_the_first_in_hash_order(made):
    task, items = made
    some = make_items(DOCUMENTS, task=task, seed=1234, max_items=40)
    assert len(some) == 40 and {i.item_id for i in some} <= {i.item_id for i in items}
    assert {i.row["gold"] for i in some} == {0, 1, 2, 3}


def test_the_asked_name_stands_in_the_context():
    for item in make_items(DOCUMENTS, task="identifier", seed=1234)[:100]:
        name = re.search(r"[A-Za-z_]\w+", item.row["choices"][item.row["gold"]])[0]
        assert re.search(rf"\b{name}\b", item.row["query"])


def test_prose_gets_sentences_and_no_identifiers():
    prose = "The river rose slowly in the night. Nobody in the village had seen it so high before. At dawn the bridge was gone. "
    other = "A long winter had passed over the hills. The shepherds drove their sheep back to the meadows. Everyone was glad of the sun. "
    texts = [
        (f"{i:032x}", "books", (prose + other).replace("river", word).replace("winter", word)) for i, word in enumerate(("river", "stream", "brook", "creek"))
    ]
    assert make_items(texts, task="identifier", seed=1) == []
    items = make_items(texts, task="docstring", seed=1)
    assert items and all(item.row["choices"][item.row["gold"]].strip().endswith(".") for item in items)


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "\0" * 500,
        "x = (" * 5000,
        "'''" * 999,
        "def f(" + "(" * 3000 + "):\n    '''" + "a" * 3000,
        "\ud83d\ude00 " * 400,
        "a " * 200_000,
        "\r\n\t\x0b\x0c" * 300,
        "if x:\n" * 400,
    ],
)
def test_hostile_text_gives_items_or_none_quickly(hostile):
    texts = [("0" * 32, "s", hostile), *DOCUMENTS[:3]]
    for task in own_data.TASKS:
        make_items(texts, task=task, seed=1)


def test_unknown_tasks_are_errors():
    with pytest.raises(ValueError, match="Unknown own-data task 'next_word'"):
        make_items(DOCUMENTS, task="next_word", seed=1)
    with pytest.raises(ValueError, match="Unknown symbolic task 'chess'"):
        symbolic.make_items("chess", n=3, seed=1)


def closes(text: str) -> bool:
    """Whether every bracket of ``text`` is closed in order: a stack, nothing else."""
    stack = []
    for char in text:
        if char in "([{":
            stack.append(char)
        elif char in ")]}" and (not stack or stack.pop() + char not in ("()", "[]", "{}")):
            return False
    return not stack


def test_exactly_one_choice_closes_the_brackets():
    for item in symbolic.make_items("brackets", n=400, seed=1234):
        right = [closes(item.row["query"] + choice) for choice in item.row["choices"]]
        assert right.count(True) == 1 and right.index(True) == item.row["gold"]
        assert len({len(choice) for choice in item.row["choices"]}) == 1 and all(set(choice) <= set(")]}") for choice in item.row["choices"])


def test_exactly_one_choice_is_the_result():
    for item in symbolic.make_items("arithmetic", n=400, seed=1234):
        left, sign, right = re.fullmatch(r"(\d+) ([+-]) (\d+) =", item.row["query"]).groups()
        result = int(left) + int(right) * (1 if sign == "+" else -1)
        assert [int(choice) == result for choice in item.row["choices"]].count(True) == 1 and int(item.row["choices"][item.row["gold"]]) == result >= 0


@pytest.mark.parametrize("task", symbolic.TASKS)
def test_symbolic_items_are_repeatable_different_and_balanced(task):
    items = symbolic.make_items(task, n=400, seed=1234)
    assert items == symbolic.make_items(task, n=400, seed=1234) != symbolic.make_items(task, n=400, seed=2)
    assert len({item.row["query"] for item in items}) == 400 == len({item.item_id for item in items})
    assert set(Counter(item.row["gold"] for item in items).values()) == {100}
    with pytest.raises(ValueError, match=r"only \d+ different items"):
        symbolic.make_items("arithmetic", n=5000, seed=1)


def test_the_suite_loads_from_rows_and_refuses_too_few():
    import json

    rows = [
        {"benchmark": task, "item_id": i.item_id, "item": json.dumps(i.row)} for task in own_data.TASKS for i in make_items(DOCUMENTS[:30], task=task, seed=1)
    ]
    kwargs = {"own_data_tasks": own_data.TASKS, "symbolic_tasks": symbolic.TASKS, "items_per_task": 40, "seed": 1234}
    benchmarks = suite.load(rows, **kwargs)
    assert [b.task.label for b in benchmarks] == [*own_data.TASKS, *symbolic.TASKS] and {len(b.items) for b in benchmarks} == {40}
    assert len({b.task.category for b in benchmarks}) >= 3
    assert suite.load(reversed(rows), **kwargs) == benchmarks
    with pytest.raises(ValueError, match="Own-data task identifier has 0 items"):
        suite.load([r for r in rows if r["benchmark"] != "identifier"], **kwargs)
    with pytest.raises(ValueError, match="Unknown tasks"):
        suite.load(rows, **{**kwargs, "symbolic_tasks": ["chess"]})
