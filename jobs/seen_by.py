"""Which trainings read a document, at which steps, and which registered models came of them; and which other documents are copies of it.

Change here: what is told of trainings and copies before a document is forgotten. Not here: forgetting (jobs/forget.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError, TableVersion
from jobs.environment import Environment
from jobs.explain import pieces_of
from jobs.services import delta, order_file, results

FIRST_STEPS = 20  # of the steps that read it, named one by one


def trainings(env: Environment, places: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Every training (and forecast, whose proxies train) that read one of the documents. ``places``: doc_id -> its data days.

    Where the training's order was written down, only a training that drew one of its sequences is named, with the ``steps`` that did;
    without it ``steps`` is None: the document was in its training set. What was purged before cannot be found again.
    """
    found, packed, models = [], _Packed(env), _registered(env)
    for run_key, stage, recipe, sequences in _runs(env):
        held: dict[str, set[int]] = {}
        tokens, doc_ids = 0, set()
        for doc_id, days in places.items():
            for day in days:
                pieces = packed.pieces(sequences, day, doc_id)
                if pieces:
                    doc_ids.add(doc_id)
                    tokens += sum(piece["tokens"] for piece in pieces)
                    held.setdefault(day, set()).update(piece["sequence_id"] for piece in pieces)
        if not held:
            continue
        steps = _steps(env.artifacts / "checkpoints" / run_key / order_file.NAME, held)
        if steps is None or steps:
            found.append({
                "run_key": run_key, "stage": stage, "recipe": recipe, "sequences": sequences, "doc_ids": sorted(doc_ids), "tokens": tokens,
                "read_at_steps": None if steps is None else len(steps), "first_steps": steps and steps[:FIRST_STEPS],
                "finished": results.find(env, stage, run_key) is not None, "models": models.get(run_key, []),
            })  # fmt: skip
    return sorted(found, key=lambda run: (run["stage"], run["run_key"]))


class _Packed:
    """The pieces of documents in the training sequences that a training read; each version of a day is read once per document."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._versions: dict[str, dict[str, TableVersion]] = {}
        self._known: dict[tuple[TableVersion, str, str], list[dict[str, Any]]] = {}

    def pieces(self, sequences: str, day: str, doc_id: str) -> list[dict[str, Any]]:
        version = self.days(sequences).get(day)
        if version is None:
            return []
        key = version, day, doc_id
        if key not in self._known:
            try:
                self._known[key] = [piece for piece in pieces_of(self.env, version, day, doc_id) if piece["split"] == "train"]
            except MoelineError:  # removed by an earlier request
                self._known[key] = []
        return self._known[key]

    def days(self, sequences: str) -> dict[str, TableVersion]:
        if sequences not in self._versions:
            self._versions[sequences] = days_read(self.env, sequences)
        return self._versions[sequences]


def days_read(env: Environment, sequences: str) -> dict[str, TableVersion]:
    """Data day -> version at which a run that was given ``sequences`` (name@version) reads the day."""
    up_to = TableVersion.parse(sequences)
    try:
        config = results.writer_of(env, up_to).config_hash
    except MoelineError:
        return {}
    return {day: version for version, days in results.days_by_version(env, "pack", "sequences", up_to, config).items() for day in days}


def _runs(env: Environment) -> Iterator[tuple[str, str, str, str]]:
    """(run key, stage, recipe, sequences@version) of every training that finished, every forecast, and every training that only began."""
    known = set()
    for stage in ("train", "forecast"):
        for result in results.of_stage(env, stage):
            if "sequences" in result.inputs:
                known.add(result.run_key)
                yield result.run_key, stage, result.recipe, result.inputs["sequences"]
    for file in sorted((env.artifacts / "checkpoints").glob(f"*/{order_file.NAME}")):
        if file.parent.name not in known and (sequences := order_file.read_about(file).get("sequences")):
            yield file.parent.name, "train", "", sequences


def _steps(file: Path, held: Mapping[str, set[int]]) -> list[int] | None:
    """Steps (from 0) that read one of the sequences, or None where no order was written."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    if not file.is_file():
        return None
    rows = ds.dataset(file, format="parquet")
    steps: set[int] = set()
    for day, ids in held.items():
        wanted = (pc.field("interval").cast("string") == day) & pc.field("sequence_id").isin(sorted(ids))
        steps.update(rows.to_table(columns=["step"], filter=wanted)["step"].to_pylist())
    return sorted(steps)


def _registered(env: Environment) -> dict[str, list[str]]:
    """Run key of a training -> the model versions that were registered from it."""
    found: dict[str, list[str]] = {}
    for row in delta.rows(env, "registrations"):
        train = json.loads(row["lineage"]).get("stages", {}).get("train", {}).get("run_key")
        if train:
            found.setdefault(train, []).append(f"{row['model_name']} v{row['model_version']}")
    return {key: sorted(set(models)) for key, models in found.items()}


def tokenizers(env: Environment, days: Sequence[str]) -> list[str]:
    """Tokenizers that were trained on the text of one of the days: on the first day that was packed with them."""
    first: dict[str, str] = {}
    for result in results.of_stage(env, "pack"):
        first.setdefault(str(result.metrics.get("tokenizer_id", "")), str(result.interval))
    return sorted(name for name, day in first.items() if name and day in days)


def copies(env: Environment, doc_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Other documents that are copies, exact or near, of one of ``doc_ids``: by deduplication of any recorded day, and every landed document
    with exactly its text. Each is another document, with its own source and uri, and is not forgotten with it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(doc_ids), pa.string())
    texts: dict[str, str] = {}
    for _, rows in landed(env, ["doc_id", "text"], pc.field("doc_id").isin(wanted)):
        texts.update(zip(rows["doc_id"].to_pylist(), rows["text"].to_pylist(), strict=True))
    found: dict[str, dict[str, Any]] = {}

    def add(doc_id: str, day: str, relation: str, of: str) -> None:
        if doc_id not in doc_ids:
            found.setdefault(doc_id, {"doc_id": doc_id, "interval": day, "relation": relation, "of": of})

    same_text = pa.array(sorted(set(texts.values())), pa.string())
    for day, rows in landed(env, ["doc_id", "text"], pc.field("text").isin(same_text)):
        of = {text: doc_id for doc_id, text in texts.items()}
        for doc_id, text in zip(rows["doc_id"].to_pylist(), rows["text"].to_pylist(), strict=True):
            add(doc_id, day, "same text", of[text])
    kept: dict[str, str] = {doc_id: doc_id for doc_id in doc_ids}
    for row in _dropped(env, pc.field("doc_id").isin(wanted)):
        add(row["kept_doc_id"], row["kept_interval"], f"kept in its place ({row['scope']}, Jaccard {row['jaccard']:.3f})", row["doc_id"])
        kept.setdefault(row["kept_doc_id"], row["doc_id"])
    for row in _dropped(env, pc.field("kept_doc_id").isin(pa.array(sorted(kept), pa.string()))):
        way = "dropped for it" if row["kept_doc_id"] in doc_ids else f"dropped for {row['kept_doc_id']} as well"
        add(row["doc_id"], row["interval"], f"{way} ({row['scope']}, Jaccard {row['jaccard']:.3f})", kept[row["kept_doc_id"]])
    return [found[doc_id] for doc_id in sorted(found)]


def landed(env: Environment, columns: Sequence[str], where: Any) -> Iterator[tuple[str, Any]]:
    """(data day, matching rows of ``documents``) at every version that a recorded ingest wrote of the day, as far as they are still there."""
    for result in results.of_stage(env, "ingest"):
        try:
            rows = delta.dataset(env, result.table("documents"), where_in=[str(result.interval)]).to_table(columns=list(columns), filter=where)
        except MoelineError:  # removed by an earlier request
            continue
        if rows.num_rows:
            yield str(result.interval), rows


def _dropped(env: Environment, where: Any) -> Iterator[dict[str, Any]]:
    import pyarrow.compute as pc

    columns = ["doc_id", "interval", "kept_doc_id", "kept_interval", "jaccard", "scope"]
    where &= pc.field("scope") != "repeated_passages"  # that one shares passages, perhaps few, and is no copy
    for result in results.of_stage(env, "deduplicate"):
        try:
            yield from delta.dataset(env, result.table("duplicates"), where_in=[str(result.interval)]).to_table(columns=columns, filter=where).to_pylist()
        except MoelineError:
            continue
