"""The stages in Arrow, small enough for a test of many runs: each writes rows that depend on its input as the real stage's do, through run_stage.

Ingest's reading, ids and refusals are the real ones. A document's line ``LICENCE`` is refused by clean; equal texts are duplicates; an item's query
is the first line of a held-out document; two training documents share a sequence, whose tokens are their bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from expectations.tables import TABLES
from jobs.config import PREPARE_STAGES
from jobs.contract import StageOutput, is_held_out
from jobs.services import delta, order_file, training_data
from jobs.services.readers import read
from jobs.stages import ingest as real_ingest
from jobs.stages import summarise
from models.data_order import ShuffledOrder

TRAINING_STEPS = 2


def table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    schema = pa.schema([f for f in delta.arrow_schema(TABLES[name]) if f.name != TABLES[name].partition])
    return pa.Table.from_pylist(rows, schema=schema)


def _rows(dataset: Any) -> list[dict[str, Any]]:
    return [] if dataset is None else sorted(dataset.to_table().to_pylist(), key=lambda row: str(sorted(row.items(), key=str)))


def _ingest(config, inputs, tools):
    forgotten, documents, quarantine = inputs["forgotten"], {}, []
    for file in inputs["landing"]:
        for record in read(file.path, file.relative, text_column="text", max_bytes=1000):
            described = {"source": file.source, "relative": file.relative}
            doc_id, source, uri, licence, text, n_bytes, landed, offset, error, raw = real_ingest._row(record, described, forgotten.doc_ids, forgotten.uris)
            if error is None and doc_id in documents:
                error, raw = "repeated record", text.encode()
            if error is not None:
                quarantine.append({"file": landed, "offset": offset, "error": error, "raw": raw})
                continue
            row = {"doc_id": doc_id, "source": source, "uri": uri, "licence": licence, "text": text, "n_bytes": n_bytes, "landed_file": landed}
            documents[doc_id] = row
    return StageOutput({"documents": table("documents", list(documents.values())), "quarantine": table("quarantine", quarantine)})


def _clean(config, inputs, tools):
    rows = _rows(inputs["documents"])
    kept = [{**{k: r[k] for k in r if k != "landed_file"}, "scores": "{}"} for r in rows if "LICENCE" not in r["text"]]
    broken = [
        {"doc_id": r["doc_id"], "source": r["source"], "stage": "clean", "rule": "licence", "value": 1.0, "threshold": 0.0, "detail": r["uri"]}
        for r in rows
        if "LICENCE" in r["text"]
    ]
    return StageOutput({"clean_documents": table("clean_documents", kept), "rejections": table("rejections", broken)})


def _deduplicate(config, inputs, tools):
    kept_by = {r["text"]: (r["doc_id"], r["interval"], "exact_other_day") for r in _rows(inputs["unique_documents"])}
    unique, copies = [], []
    for row in sorted(_rows(inputs["clean_documents"]), key=lambda r: r["doc_id"]):
        if row["text"] in kept_by:
            doc_id, day, scope = kept_by[row["text"]]
            found = {"kept_doc_id": doc_id, "kept_interval": day, "jaccard": 1.0, "cluster_size": 2, "scope": scope}
            copies.append({"doc_id": row["doc_id"], **found})
        else:
            kept_by[row["text"]] = row["doc_id"], str(tools.interval), "exact"
            unique.append(row)
    prints = [{"band": -1, "hash": int(hashlib.sha256(r["text"].encode()).hexdigest()[:15], 16), "doc_id": r["doc_id"]} for r in unique]
    tables = {"unique_documents": unique, "duplicates": copies, "repeated_passages": [], "fingerprints": prints}
    return StageOutput({name: table(name, rows) for name, rows in tables.items()})


def _decontaminate(config, inputs, tools):
    rows = _rows(inputs["unique_documents"])
    held_out = [r for r in rows if is_held_out(r["doc_id"])]
    wrong = [r["text"].splitlines()[-1] for r in held_out]
    items = [
        {
            "benchmark": "next_line", "item_id": f"{r['doc_id']}:0", "doc_id": r["doc_id"], "source": r["source"],
            "item": json.dumps({"query": r["text"].splitlines()[0], "choices": sorted(wrong), "gold": 0}),
        }
        for r in held_out
    ]  # fmt: skip
    training, hits = [], []
    for row in rows:
        hit = next((i for i in (*items, *_rows(inputs["benchmark_items"])) if json.loads(i["item"])["query"] in row["text"]), None)
        if hit is not None and not is_held_out(row["doc_id"]):
            hits.append(
                {
                    "doc_id": row["doc_id"],
                    "benchmark": hit["benchmark"],
                    "item_id": hit["item_id"],
                    "ngram": "the query",
                    "action": "drop_document",
                    "rule": "ngram",
                    "removed_characters": len(row["text"]),
                }
            )
        else:
            training.append({**{k: row[k] for k in row if k != "scores"}, "split": "held_out" if is_held_out(row["doc_id"]) else "train", "piece_starts": None})
    found = {(hit["benchmark"], hit["item_id"]) for hit in hits}
    listed = [
        {
            "benchmark": benchmark, "item_id": item_id, "rule": "ngram", "acts": True, "n_ngrams": 1, "share": 1.0, "threshold": 0.0, "contaminated": True,
            "documents": 1, "action": "drop_document", "still_trains": False, "left": [],
        }
        for benchmark, item_id in sorted(found)
    ]  # fmt: skip
    tables = {"training_documents": training, "contamination": hits, "benchmark_items": items, "contaminated_items": listed}
    return StageOutput({name: table(name, rows) for name, rows in tables.items()})


def _pack(config, inputs, tools):
    sequences = []
    for split in ("train", "held_out"):
        texts = [(r["doc_id"], r["source"], r["text"].encode()[:100]) for r in _rows(inputs["training_documents"]) if r["split"] == split]
        for first in range(0, len(texts), 2):
            pair = texts[first : first + 2]
            tokens = [byte for _, _, text in pair for byte in text]
            starts = [0, len(pair[0][2])][: len(pair)]
            sequences.append({
                "sequence_id": len(sequences), "split": split, "tokens": tokens + [0] * (200 - len(tokens)), "boundaries": starts,
                "doc_ids": [p[0] for p in pair], "sources": [p[1] for p in pair], "n_tokens": len(tokens), "tokenizer_id": "bytes",
            })  # fmt: skip
    return StageOutput({"sequences": table("sequences", sequences)}, {"tokenizer_id": "bytes", "tokens": 1})


def _train(config, inputs, tools):
    data = training_data.write(inputs["sequences"], Path(tools.scratch) / "sequences")
    order = ShuffledOrder(seed=config.seed, batch_sequences=1, n_sequences=data.sequences["train"])
    order_file.write(Path(tools.artifact_dir(f"checkpoints/{tools.run_key}")), order, data, TRAINING_STEPS, {"sequences": tools.inputs_read["sequences"]})
    row = {"uri": "u", "sha256": "s" * 64, "step": TRAINING_STEPS, "tokens": 10, "loss": 2.0, "held_out_loss": 2.0, "config": "{}", "final": True}
    return StageOutput({"checkpoints": table("checkpoints", [{**row, "mlflow_run_id": None}])}, {"tokens": 10})


def _evaluate(config, inputs, tools):
    answers = [
        {
            "benchmark": i["benchmark"], "category": "own", "item_id": i["item_id"], "kind": "multiple_choice", "prompt_hash": "h", "n_prompt_tokens": 1,
            "choices": json.loads(i["item"])["choices"], "sum_logprobs": [0.0], "mean_logprobs": [0.0], "output": "", "prediction": 0, "gold": 0,
            "correct": True, "truncated": False, "weights_digest": "w", "confidence": None,
            "item": json.dumps({"prompt": json.loads(i["item"])["query"], "doc_id": i["doc_id"]}),
        }
        for i in _rows(inputs["benchmark_items"])
    ]  # fmt: skip
    score = {
        "model": "m", "benchmark": "**", "category": "*", "shots": 0, "n": len(answers), "metric": "accuracy", "accuracy": 1.0, "stderr": 0.0, "chance": 0.25,
        "best_constant": 0.25, "score": 1.0, "accuracy_clean": 1.0, "n_contaminated": 0, "mode": "fixed",
    }  # fmt: skip
    return StageOutput({"scores": table("scores", [score]), "responses": table("responses", answers)})


def _review(config, inputs, tools):
    answers = _rows(inputs["responses"])
    verdicts = [
        {"benchmark": a["benchmark"], "item_id": a["item_id"], "verdict": "proper", "evidence": "", "format": "ok", "contaminated": False, "key_suspect": False}
        for a in answers
    ]
    nearest = [
        {"doc_id": r["doc_id"], "interval": r["interval"], "source": r["source"], "uri": r["uri"], "licence": None, "cosine": 0.5}
        for r in _rows(inputs["training_documents"])
    ]
    group = {
        "failure_group": 0, "benchmark": "next_line", "category": "own", "subset": "", "verdict": "wrong", "n": len(answers), "n_items": len(answers),
        "words": ["word"], "item_ids": [a["item_id"] for a in answers], "nearest_documents": json.dumps(nearest), "sources": "[]",
        "n_sampled": 1, "n_documents": 1,
    }  # fmt: skip
    return StageOutput({"verdicts": table("verdicts", verdicts), "failures": table("failures", []), "failure_groups": table("failure_groups", [group])})


_RUN = {
    "ingest": _ingest, "clean": _clean, "deduplicate": _deduplicate, "decontaminate": _decontaminate, "pack": _pack, "summarise": summarise.run,
    "train": _train, "evaluate": _evaluate, "review": _review,
}  # fmt: skip


def module(stage: str) -> SimpleNamespace:
    """What jobs.run.stage_module returns for these stages: the real stage's declarations, computed here."""
    import importlib

    real = importlib.import_module(f"jobs.stages.{stage}")
    return SimpleNamespace(
        __name__=f"jobs.stages.{stage}", ENGINE="arrow", READS=real.READS, WRITES=real.WRITES, REVISION=real.REVISION, run=_RUN[stage], UNMOVED=()
    )


def prepare(env, recipe, days) -> None:
    from jobs import run

    for day in days:
        for stage in PREPARE_STAGES:
            run.run_stage(env, stage, recipe, interval=day)
