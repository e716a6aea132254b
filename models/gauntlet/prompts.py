"""Prompts: from a benchmark to token ids, exactly as llm-foundry 8c8dd48 assembles them.

The three encodings (shots, context, continuation) stay separate, shots come from the test set itself in the iteration order of a Python
set, and contexts are cut on the left: all of it changes scores, so all of it is kept. A task of mode ``fixed`` is asked with the
corrections that tasks.py lists. Pure: no model, no torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from models.gauntlet.tasks import CODE, EXACT, FIXED, GENERATION, LANGUAGE_MODELING, MULTIPLE_CHOICE, SCHEMA, Benchmark, Item, Task

COT_BUFFER_TOKENS = 10  # Foundry lets a generation run this much longer than the longest answer when there is a chain of thought


class Encoder(Protocol):
    """What prompts need of a tokenizer."""

    eos_id: int | None

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        """Token ids of ``text``, with the tokens a tokenizer adds around a text (BOS, EOS) or without."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens."""


@dataclass(frozen=True)
class TokenizersEncoder:
    """Encoder over a ``tokenizers.Tokenizer`` (a tokenizer.json)."""

    tokenizer: Any
    eos_id: int | None = None

    @classmethod
    def from_bytes(cls, content: bytes) -> TokenizersEncoder:
        """Read the bytes of a tokenizer.json; its end-of-text token is found by its usual names."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_buffer(content)
        names = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]")
        tokenizer.encode_special_tokens = True  # the text "<|endoftext|>" in an item is text, as in training
        return cls(tokenizer, next((i for i in map(tokenizer.token_to_id, names) if i is not None), None))

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


@dataclass(frozen=True)
class TransformersEncoder:
    """Encoder over a Hugging Face transformers tokenizer."""

    tokenizer: Any

    @property
    def eos_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special_tokens)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


@dataclass(frozen=True)
class Request:
    """One item ready for a model. ``contexts`` and ``continuations`` are parallel, one pair per option (schema: one continuation for all).

    Generation has one context, no continuation, ``answers`` (gold first) and ``max_new_tokens``. ``subset`` is the item's own category
    where the task averages over categories. ``prompt`` is the text of the first context, shots included, before any cutting.
    """

    item_id: str
    kind: str
    contexts: tuple[tuple[int, ...], ...]
    continuations: tuple[tuple[int, ...], ...]
    options: tuple[str, ...]
    gold: int
    answers: tuple[str, ...] = ()
    max_new_tokens: int = 0
    truncated: bool = False
    subset: str = ""
    prompt: str = ""


def shot_indices(size: int, shots: int, index: int, rng: random.Random) -> set[int]:
    """Rows used as examples for row ``index`` of ``size``. The set's own iteration order is the order of the shots."""
    chosen = set(rng.sample(range(size), min(size - 1, shots)))
    if index in chosen:
        chosen.remove(index)
        if len(chosen) >= size - 1:
            return chosen
        replacement = rng.choice(range(size))
        while replacement in chosen or replacement == index:
            replacement = rng.choice(range(size))
        chosen.add(replacement)
    return chosen


def needs_prefix_space(encoder: Encoder) -> bool:
    """GPT-2-style BPE writes ' a' as one token, so continuations get a leading space; SentencePiece does not."""
    return len(encoder.encode(" a", False)) == 1


def _stripped(task: Task, row: Mapping[str, Any]) -> dict[str, Any]:
    if not task.strip_dataset or task.kind == CODE:
        return dict(row)
    # Foundry strips only strings themselves: those inside lists (choices, aliases) keep their white space.
    in_lists = task.mode == FIXED
    return {
        k: v.strip() if isinstance(v, str) else [t.strip() if isinstance(t, str) else t for t in v] if in_lists and isinstance(v, list) else v
        for k, v in row.items()
    }


def question_key(task: Task, row: Mapping[str, Any]) -> str:
    """What two rows that ask the same question share: its text, case and white space aside (schema: the sentences to choose from)."""
    text = "\n".join(row["context_options"]) if task.kind == SCHEMA else row[_QUESTION.get(task.kind, "context")]
    return " ".join(text.lower().split())


_QUESTION = {MULTIPLE_CHOICE: "query", CODE: "prompt"}


def without_leaks(shots: Collection[int], index: int, keys: Sequence[str], seed: int) -> list[int]:
    """``shots`` with those replaced that ask the question of row ``index``; drawn apart, so that no other row's shots change."""
    leaking = [shot for shot in shots if keys[shot] == keys[index]]
    if not leaking:
        return list(shots)
    rng = random.Random(f"{seed}:{index}")  # noqa: S311 - repeatable, not secret
    free = [i for i in range(len(keys)) if keys[i] != keys[index] and i not in shots]
    replacements = dict(zip(leaking, rng.sample(free, min(len(free), len(leaking))), strict=False))
    return [replacements.get(shot, shot) for shot in shots if shot not in leaking or shot in replacements]


def _answer(task: Task, row: Mapping[str, Any], has_cot: bool) -> str:
    """The right answer as it stands in a shot."""
    if task.kind == MULTIPLE_CHOICE:
        return row["choices"][row["gold"]]
    if task.kind == LANGUAGE_MODELING:
        return row["continuation"]
    if task.kind == CODE:
        return row["canonical_solution"]
    return f"{row.get('chain_of_thought', '')}{task.cot_delimiter}{row['answer']}" if has_cot else row["answer"]


def _option(row: Mapping[str, Any]) -> str:
    return row["context_options"][row["gold"]]


def _question(task: Task, row: Mapping[str, Any]) -> str:
    return row[_QUESTION.get(task.kind, "context")]


def _delimiter(task: Task) -> str:
    """Between context and continuation. Code goes on where it ends; Foundry's delimiter (a space) would break the indentation."""
    return "" if task.kind == CODE and task.mode == FIXED else task.continuation_delimiter


def _shots_text(task: Task, rows: Sequence[Mapping[str, Any]], indices: Collection[int], has_cot: bool) -> str:
    text = task.prompt_string
    for index in indices:
        row = rows[index]
        delimiter = task.example_delimiter if text else ""
        if task.kind == SCHEMA and task.mode == EXACT:  # here the delimiter comes after the prelimiter
            text += f"{task.question_prelimiter}{delimiter}{row['context_options'][row['gold']]}{task.continuation_delimiter}{row['continuation']}"
        else:
            context, answer = (_option(row), row["continuation"]) if task.kind == SCHEMA else (_question(task, row), _answer(task, row, has_cot))
            text += f"{delimiter}{task.question_prelimiter}{context}{_delimiter(task)}{answer}"
    return text


def _contexts(task: Task, row: Mapping[str, Any], shots: str) -> list[str]:
    """Text after the shots: one per option for schema, else one."""
    if task.kind == SCHEMA and task.mode == FIXED:
        text = f"{task.example_delimiter if shots else ''}{task.question_prelimiter}"
        delimiter = task.continuation_delimiter.rstrip() if task.strip_dataset else task.continuation_delimiter
        return [f"{text}{option}{delimiter}" for option in row["context_options"]]
    if task.kind == SCHEMA:
        if not shots:
            return [f"{task.question_prelimiter}{option}" for option in row["context_options"]]
        delimiter = task.continuation_delimiter.rstrip() if task.strip_dataset else task.continuation_delimiter
        return [f"{task.question_prelimiter}{task.example_delimiter}{option}{delimiter}" for option in row["context_options"]]
    text = f"{task.example_delimiter if shots else ''}{task.question_prelimiter}{_question(task, row)}{_delimiter(task)}"
    return [text.rstrip() if task.strip_dataset and task.kind != CODE else text]


def _answers(task: Task, row: Mapping[str, Any]) -> tuple[str, ...]:
    if task.kind == CODE:
        return (row["canonical_solution"],)
    return tuple(dict.fromkeys((row["answer"], *(row.get("aliases") or ())))) if task.kind == GENERATION else ()


class _Assembler:
    """Turns the rows of one data set (one category of a categorised task) into requests."""

    def __init__(self, task: Task, items: Sequence[Item], encoder: Encoder, max_seq_len: int):
        self.task, self.items, self.encoder, self.max_seq_len = task, items, encoder, max_seq_len
        self.rows = [_stripped(task, item.row) for item in items]
        self.prefix_space = task.prefix_space and needs_prefix_space(encoder)
        self.has_cot = any("chain_of_thought" in item.row for item in items)
        self.keys = [question_key(task, row) for row in self.rows] if task.mode == FIXED and task.num_fewshot else []
        self.max_new_tokens = self._longest_answer() if task.kind == GENERATION else self._longest_solution() if task.kind == CODE else 0
        if self.max_new_tokens >= max_seq_len:
            raise ValueError(
                f"Task {task.label}: answers need up to {self.max_new_tokens} tokens, but the model takes sequences of {max_seq_len}. "
                "Leave the task out, or evaluate a model with longer sequences."
            )

    def _longest_answer(self) -> int:
        longest = 0
        for item in self.items:  # rows as in the file: Foundry measures before it strips
            thought = f"{item.row.get('chain_of_thought', '')}{self.task.cot_delimiter}" if self.has_cot else ""
            for answer in {item.row["answer"], *(item.row.get("aliases") or ())}:
                longest = max(longest, len(self.encoder.encode(f"{thought}{answer}", True)))
        return max(1, longest + (COT_BUFFER_TOKENS if self.task.cot_delimiter else 0))

    def _longest_solution(self) -> int:
        solutions = max(len(self.encoder.encode(item.row["canonical_solution"], False)) for item in self.items) + COT_BUFFER_TOKENS
        prompts = max(len(self.encoder.encode(f"{self.task.question_prelimiter}{row['prompt']}{_delimiter(self.task)}", True)) for row in self.rows)
        return max(1, min(solutions, self.max_seq_len - prompts))

    def _continuation(self, text: str) -> tuple[int, ...]:
        return tuple(self.encoder.encode(f" {text}" if self.prefix_space and not text.startswith(" ") else text, False))

    def _preamble(self, shots: str) -> list[int]:
        ids = self.encoder.encode(shots, True)
        return ids[:-1] if self.encoder.eos_id is not None and len(ids) > 1 and ids[-1] == self.encoder.eos_id else ids

    def request(self, index: int, shots: Collection[int]) -> Request:
        task, row, item = self.task, self.rows[index], self.items[index]
        if self.keys:
            shots = without_leaks(shots, index, self.keys, task.fewshot_seed)
        shots_text = _shots_text(task, self.rows, shots, self.has_cot)
        preamble = self._preamble(shots_text)
        texts = _contexts(task, row, shots_text)
        contexts = [(*preamble, *self.encoder.encode(text, False)) for text in texts]
        options = tuple(row["choices"] if task.kind == MULTIPLE_CHOICE else row["context_options"] if task.kind == SCHEMA else ())
        written = task.kind in (GENERATION, CODE)
        if written:
            continuations, room = [()], self.max_seq_len - self.max_new_tokens
        else:
            answers = options if task.kind == MULTIPLE_CHOICE else [row["continuation"]]
            continuations, room = [self._continuation(text) for text in answers], self.max_seq_len
        pairs = [(c, a) for c in contexts for a in continuations]  # either contexts or continuations has one member
        if any(len(a) >= room for _, a in pairs):
            raise ValueError(
                f"Task {task.label}, item {item.item_id}: an answer has {max(len(a) for _, a in pairs)} tokens, but the model takes sequences of "
                f"{self.max_seq_len}. Leave the task out, or evaluate a model with longer sequences."
            )
        if not written and any(not a or not c for c, a in pairs):
            raise ValueError(f"Task {task.label}, item {item.item_id}: the context or an answer has no tokens.")
        cut = [c[max(0, len(c) + len(a) - room) :] for c, a in pairs]
        return Request(
            item_id=item.item_id, kind=task.kind, contexts=tuple(cut), continuations=() if written else tuple(a for _, a in pairs),
            options=options or ((row["continuation"],) if task.kind == LANGUAGE_MODELING else ()),
            gold=row.get("gold", 0 if task.kind == LANGUAGE_MODELING else -1),
            answers=_answers(task, row),
            max_new_tokens=self.max_new_tokens, truncated=any(len(c) < len(full) for c, (full, _) in zip(cut, pairs, strict=True)),
            subset=str(row["category"]) if task.has_categories else "", prompt=f"{shots_text}{texts[0]}",
        )  # fmt: skip


def assemble(benchmark: Benchmark, encoder: Encoder, max_seq_len: int, keep: Callable[[str], bool] | None = None) -> Iterator[Request]:
    """Requests of a benchmark in row order (categories sorted first, as Foundry partitions).

    ``keep`` chooses items by id; the shots of an item do not depend on which others are kept. Raises ValueError naming the task when an
    answer does not fit ``max_seq_len`` tokens.
    """
    task = benchmark.task
    groups: dict[str, list[Item]] = {}
    for item in benchmark.items:
        groups.setdefault(str(item.row["category"]) if task.has_categories else "", []).append(item)
    for name in sorted(groups):
        assembler = _Assembler(task, groups[name], encoder, max_seq_len)
        rng = random.Random(task.fewshot_seed)  # noqa: S311 - Foundry's generator, consumed in row order
        for index, item in enumerate(groups[name]):
            shots = shot_indices(len(groups[name]), task.num_fewshot, index, rng) if task.num_fewshot else ()
            if keep is None or keep(item.item_id):
                yield assembler.request(index, shots)
