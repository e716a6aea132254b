"""Prompts are Foundry's, token by token: checked against a second, plain implementation of the documented steps, on Foundry's own data."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
from gauntlet_examples import GAUNTLET, encoder, needs_gauntlet

from models.gauntlet import tasks
from models.gauntlet.prompts import Encoder, assemble, needs_prefix_space, shot_indices, without_leaks
from models.gauntlet.tasks import Benchmark, Item, Task


@dataclass(frozen=True)
class Words:
    """A readable tokenizer: every character is a token, so that golden prompts can be written down. BOS when special tokens are asked for."""

    eos_id: int | None = 3
    bos: tuple[int, ...] = ()
    appends_eos: bool = False

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        ids = [ord(c) + 10 for c in text]
        return [*self.bos, *ids, *([self.eos_id] if self.appends_eos else [])] if special_tokens else ids

    def decode(self, ids) -> str:
        return "".join(chr(i - 10) for i in ids if i >= 10)


class SpaceIsAToken(Words):
    """As a byte-level BPE: ' a' is one token."""

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        return [99_999] if text == " a" else super().encode(text, special_tokens)


def plain(task: Task, rows: list[dict], k: int, encode: Encoder, max_len: int) -> list[list[tuple[list[int], list[int]]]]:
    """Contexts and continuations per row, written straight from the steps in the notes: strip, draw shots, join, encode apart, cut left."""
    rows = [{key: value.strip() if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    rng, everything = random.Random(1234), []
    for i, row in enumerate(rows):
        shots: set[int] = set()
        if k > 0:
            shots = set(rng.sample(range(len(rows)), min(len(rows) - 1, k)))
            if i in shots:
                shots.remove(i)
                if len(shots) < len(rows) - 1:
                    while True:
                        j = rng.choice(range(len(rows)))
                        if j not in shots and j != i:
                            break
                    shots.add(j)
        text = ""
        for j in shots:
            text += _shot(task, rows[j], first=not text)
        contexts, answers = _question(task, row, text)
        space = len(encode.encode(" a", False)) == 1
        answers = [(" " + a if space and a[:1] != " " else a) for a in answers]
        head = encode.encode(text, True)
        if len(head) > 1 and head[-1] == encode.eos_id:
            head = head[:-1]
        pairs = []
        for c in contexts:
            for a in answers:
                ids, tail = head + encode.encode(c, False), encode.encode(a, False)
                pairs.append((ids[max(0, len(ids) + len(tail) - max_len) :], tail))
        everything.append(pairs)
    return everything


def _shot(task: Task, row: dict, first: bool) -> str:
    delimiter = "" if first else task.example_delimiter
    if task.kind == "schema":
        return task.question_prelimiter + delimiter + row["context_options"][row["gold"]] + task.continuation_delimiter + row["continuation"]
    answer = row["choices"][row["gold"]] if task.kind == "multiple_choice" else row["continuation"]
    return delimiter + task.question_prelimiter + (row.get("query") or row.get("context")) + task.continuation_delimiter + answer


def _question(task: Task, row: dict, shots: str) -> tuple[list[str], list[str]]:
    if task.kind == "schema":
        if shots:
            ending = task.continuation_delimiter.rstrip()
            return [task.question_prelimiter + task.example_delimiter + o + ending for o in row["context_options"]], [row["continuation"]]
        return [task.question_prelimiter + o for o in row["context_options"]], [row["continuation"]]
    body = (task.example_delimiter if shots else "") + task.question_prelimiter + (row.get("query") or row.get("context")) + task.continuation_delimiter
    return [body.rstrip()], row["choices"] if task.kind == "multiple_choice" else [row["continuation"]]


@needs_gauntlet
@pytest.mark.parametrize("encode", [encoder(), Words(), Words(bos=(1,)), SpaceIsAToken(bos=(1,), appends_eos=True)], ids=["bpe", "chars", "bos", "bos-eos"])
def test_prompts_of_foundrys_data_are_the_documented_ones(encode):
    wanted = {
        "siqa",
        "copa",
        "arc_easy",
        "openbook_qa",
        "lambada_openai",
        "bigbench_operators",
        "winograd",
        "winogrande",
        "simple_arithmetic_withspaces",
        "boolq",
    }
    yamls = GAUNTLET / "yamls"
    for benchmark in tasks.load_foundry(yamls / "tasks_v0.3.yaml", GAUNTLET / "local_data", yamls / "eval_gauntlet_v0.3.yaml", only=wanted):
        cut = Benchmark(benchmark.task, benchmark.items[:60])
        expected = plain(cut.task, [dict(i.row) for i in cut.items], cut.task.num_fewshot, encode, 1500)
        got = [list(zip(map(list, r.contexts), map(list, r.continuations), strict=True)) for r in assemble(cut, encode, 1500)]
        assert got == expected, benchmark.task.label


@needs_gauntlet
def test_a_categorised_task_draws_its_shots_within_each_category():
    yamls = GAUNTLET / "yamls"
    (jeopardy,) = tasks.load_foundry(yamls / "tasks_v0.3.yaml", GAUNTLET / "local_data", yamls / "eval_gauntlet_v0.3.yaml", only=["jeopardy"])
    some = Benchmark(jeopardy.task, jeopardy.items[::25])
    requests = list(assemble(some, Words(), 4000))
    assert [r.subset for r in requests] == sorted(r.subset for r in requests) and len({r.subset for r in requests}) == 5
    for name in {r.subset for r in requests}:
        rows = [dict(i.row) for i in some.items if i.row["category"] == name]
        expected = plain(jeopardy.task, rows, 3, Words(), 4000)
        assert [[(list(r.contexts[0]), list(r.continuations[0]))] for r in requests if r.subset == name] == expected


def rows_of(task: Task, *rows: dict) -> Benchmark:
    return Benchmark(task, tuple(Item(str(i), row) for i, row in enumerate(rows)))


def text(ids) -> str:
    return Words().decode(ids)


def test_golden_multiple_choice_with_shots():
    task = Task(label="t", kind="multiple_choice", category="c", num_fewshot=1, continuation_delimiter="\nAnswer: ", question_prelimiter="Q: ")
    benchmark = rows_of(task, {"query": " Sky? ", "choices": ["blue ", "red"], "gold": 0}, {"query": "Grass?", "choices": ["pink", "green"], "gold": 1})
    first, second = assemble(benchmark, Words(), 200)
    assert [text(c) for c in first.contexts] == ["Q: Grass?\nAnswer: green\nQ: Sky?\nAnswer:"] * 2
    assert text(second.contexts[0]) == "Q: Sky?\nAnswer: blue \nQ: Grass?\nAnswer:"  # strings in lists are not stripped
    assert [text(c) for c in first.continuations] == ["blue ", "red"] and first.gold == 0
    assert first.prompt == "Q: Grass?\nAnswer: green\nQ: Sky?\nAnswer:"


def test_a_leading_space_is_added_only_for_tokenizers_that_write_it_as_part_of_a_word():
    assert needs_prefix_space(SpaceIsAToken()) and not needs_prefix_space(Words())
    task = Task(label="t", kind="language_modeling", category="c")
    benchmark = rows_of(task, {"context": "2 + 2 =", "continuation": " 4"}, {"context": "1 + 1 =", "continuation": "2"})
    assert [text(r.continuations[0]) for r in assemble(benchmark, SpaceIsAToken(), 100)] == [" 4", " 2"]
    assert [text(r.continuations[0]) for r in assemble(benchmark, Words(), 100)] == ["4", "2"]  # the dataset is stripped


def test_schema_contexts_have_a_delimiter_only_with_shots():
    row = {"context_options": ["The cat", "The dog"], "continuation": "barks.", "gold": 1}
    zero = Task(label="s", kind="schema", category="c", question_prelimiter="> ")
    assert [text(c) for c in next(assemble(rows_of(zero, row), Words(), 100)).contexts] == ["> The cat", "> The dog"]
    one = Task(label="s", kind="schema", category="c", question_prelimiter="> ", num_fewshot=1)
    other = {"context_options": ["Ada", "Bob"], "continuation": "wrote it.", "gold": 0}
    request = next(assemble(rows_of(one, row, other), Words(), 100))
    assert [text(c) for c in request.contexts] == ["> Ada wrote it.> \nThe cat", "> Ada wrote it.> \nThe dog"]
    assert [text(c) for c in request.continuations] == ["barks.", "barks."]


def test_a_chain_of_thought_stands_in_shots_without_a_space():
    task = Task(label="g", kind="generation_task_with_answers", category="c", num_fewshot=1, cot_delimiter="The answer is ", continuation_delimiter="\n\nA:",
                question_prelimiter="Question: ", do_normalization=False)  # fmt: skip
    benchmark = rows_of(
        task, {"context": "1+1?", "chain_of_thought": "( 1 + 1 )", "answer": "2"}, {"context": "9-2?", "chain_of_thought": "( 9 - 2 )", "answer": "7"}
    )
    request = next(assemble(benchmark, Words(), 200))
    assert text(request.contexts[0]) == "Question: 9-2?\n\nA:( 9 - 2 )The answer is 7\nQuestion: 1+1?\n\nA:"
    assert request.max_new_tokens == len("( 1 + 1 )The answer is 2") + 10 and request.answers == ("2",) and request.continuations == ()


def test_long_contexts_lose_their_beginning_and_say_so():
    task = Task(label="t", kind="multiple_choice", category="c")
    request = next(assemble(rows_of(task, {"query": "abcdefghij", "choices": ["xy", "xyz"], "gold": 0}), Words(), 8))
    assert [text(c) for c in request.contexts] == ["efghij", "fghij"] and request.truncated


def test_an_answer_longer_than_the_model_is_an_error_that_names_the_task():
    task = Task(label="novels", kind="language_modeling", category="c")
    with pytest.raises(ValueError, match=r"Task novels, item 0: an answer has 9 tokens, but the model takes sequences of 8"):
        list(assemble(rows_of(task, {"context": "a", "continuation": "b" * 9}), Words(), 8))


def test_keeping_some_items_changes_no_prompt():
    task = Task(label="t", kind="multiple_choice", category="c", num_fewshot=3)
    benchmark = rows_of(task, *({"query": f"question {i}", "choices": ["a", "b"], "gold": i % 2} for i in range(40)))
    whole = {r.item_id: r for r in assemble(benchmark, Words(), 500)}
    assert [whole[r.item_id] for r in assemble(benchmark, Words(), 500, keep={"7", "31"}.__contains__)] == [whole["7"], whole["31"]]


def test_shots_are_never_the_question_itself_and_as_many_as_there_are():
    rng = random.Random(1234)
    for size, shots in ((2, 5), (3, 2), (40, 5)):
        for index in range(size):
            chosen = shot_indices(size, shots, index, rng)
            assert index not in chosen and len(chosen) == min(size - 1, shots)


def fixed(task: Task) -> Task:
    return replace(task, mode="fixed")


def test_fixed_strips_the_strings_in_lists_too():
    task = fixed(Task(label="t", kind="multiple_choice", category="c", num_fewshot=1))
    benchmark = rows_of(task, {"query": "Sky?", "choices": ["blue ", " red"], "gold": 0}, {"query": "Grass?", "choices": ["pink", " green "], "gold": 1})
    first, second = assemble(benchmark, Words(), 200)
    assert text(second.contexts[0]) == "Sky? blue\nGrass?" and [text(c) for c in first.continuations] == ["blue", "red"]


def test_fixed_schema_contexts_have_the_same_form_with_and_without_shots():
    row, other = (
        {"context_options": ["The cat", "The dog"], "continuation": "barks.", "gold": 1},
        {"context_options": ["Ada", "Bob"], "continuation": "wrote it.", "gold": 0},
    )
    task = fixed(Task(label="s", kind="schema", category="c", question_prelimiter="> ", continuation_delimiter=" that"))
    assert [text(c) for c in next(assemble(rows_of(task, row), Words(), 100)).contexts] == ["> The cat that", "> The dog that"]
    with_shot = next(assemble(rows_of(replace(task, num_fewshot=1), row, other), Words(), 100))
    assert [text(c) for c in with_shot.contexts] == ["> Ada thatwrote it.\n> The cat that", "> Ada thatwrote it.\n> The dog that"]


def changed_items(benchmark, encoder, max_seq_len):
    """Ids of the items that modes exact and fixed ask differently, token for token."""
    exact, fixed_ = (Benchmark(replace(benchmark.task, mode=mode), benchmark.items) for mode in ("exact", "fixed"))
    pairs = zip(assemble(exact, encoder, max_seq_len), assemble(fixed_, encoder, max_seq_len), strict=True)
    return {a.item_id for a, b in pairs if (a.contexts, a.continuations) != (b.contexts, b.continuations)}


def test_fixed_shots_never_hold_the_question_and_other_items_keep_theirs():
    task = Task(label="t", kind="language_modeling", category="c", num_fewshot=3)
    rows = [{"context": f"question {i % 12}" if i < 14 else f"QUESTION  {i % 12}", "continuation": f"answer {i}"} for i in range(16)]
    benchmark, corrected = rows_of(task, *rows), rows_of(fixed(task), *rows)
    changed = changed_items(benchmark, Words(), 4000)
    exact = {r.item_id: r for r in assemble(benchmark, Words(), 4000)}
    leaking = {i for i, r in exact.items() if rows[int(i)]["context"].lower().split() in [line.lower().split()[:2] for line in r.prompt.split("\n")[:-1]]}
    assert changed == leaking and 0 < len(leaking) < 8
    for request in assemble(corrected, Words(), 4000):
        *shots, question = request.prompt.split("\n")
        assert len(shots) == 3 and not any(shot.lower().split()[:2] == question.lower().split() for shot in shots)
        assert request.item_id in changed or request == exact[request.item_id]


def test_fixed_takes_fewer_shots_where_every_other_row_asks_the_same():
    task = fixed(Task(label="t", kind="language_modeling", category="c", num_fewshot=2))
    same = [{"context": "one question", "continuation": str(i)} for i in range(3)]
    assert [r.prompt for r in assemble(rows_of(task, *same), Words(), 100)] == ["one question"] * 3
    assert without_leaks([1, 2], 0, ["a", "a", "b", "c"], 1234) == [3, 2] and without_leaks([2, 3], 0, ["a", "a", "b", "c"], 1234) == [2, 3]


@needs_gauntlet
def test_what_fixed_asks_differently_in_foundrys_data():
    yamls = GAUNTLET / "yamls"
    loaded = tasks.load_foundry(
        yamls / "tasks_v0.3.yaml", GAUNTLET / "local_data", yamls / "eval_gauntlet_v0.3.yaml", only=["copa", "svamp", "winograd", "agi_eval_lsat_ar"]
    )
    changed = {b.task.label: len(changed_items(b, Words(), 20_000)) for b in loaded}
    assert changed["copa"] == 0 and changed["svamp"] <= 3  # zero-shot and clean lists; hardly a question twice
    assert changed["winograd"] > 0  # twin sentences: the shot shows which of the two options the other one means
