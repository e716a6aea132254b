"""Pack: train the tokenizer once, turn documents into token ids, and cut them into sequences of one length with document boundaries.

Change here: tokenising, packing. Not here: lengths and vocabulary (PackConfig in jobs/config.py), masks across documents (models).

Documents of a split are dealt into buckets by a hash of their id, ordered inside a bucket by that hash, each followed by
``<|endoftext|>``, and the stream of a bucket is cut every ``seq_len`` tokens; only a bucket's last sequence is padded. The pieces of a document that
decontamination cut are packed one after the other, each like a document of its own: no text runs on over what was cut out. The number of
buckets follows from the bytes of the split, so the rows are the same whatever the number of partitions or machines. Where sources are
kept apart, each has buckets of its own. Best-fit packing places the documents of a bucket together (jobs/best_fit.py), so a task holds a bucket's tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.best_fit import best_fit
from jobs.config import PackConfig
from jobs.contract import MoelineError, StageOutput, Tools
from jobs.decontamination import split_pieces

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame
    from tokenizers import Tokenizer

ENGINE = "spark"
READS = {"training_documents": "interval"}
WRITES = ("sequences",)
REVISION = 1

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
END_OF_TEXT_ID, PAD_ID = 0, 1
SPLITS = ("train", "held_out")  # a split's place is the high bits of its sequence ids

_BUCKET_BYTES = 1 << 20  # at least, so that a core gets enough to do
_BUCKET_SEQUENCES = 1000  # and at least so many sequences: half a sequence of padding per bucket: 0.05 %
_BYTES_PER_TOKEN = 4  # only to choose the number of buckets
_ENCODE_CHARS = 1_000_000  # an encoding holds each token as text as well: about 100 bytes per token
_SCHEMA = (
    "sequence_id bigint, split string, tokens array<int>, boundaries array<int>, doc_ids array<string>, sources array<string>, "
    "n_tokens int, tokenizer_id string"
)  # fmt: skip


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> bytes:
    """tokenizer.json of a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with single digits and two special tokens.

    All 256 bytes are in the vocabulary, so every text can be written and read back exactly. The same texts in the same order give
    the same bytes. Raises MoelineError when there is too little text for the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: numbers are then written in one way, which small models need for arithmetic.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT, PAD], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise MoelineError(
            f"The tokenizer was asked for {vocab_size} tokens and the text of this day gives only {tokenizer.get_vocab_size()}. "
            "Start with a day that has more text, or lower vocab_size."
        )
    return tokenizer.to_str().encode()


def load_tokenizer(content: bytes) -> Tokenizer:
    """The tokenizer, reading the text ``<|endoftext|>`` in a document as ordinary characters: data cannot forge a boundary."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(content.decode())
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenizer_id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Packer:
    """Cuts a stream of documents into sequences of exactly ``seq_len`` tokens."""

    def __init__(self, seq_len: int) -> None:
        self.seq_len = seq_len
        self._clear()

    def _clear(self) -> None:
        self._tokens = np.full(self.seq_len, PAD_ID, np.int32)
        self._filled = 0
        self._boundaries: list[int] = []
        self._doc_ids: list[str] = []
        self._sources: list[str] = []

    def add(self, doc_id: str, source: str, tokens: np.ndarray) -> Iterator[dict[str, Any]]:
        """Append a document (its token ids without ``<|endoftext|>``); yields every sequence that is full."""
        yield from self.append(doc_id, source, np.append(tokens, END_OF_TEXT_ID))

    def append(self, doc_id: str, source: str, tokens: np.ndarray) -> Iterator[dict[str, Any]]:
        """Append a piece of a document as it is."""
        rest = tokens
        while len(rest):
            piece = rest[: self.seq_len - self._filled]
            self._boundaries.append(self._filled)
            self._doc_ids.append(doc_id)
            self._sources.append(source)
            self._tokens[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            rest = rest[len(piece) :]
            if self._filled == self.seq_len:
                yield from self.flush()

    def flush(self) -> Iterator[dict[str, Any]]:
        """The sequence begun, padded; nothing when there is none."""
        if self._filled:
            yield {
                "tokens": self._tokens, "boundaries": self._boundaries, "doc_ids": self._doc_ids, "sources": self._sources, "n_tokens": self._filled,
            }  # fmt: skip
        self._clear()


class BestFitPacker:
    """Cuts documents longer than ``seq_len`` into whole sequences and a rest; rests and shorter documents share sequences by best fit."""

    def __init__(self, seq_len: int) -> None:
        self.seq_len = seq_len
        self._rests: list[tuple[str, str, np.ndarray]] = []

    def add(self, doc_id: str, source: str, tokens: np.ndarray) -> Iterator[dict[str, Any]]:
        """Take a document (its token ids without ``<|endoftext|>``); yields its whole sequences."""
        whole = Packer(self.seq_len)
        tokens = np.append(tokens, END_OF_TEXT_ID).astype(np.int32)
        cut = len(tokens) // self.seq_len * self.seq_len
        for start in range(0, cut, self.seq_len):
            yield from whole.append(doc_id, source, tokens[start : start + self.seq_len])
        if cut < len(tokens):
            self._rests.append((doc_id, source, tokens[cut:]))

    def flush(self) -> Iterator[dict[str, Any]]:
        """The sequences of all rests, padded; nothing when there is none."""
        rests, self._rests, packer = self._rests, [], Packer(self.seq_len)
        for places in best_fit(np.array([len(tokens) for _, _, tokens in rests], np.int64), self.seq_len):
            for place in places:
                yield from packer.append(*rests[place])
            yield from packer.flush()


PACKERS = {"concatenate": Packer, "best_fit": BestFitPacker}


def run(config: PackConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Rows of ``sequences`` of one day; ``tokens`` in the metrics counts training tokens without padding."""
    documents = inputs["training_documents"]
    sizes = _sizes(documents)
    tools.progress(0, 3, "tokenizer")
    content = tools.put_once(f"tokenizers/{config.tokenizer}/tokenizer.json", lambda: _train(documents, sizes, config))
    _check_vocabulary(content, config)
    name = tokenizer_id(content)
    tools.put_once(f"tokenizers/{name}/tokenizer.json", lambda: content)
    tools.progress(1, 3, f"packing with tokenizer {name}")
    sequences = tools.materialise(_pack(documents, sizes, content, config, tools))
    tools.progress(2, 3, "counting")
    return StageOutput({"sequences": sequences}, _metrics(sequences, sizes, config) | {"tokenizer_id": name})


def _sizes(documents: DataFrame) -> dict[tuple[str, str], int]:
    """Bytes by (split, source)."""
    rows = documents.groupBy("split", "source").sum("n_bytes").collect()
    unknown = {row["split"] for row in rows} - set(SPLITS)
    if unknown:
        raise MoelineError(f"training_documents has the splits {sorted(unknown)}; known are {', '.join(SPLITS)}.")
    return {(row["split"], row["source"]): row["sum(n_bytes)"] for row in sorted(rows)}


def _train(documents: DataFrame, sizes: Mapping[tuple[str, str], int], config: PackConfig) -> bytes:
    """Train on the day's training documents in doc_id order: an equal share of ``tokenizer_bytes`` of every source."""
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    sources = sorted(source for split, source in sizes if split == "train")
    if not sources:
        raise MoelineError(f"Tokenizer {config.tokenizer} does not exist yet and this day has no training documents to train it on. Run a day with text first.")
    before = f.sum("n_bytes").over(Window.partitionBy("source").orderBy("doc_id")) - f.col("n_bytes")
    train = documents.where("split = 'train'")
    chosen = train.select("doc_id", "n_bytes", "source").withColumn("before", before).where(f.col("before") < config.tokenizer_bytes // len(sources))
    texts = train.select("doc_id", "text").join(chosen.select("doc_id"), "doc_id", "left_semi").toArrow().sort_by("doc_id")
    return train_tokenizer((text.as_py() for text in texts["text"]), config.vocab_size)


def _check_vocabulary(content: bytes, config: PackConfig) -> None:
    """A tokenizer's name stands for its bytes for ever; a recipe that means another one must give it another name."""
    vocabulary = json.loads(content)["model"]["vocab"]
    ids = vocabulary.get(END_OF_TEXT), vocabulary.get(PAD)
    if len(vocabulary) != config.vocab_size or ids != (END_OF_TEXT_ID, PAD_ID):
        raise MoelineError(
            f"Tokenizer {config.tokenizer} has {len(vocabulary)} tokens (special ones at {ids}), the recipe asks for {config.vocab_size} "
            f"(at {END_OF_TEXT_ID}, {PAD_ID}). Give the recipe's tokenizer another name; this one is in use."
        )


def _pack(documents: DataFrame, sizes: Mapping[tuple[str, str], int], content: bytes, config: PackConfig, tools: Tools) -> DataFrame:
    """One pass: every bucket is tokenised and cut by one task, in the order of the hash."""
    from pyspark.sql import functions as f

    order = f.xxhash64("doc_id")
    cut = f.col("piece_starts") if "piece_starts" in documents.columns else f.lit(None).cast("array<int>")  # days written before the column came
    first, count = _buckets(sizes, config)
    place = f.when(f.col("split") == SPLITS[0], 0).otherwise(1)
    dealt = documents.select(
        place.alias("split_place"), (first + f.pmod(order, count)).cast("int").alias("bucket"), order.alias("order"), "doc_id", "source", "text",
        cut.alias("piece_starts"),
    )  # fmt: skip
    name = tokenizer_id(content)

    def pack(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield from _packed(batches, content, name, config)

    partitions = int(tools.spark.conf.get("spark.sql.shuffle.partitions"))
    # By range, not by hash: a hash would put several of the few buckets on one task and leave others idle.
    spread = dealt.repartitionByRange(partitions, "split_place", "bucket").sortWithinPartitions("split_place", "bucket", "order", "doc_id")
    return spread.mapInArrow(pack, _SCHEMA)


def _buckets(sizes: Mapping[tuple[str, str], int], config: PackConfig) -> tuple[Any, Any]:
    """(first bucket, number of buckets) of a document's split, and of its source where sources are kept apart; as Spark expressions."""
    from pyspark.sql import functions as f

    bucket_bytes = max(_BUCKET_BYTES, _BUCKET_SEQUENCES * config.seq_len * _BYTES_PER_TOKEN)
    total: dict[tuple[str, str], int] = {}
    for (split, source), size in sorted(sizes.items()):
        key = (split, source if config.separate_sources else "")
        total[key] = total.get(key, 0) + size
    first, count = f.lit(0), f.lit(1)
    used = dict.fromkeys(SPLITS, 0)
    for (split, source), size in total.items():
        mine = (f.col("split") == split) & (f.col("source") == source if config.separate_sources else f.lit(True))
        number = -(-size // bucket_bytes) or 1
        first, count = f.when(mine, used[split]).otherwise(first), f.when(mine, number).otherwise(count)
        used[split] += number
    return first, count


def _packed(batches: Iterator[pa.RecordBatch], content: bytes, name: str, config: PackConfig) -> Iterator[pa.RecordBatch]:
    """Sequences of a partition whose rows are sorted by bucket; buckets are whole."""
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Spark already runs one task per core
    tokenizer, packer = load_tokenizer(content), PACKERS[config.packing](config.seq_len)
    bucket: tuple[int, int] | None = None
    number = 0
    ready: list[dict[str, Any]] = []

    def label(sequences: Iterable[dict[str, Any]]) -> None:
        nonlocal number
        for sequence in sequences:
            split, place = bucket or (0, 0)
            ready.append(sequence | {"sequence_id": (split << 62) | (place << 32) | number, "split": SPLITS[split], "tokenizer_id": name})
            number += 1

    for batch in batches:
        keys, texts = _pieces(batch)
        for (split, place, doc_id, source), tokens in zip(keys, _encoded(tokenizer, texts), strict=True):
            if (split, place) != bucket:
                label(packer.flush())
                bucket, number = (split, place), 0
            label(packer.add(doc_id, source, tokens))
            if len(ready) * config.seq_len >= 1 << 20:
                yield _rows(ready)
                ready.clear()
    label(packer.flush())
    if ready:
        yield _rows(ready)


def _pieces(batch: pa.RecordBatch) -> tuple[list[tuple[int, int, str, str]], list[str]]:
    """((split, bucket, doc_id, source) and the text of every piece); a document that was not cut is one."""
    rows = zip(*(batch.column(c).to_pylist() for c in ("split_place", "bucket", "doc_id", "source", "text", "piece_starts")), strict=True)
    pieces = [((split, place, doc_id, source), piece) for split, place, doc_id, source, text, starts in rows for piece in split_pieces(text, starts)]
    return [key for key, _ in pieces], [piece for _, piece in pieces]


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> Iterator[np.ndarray]:
    """Token ids of every text, a limited amount of text at a time."""
    first = 0
    while first < len(texts):
        last, chars = first, 0
        while last < len(texts) and (last == first or chars + len(texts[last]) <= _ENCODE_CHARS):
            chars += len(texts[last])
            last += 1
        for encoding in tokenizer.encode_batch_fast(texts[first:last], add_special_tokens=False):
            yield np.array(encoding.ids, np.int32)
        first = last


def _rows(sequences: list[dict[str, Any]]) -> pa.RecordBatch:
    import pyarrow as pa

    lists = {"tokens": pa.int32(), "boundaries": pa.int32(), "doc_ids": pa.string(), "sources": pa.string()}
    types: dict[str, Any] = {"sequence_id": pa.int64(), "split": pa.string(), **{k: pa.list_(v) for k, v in lists.items()}}
    types |= {"n_tokens": pa.int32(), "tokenizer_id": pa.string()}
    return pa.RecordBatch.from_arrays([pa.array([s[k] for s in sequences], kind) for k, kind in types.items()], names=list(types))


def _metrics(sequences: DataFrame, sizes: Mapping[tuple[str, str], int], config: PackConfig) -> dict[str, Any]:
    """Tokens by split and source, what packing wasted and cut, and bytes per token. A document counts once for every piece decontamination left."""
    from pyspark.sql import functions as f

    lengths = f.expr("transform(sources, (s, i) -> struct(s as source, coalesce(get(boundaries, i + 1), n_tokens) - boundaries[i] as tokens, i))")
    pieces = sequences.select("split", f.explode(lengths).alias("piece"))
    rows = (
        pieces.groupBy("split", "piece.source")
        .agg(f.sum("piece.tokens").alias("tokens"), f.sum(f.when(f.col("piece.i") == 0, 1)).alias("n"), f.count("*").alias("pieces"))
        .collect()
    )
    # A document that is cut fills at least one sequence to its end without ending itself; no other sequence ends like that.
    unfinished = sequences.where((f.col("n_tokens") == config.seq_len) & (f.element_at("tokens", -1) != END_OF_TEXT_ID))
    cuts, cut = unfinished.select(f.element_at("doc_ids", -1).alias("doc_id")).agg(f.count("*"), f.countDistinct("doc_id")).first()
    packed = sum(row["pieces"] for row in rows) - cuts
    tokens = {f"{row['split']}/{row['source']}": row["tokens"] for row in sorted(rows)}
    by_split = {split: sum(row["tokens"] for row in rows if row["split"] == split) for split in SPLITS}
    count = {split: sum(row["n"] or 0 for row in rows if row["split"] == split) for split in SPLITS}
    total = sum(by_split.values())
    return {
        "tokens": by_split["train"], "held_out_tokens": by_split["held_out"], "tokens_by_source": tokens, "sequences": count["train"],
        "held_out_sequences": count["held_out"], "padding_share": 1 - total / (sum(count.values()) * config.seq_len) if total else 0.0,
        "documents_packed": packed, "documents_cut": cut, "cuts": cuts, "cut_share": cut / packed if packed else 0.0,
        "bytes_per_token": sum(sizes.values()) / total if total else 0.0,
    }  # fmt: skip
