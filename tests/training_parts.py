"""Packed sequences with something to learn, and the tools of one attempt, for the tests of training."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from jobs.config import TrainConfig
from jobs.environment import Environment
from models.config import ModelConfig

VOCAB, SEQ_LEN = 64, 32
TOKENIZER = "f" * 16


def small_train(**changes: Any) -> TrainConfig:
    """A run of a second: 40 steps of a model of a few thousand parameters."""
    model = ModelConfig(d_model=16, n_heads=2, n_kv_heads=1, n_layers=1, ffn_hidden=16, vocab_size=VOCAB, max_seq_len=SEQ_LEN, n_experts=4, top_k=2)
    settings = {"tokens": 40 * 8 * SEQ_LEN, "batch_sequences": 8, "checkpoint_every_steps": 10, "held_out_sequences": 16, "learning_rate": 1e-2} | changes
    return TrainConfig(**{"model": model, **settings})


def sequences(folder: Path, *, train: int = 300, held_out: int = 20, vocab: int = VOCAB, days: int = 2, sources: Sequence[tuple[str, str]] = ()) -> ds.Dataset:
    """A dataset like the table ``sequences``: token i+1 follows token i three times out of four, so context helps.

    ``sources``: of the two documents of the first, second, ... sequence, over and over (default: all python-code).
    """
    rng = np.random.default_rng(7)
    rows = []
    for split, count in (("train", train), ("held_out", held_out)):
        for number in range(count):
            tokens = [int(rng.integers(2, vocab))]
            while len(tokens) < SEQ_LEN:
                tokens.append((tokens[-1] + 1 if rng.random() < 0.75 else int(rng.integers(2, vocab))) % vocab)
            cut = int(rng.integers(4, SEQ_LEN - 4))
            rows.append({
                "interval": f"2026-11-{1 + number % days:02d}", "sequence_id": number // days, "split": split, "tokens": tokens, "boundaries": [0, cut],
                "doc_ids": ["a", "b"],
                "sources": list(sources[number % len(sources)]) if sources else ["python-code"] * 2, "n_tokens": SEQ_LEN, "tokenizer_id": TOKENIZER,
            })  # fmt: skip
    rng.shuffle(rows)
    types = {"tokens": pa.list_(pa.int32()), "boundaries": pa.list_(pa.int32()), "n_tokens": pa.int32(), "sequence_id": pa.int64()}
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "sequences.parquet")
    return ds.dataset(folder / "sequences.parquet")


def write_tokenizer(artifacts: Path) -> None:
    """A byte-level tokenizer of VOCAB tokens' worth of ASCII text under the id the sequences carry."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = [*sorted({c for c in "abcdefghijklmnopqrstuvwxyz0123456789()[]{},=+-_."}), "Ġ"]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<|endoftext|>", "<|pad|>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    file = artifacts / "tokenizers" / TOKENIZER / "tokenizer.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(file))


@dataclass
class TrainingTools:
    """jobs.contract.Tools over one home, for one process; ``tracker`` is what the test gives."""

    home: Path
    run_key: str = "c" * 32
    recipe: str = "test"
    interval: str | None = None
    tracker: Any = None
    spending: Any = None
    reported: list[tuple[float, float, str]] = field(default_factory=list)
    _attempt: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def env(self) -> Environment:
        return Environment.load("local", home=self.home)

    @property
    def scratch(self) -> str:
        folder = self.home / f"scratch-{self._attempt}"
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.reported.append((done, total, text))

    def artifact_dir(self, name: str) -> str:
        folder = self.env.artifacts / name
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def cost_so_far(self) -> float:
        return 0.001

    def price(self, *, core_seconds: float = 0.0, gib_seconds: float = 0.0, gpu_seconds: float = 0.0) -> float:
        return self.env.prices.cost(core_seconds=core_seconds, gib_seconds=gib_seconds, gpu_seconds=gpu_seconds)

    def stage_price(self, stage: str, seconds: float) -> float:
        return self.env.prices.allocated(self.env.stage_resources(stage), seconds)


def train_stage_process(home: Path, data: Path, steps: int, **changes: Any) -> list[str]:
    """Command line of a process that runs stage train on ``data`` (with small_train's ``changes``) and prints its row and metrics as JSON."""
    code = (
        "import json, sys; from pathlib import Path; import pyarrow.dataset as ds; from jobs.stages import train; import training_parts as parts; "
        "config = parts.small_train(tokens=int(sys.argv[3]) * 8 * parts.SEQ_LEN, **json.loads(sys.argv[4])); tools = parts.TrainingTools(Path(sys.argv[1])); "
        "out = train.run(config, {'sequences': ds.dataset(sys.argv[2])}, tools); "
        "print(json.dumps({'row': out.tables['checkpoints'].to_pylist()[0], 'metrics': out.metrics}))"
    )
    return [sys.executable, "-c", code, str(home), str(data), str(steps), json.dumps(changes)]


def last_json(text: str) -> dict[str, Any]:
    return json.loads(text.strip().splitlines()[-1])
