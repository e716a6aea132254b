"""A small trained-nowhere model, its tokenizer, packed sequences and own-data items as the evaluate and review stages read them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
import gauntlet_examples as examples

from expectations.tables import TABLES
from jobs.config import SuiteConfig, TrainConfig
from jobs.contract import is_held_out
from jobs.services.delta import arrow_schema
from models.gauntlet import own_data

SUITE = SuiteConfig(items_per_task=40)
TOKENIZER_ID = "0123456789abcdef"


@dataclass
class Folder:
    """What of jobs.contract.Tools these stages use, over one folder."""

    root: Path
    run_key: str = "e" * 32
    recipe: str = "tiny"
    interval: str | None = None
    gauntlet_data: str | None = None
    reported: list[tuple[float, float, str]] = field(default_factory=list)

    def artifact_dir(self, name: str) -> str:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.reported.append((done, total, text))


def table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows in the exact columns of a table of the contract; columns not given are null."""
    schema = arrow_schema(TABLES[name])
    return pa.Table.from_pylist([{column: row.get(column) for column in schema.names} for row in rows], schema=schema)


def fits(name: str, rows: pa.Table) -> pa.Table:
    """``rows`` as run_stage would store them: the run_key added, cast to the contract's columns. Fails on anything missing or null."""
    schema = arrow_schema(TABLES[name])
    stored = rows.append_column("run_key", pa.array(["e" * 32] * rows.num_rows)).select(schema.names).cast(schema)
    for column in TABLES[name].columns:
        assert column.nullable or stored[column.name].null_count == 0, column.name
    key = [tuple(row[k] for k in TABLES[name].key) for row in stored.to_pylist()]
    assert len(set(key)) == len(key)
    return stored


def documents() -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """(training, held out): of few documents more than 1 % have to be held out."""
    held_out = [d for i, d in enumerate(examples.documents()) if i % 4 == 0 or is_held_out(d[0])]
    return [d for d in examples.documents() if d not in held_out][:40], held_out


def item_rows() -> list[dict[str, Any]]:
    _, held_out = documents()
    return [
        {"benchmark": task, "item_id": i.item_id, "doc_id": i.doc_id, "source": i.source, "item": json.dumps(i.row), "interval": "2026-11-01"}
        for task in own_data.TASKS
        for i in own_data.make_items(held_out, task=task, seed=SUITE.seed)
    ]


def packed(texts: list[str], seq_len: int = 256) -> list[dict[str, Any]]:
    ids = np.concatenate([np.array([*examples.encoder().encode(text, False), 0]) for text in texts])
    ids = ids[: len(ids) // seq_len * seq_len].reshape(-1, seq_len)
    return [
        {
            "interval": "2026-11-01", "sequence_id": i, "split": "train", "tokens": row.tolist(), "boundaries": [0], "doc_ids": ["d"], "sources": ["s"],
            "n_tokens": seq_len, "tokenizer_id": TOKENIZER_ID,
        }
        for i, row in enumerate(ids)
    ]  # fmt: skip


def evaluate_inputs(root: Path) -> tuple[Folder, dict[str, Any]]:
    """Tools with a checkpoint and a tokenizer among the artifacts, and the five inputs of stage evaluate."""
    from models import checkpoint

    model = examples.model()
    tools = Folder(root)
    folder, digest = checkpoint.write(Path(tools.artifact_dir("checkpoints/run1")), step=10, tensors={"model": model.state_dict()}, state={"step": 10})
    (Path(tools.artifact_dir(f"tokenizers/{TOKENIZER_ID}")) / "tokenizer.json").write_bytes(examples.tokenizer_json())
    row = {
        "run_key": "a" * 32, "uri": str(folder.relative_to(root)), "sha256": digest, "step": 10, "tokens": 1000, "loss": 5.0,
        "config": json.dumps(asdict(TrainConfig(model=model.config, tokens=1000))), "final": True,
    }  # fmt: skip
    earlier = {**row, "final": False, "step": 5, "uri": "checkpoints/run1/gone"}
    training, _ = documents()
    return tools, {
        "checkpoints": ds.dataset(table("checkpoints", [earlier, row])), "benchmark_items": ds.dataset(table("benchmark_items", item_rows())),
        "contamination": ds.dataset(table("contamination", [])), "contaminated_items": ds.dataset(table("contaminated_items", [])),
        "sequences": ds.dataset(table("sequences", packed([text for *_, text in training]))),
    }  # fmt: skip
