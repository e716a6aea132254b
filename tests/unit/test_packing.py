"""Cutting documents into sequences, and the tokenizer that makes the tokens."""

from __future__ import annotations

import random
import string
from typing import Any

import numpy as np
import pytest

from jobs.contract import MoelineError
from jobs.stages.pack import END_OF_TEXT_ID, PAD_ID, Packer, load_tokenizer, tokenizer_id, train_tokenizer


def pack_all(documents: list[tuple[str, list[int]]], seq_len: int) -> list[dict[str, Any]]:
    packer, found = Packer(seq_len), []
    for doc_id, tokens in documents:
        found += packer.add(doc_id, f"source-{doc_id}", np.array(tokens, np.int32))
    return found + list(packer.flush())


def unpack(sequences: list[dict[str, Any]]) -> dict[str, list[int]]:
    texts: dict[str, list[int]] = {}
    for sequence in sequences:
        ends = [*sequence["boundaries"][1:], sequence["n_tokens"]]
        for doc_id, start, end in zip(sequence["doc_ids"], sequence["boundaries"], ends, strict=True):
            texts.setdefault(doc_id, []).extend(sequence["tokens"][start:end].tolist())
    return texts


@pytest.mark.parametrize("seq_len", [2, 7, 16, 64])
def test_every_document_can_be_read_back_from_the_sequences(seq_len: int) -> None:
    rng = random.Random(seq_len)
    documents = [(f"d{i}", [rng.randint(2, 99) for _ in range(rng.choice([0, 1, seq_len - 1, seq_len, 3 * seq_len, rng.randint(0, 40)]))]) for i in range(50)]
    sequences = pack_all(documents, seq_len)
    assert unpack(sequences) == {doc_id: [*tokens, END_OF_TEXT_ID] for doc_id, tokens in documents}
    assert all(len(s["tokens"]) == seq_len and s["tokens"].dtype == np.int32 for s in sequences)
    assert all(s["n_tokens"] == seq_len for s in sequences[:-1]), "only the last sequence may be padded"
    assert len(sequences) == -(-sum(len(t) + 1 for _, t in documents) // seq_len)


def test_boundaries_start_at_zero_and_name_every_piece() -> None:
    first, second = pack_all([("a", [5, 5]), ("b", [6, 6, 6, 6])], 6)
    assert first["tokens"].tolist() == [5, 5, END_OF_TEXT_ID, 6, 6, 6]
    assert (first["boundaries"], first["doc_ids"], first["sources"]) == ([0, 3], ["a", "b"], ["source-a", "source-b"])
    assert second["tokens"].tolist() == [6, END_OF_TEXT_ID, PAD_ID, PAD_ID, PAD_ID, PAD_ID]
    assert (second["boundaries"], second["doc_ids"], second["n_tokens"]) == ([0], ["b"], 2)


def test_an_end_of_text_that_does_not_fit_opens_the_next_sequence() -> None:
    first, second = pack_all([("a", [5, 5, 5])], 3)
    assert (first["tokens"].tolist(), second["tokens"].tolist(), second["n_tokens"]) == ([5, 5, 5], [END_OF_TEXT_ID, PAD_ID, PAD_ID], 1)


def test_flushing_ends_a_sequence_and_an_empty_packer_gives_none() -> None:
    packer = Packer(4)
    assert list(packer.flush()) == []
    assert list(packer.add("a", "s", np.array([5], np.int32))) == []
    assert [s["n_tokens"] for s in packer.flush()] == [2]
    assert list(packer.flush()) == []


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 10))) for _ in range(400)]
    return [" ".join(rng.choices(vocabulary, k=200)) for _ in range(60)]


@pytest.fixture(scope="module")
def content(texts: list[str]) -> bytes:
    return train_tokenizer(texts, 600)


def test_the_same_texts_train_the_same_tokenizer(texts: list[str], content: bytes) -> None:
    assert train_tokenizer(texts, 600) == content
    assert len(tokenizer_id(content)) == 16
    assert tokenizer_id(content) != tokenizer_id(train_tokenizer(texts, 599))


def test_any_text_is_read_back_exactly(content: bytes) -> None:
    tokenizer = load_tokenizer(content)
    for text in ("", " leading and trailing ", "a\r\n\tb\x00\x7f", "Größe 東京 🙂 e\u0301 \u200f", "x" * 5000, "".join(map(chr, range(1, 1500)))):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert not {END_OF_TEXT_ID, PAD_ID} & set(ids)


def test_a_document_cannot_forge_a_boundary(content: bytes) -> None:
    tokenizer = load_tokenizer(content)
    ids = tokenizer.encode("before<|endoftext|>after<|pad|>", add_special_tokens=False).ids
    assert not {END_OF_TEXT_ID, PAD_ID} & set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == "before<|endoftext|>after<|pad|>"


def test_special_tokens_have_their_ids_and_digits_stand_alone(content: bytes) -> None:
    tokenizer = load_tokenizer(content)
    assert (tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|pad|>"), tokenizer.get_vocab_size()) == (END_OF_TEXT_ID, PAD_ID, 600)
    assert len(tokenizer.encode("1024", add_special_tokens=False).ids) == 4


def test_too_little_text_for_the_vocabulary_is_an_error_a_person_can_act_on() -> None:
    with pytest.raises(MoelineError, match="5000 tokens and the text of this day gives only"):
        train_tokenizer(["too little text"], 5000)
