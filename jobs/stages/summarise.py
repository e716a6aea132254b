"""Summarise: what became of every document of a day, source by source, counted into ``statistics``.

Change here: what is counted. Not here: columns and the rule that the counts add up (expectations/tables.py), how it is shown
(jobs/statistics.py).

Every landed document has one end: rejected, a duplicate, contaminated, held out or kept. Ends are read from the tables that the other
stages wrote, joined to ``documents`` by doc_id, so a document without an end, with two, or with an end but never landed makes the
counts differ, and the check refuses the day. Bytes are those of the document as it landed, so bytes add up as documents do. Texts are not
read: a day costs seconds, and memory for its ids (infra/decisions/0013).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from expectations.tables import FUNNEL, STATISTICS
from jobs.config import SummariseConfig
from jobs.contract import StageOutput, Tools
from jobs.services.delta import arrow_schema
from jobs.stages import rules

if TYPE_CHECKING:
    import pyarrow as pa

ENGINE = "arrow"
READS = dict.fromkeys(
    ("documents", "quarantine", "rejections", "duplicates", "unique_documents", "contamination", "training_documents", "sequences"), "interval"
)
WRITES = ("statistics",)
REVISION = 1

OTHER = "other"  # bucket of all that is rarer than the _MOST_BUCKETS most frequent of a source
_MOST_BUCKETS = 50
_LICENCE_CHARACTERS = 120  # a landing file may give anything as its licence
_SUMS = ("bytes", "text_bytes", "tokens")
_COMPARED = ("landed", "rejected", "held_out", "kept")  # what other tables count as well, by source
Row = dict[str, Any]


def run(config: SummariseConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Rows of ``statistics`` of one day; metrics count the day's documents by their end."""
    import pyarrow.compute as pc

    rejections = inputs["rejections"].to_table(columns=["doc_id", "source", "rule"])
    dropped = inputs["contamination"].to_table(columns=["doc_id", "benchmark"], filter=pc.field("action") == "drop_document")
    packed = _packed(inputs["sequences"])
    tools.progress(1, 3, "what became of every document")
    documents = _documents(inputs, _ends(rejections, dropped, inputs, config), packed)
    tools.progress(2, 3, "counting")
    kept = documents.filter(pc.equal(documents["end"], "kept"))
    landed = documents.filter(pc.is_valid(documents["bytes"]))
    of = documents.select(["doc_id", "bytes", "text_bytes", "tokens"])
    rows = [
        *_funnel(documents, landed, _counted_again(documents, rejections, packed)), *_quarantined(inputs["quarantine"]),
        *_counted(_ended(documents, "rejected"), "rejected_by_first_rule", "because"), *_counted(rejections.join(of, "doc_id"), "rejected_by_rule", "rule"),
        *_counted(_ended(documents, "duplicate"), "duplicate_by_scope", "because"),
        *_counted(dropped.group_by(["doc_id", "benchmark"]).aggregate([]).join(documents, "doc_id"), "contaminated_by_benchmark", "benchmark"),
        *_counted(kept.join(_languages(inputs["unique_documents"]), "doc_id"), "kept_by_language", "language"),
        *_counted(landed, "landed_by_licence", "licence"), *_counted(kept, "kept_by_licence", "licence"),
        *_lengths(landed, "landed_by_bytes", "bytes"), *_lengths(kept, "kept_by_bytes", "text_bytes"), *_lengths(kept, "kept_by_tokens", "tokens"),
    ]  # fmt: skip
    lost = {r["source"]: {"landed": r["documents"], "accounted for": r["counted_again"]} for r in rows if r["what"] == "landed" and not _agrees(r)}
    total = {what: sum(r["documents"] for r in rows if r["what"] == what) for what in FUNNEL}
    tools.progress(3, 3, f"{total['landed']} documents" + (f", not accounted for: {lost}" if lost else ", every one accounted for"))
    metrics = {**total, "training_tokens": sum(r["tokens"] or 0 for r in rows if r["what"] == "kept"), "sources": len({r["source"] for r in rows})}
    return StageOutput({"statistics": _table(rows)}, metrics, {("statistics", "EveryDocumentHasOneEnd"): lost} if lost else {})


def _agrees(row: Row) -> bool:
    return row["counted_again"] in (None, row["documents"])


def _ends(rejections: pa.Table, dropped: pa.Table, inputs: Mapping[str, Any], config: SummariseConfig) -> pa.Table:
    """(doc_id, end, because, text_bytes) of every document that some stage after ingest says something about."""
    import pyarrow as pa

    duplicates = inputs["duplicates"].to_table(columns=["doc_id", "scope"])
    training = inputs["training_documents"].to_table(columns=["doc_id", "split", "n_bytes"])
    split = training["split"].to_numpy(zero_copy_only=False)
    parts = [
        _end(*_first_rules(rejections, config), "rejected"), _end(duplicates["doc_id"], duplicates["scope"], "duplicate"),
        _end(dropped.group_by("doc_id").aggregate([])["doc_id"], None, "contaminated"),
        _end(training["doc_id"], None, pa.array(np.where(split == "train", "kept", split), pa.string()), training["n_bytes"]),
    ]  # fmt: skip
    return pa.concat_tables(parts)


def _end(doc_ids: Any, because: Any, end: Any, text_bytes: Any = None) -> pa.Table:
    import pyarrow as pa

    n = len(doc_ids)
    return pa.table({
        "doc_id": doc_ids, "end": pa.array([end] * n, pa.string()) if isinstance(end, str) else end,
        "because": pa.nulls(n, pa.string()) if because is None else because, "text_bytes": pa.nulls(n, pa.int64()) if text_bytes is None else text_bytes,
    })  # fmt: skip


def _first_rules(rejections: pa.Table, config: SummariseConfig) -> tuple[pa.ChunkedArray, pa.Array]:
    """(doc_ids, the first rule each broke): the licence, then the rules in the order in which the recipe names them for the source."""
    import pyarrow as pa

    sources, names = (rejections[c].combine_chunks().dictionary_encode() for c in ("source", "rule"))
    known, chosen = names.dictionary.to_pylist(), dict(config.rules)
    places = np.empty((len(sources.dictionary), len(known)), np.int64)
    for row, source in enumerate(sources.dictionary.to_pylist()):
        # Rules that no set holds come before all sets: the licence, an empty text.
        order = {rule.name: place for place, rule in enumerate(rules.select(chosen.get(source, chosen.get("*", ()))))}
        places[row, sorted(range(len(known)), key=lambda i: (order.get(known[i], -1), known[i]))] = range(len(known))
    first = pa.table({"doc_id": rejections["doc_id"], "place": places[sources.indices.to_numpy(), names.indices.to_numpy()]})
    first = first.append_column("pair", sources.indices).group_by("doc_id").aggregate([("place", "min"), ("pair", "min")])
    at = np.argsort(places, axis=1)[first["pair_min"].to_numpy(), first["place_min"].to_numpy()] if len(first) else np.empty(0, np.int64)
    return first["doc_id"], names.dictionary.take(pa.array(at, pa.int64()))


def _packed(sequences: Any) -> pa.Table:
    """(doc_id, source, split, tokens) of every document in the sequences."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = [pa.table({**{name: pa.array([], pa.string()) for name in ("doc_id", "source", "split")}, "tokens": pa.array([], pa.int64())})]
    for batch in sequences.to_batches(columns=["split", "boundaries", "doc_ids", "sources", "n_tokens"]):
        starts, of = pc.list_flatten(batch["boundaries"]).to_numpy(), pc.list_parent_indices(batch["boundaries"]).to_numpy()
        ends = np.append(starts[1:], 0)
        last = np.append(of[1:] != of[:-1], True)[: len(of)]
        ends = np.where(last, batch["n_tokens"].to_numpy()[of], ends[: len(of)])
        pieces = {"doc_id": pc.list_flatten(batch["doc_ids"]), "source": pc.list_flatten(batch["sources"]), "split": batch["split"].take(pa.array(of))}
        parts.append(_sum(pa.table({**pieces, "tokens": pa.array(ends.astype(np.int64) - starts)})))
    return _sum(pa.concat_tables(parts))


def _sum(pieces: pa.Table) -> pa.Table:
    found = pieces.group_by(["doc_id", "source", "split"]).aggregate([("tokens", "sum")])
    return found.rename_columns({"tokens_sum": "tokens"})


def _documents(inputs: Mapping[str, Any], ends: pa.Table, packed: pa.Table) -> pa.Table:
    """One row per document and end: doc_id, source, licence, bytes, end, because, text_bytes, tokens. ``bytes`` null: it never landed."""
    import pyarrow as pa
    import pyarrow.compute as pc

    landed = inputs["documents"].to_table(columns=["doc_id", "source", "licence", "n_bytes"]).rename_columns({"n_bytes": "bytes"})
    found = landed.join(ends, "doc_id", join_type="full outer")
    found = found.join(packed.group_by("doc_id").aggregate([("tokens", "sum")]).rename_columns({"tokens_sum": "tokens"}), "doc_id")
    cut = pc.utf8_slice_codeunits(found["licence"], 0, _LICENCE_CHARACTERS)
    found = found.set_column(found.schema.get_field_index("licence"), "licence", cut)
    return found.set_column(found.schema.get_field_index("source"), "source", pc.fill_null(found["source"], pa.scalar("")))


def _languages(unique: Any) -> pa.Table:
    """(doc_id, language) of the documents whose language a rule set measured."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = [pa.table({"doc_id": pa.array([], pa.string()), "language": pa.array([], pa.string())})]
    for batch in unique.to_batches(columns=["doc_id", "scores"]):
        code = pc.struct_field(pc.extract_regex(batch["scores"], r'"language": ?"(?P<code>[^"\\]*)"'), "code")
        measured = pc.is_valid(code)
        parts.append(pa.table({"doc_id": batch["doc_id"].filter(measured), "language": code.filter(measured)}))
    return pa.concat_tables(parts)


def _ended(documents: pa.Table, end: str) -> pa.Table:
    import pyarrow.compute as pc

    return documents.filter(pc.equal(documents["end"], end))


def _counted_again(documents: pa.Table, rejections: pa.Table, packed: pa.Table) -> dict[tuple[str, str], int]:
    """(source, what) -> documents, by what the other tables say themselves."""
    ended = documents.group_by(["source", "end"]).aggregate([("doc_id", "count")]).to_pylist()
    again: dict[tuple[str, str], int] = {}
    for row in ended:
        key = (row["source"], "landed")
        again[key] = again.get(key, 0) + (row["doc_id_count"] if row["end"] else 0)
    for row in rejections.group_by("source").aggregate([("doc_id", "count_distinct")]).to_pylist():
        again[row["source"], "rejected"] = row["doc_id_count_distinct"]
    for row in packed.group_by(["source", "split"]).aggregate([("doc_id", "count_distinct")]).to_pylist():
        again[row["source"], "kept" if row["split"] == "train" else row["split"]] = row["doc_id_count_distinct"]
    return again


def _funnel(documents: pa.Table, landed: pa.Table, again: Mapping[tuple[str, str], int]) -> list[Row]:
    """A row for every source and end, also where no document met it; what is in ``again`` alone gets a row, and breaks the check."""
    import pyarrow.compute as pc

    once = landed.group_by(["source", "doc_id"]).aggregate([("bytes", "max")]).rename_columns({"bytes_max": "bytes"})
    found = {(r["source"], "landed"): r for r in _grouped(once, ["source"])}
    found |= {(r["source"], r["end"]): r for r in _grouped(documents.filter(pc.is_valid(documents["end"])), ["source", "end"])}
    nothing = {"documents": 0, "bytes": 0, "text_bytes": None, "tokens": None}
    rows = []
    for source in sorted({source for source, _ in (*found, *again)}):
        for what in FUNNEL:
            compared = again.get((source, what), 0) if what in _COMPARED else None
            rows.append({**found.get((source, what), nothing), "source": source, "what": what, "bucket": "", "counted_again": compared})
    return rows


def _quarantined(quarantine: Any) -> list[Row]:
    """Records that could not be read, by the landing folder of their file."""
    import pyarrow as pa
    import pyarrow.compute as pc

    file = quarantine.to_table(columns=["file"])["file"]
    folders = pc.struct_field(pc.extract_regex(file, r"^(?P<folder>[^/]*)"), "folder")
    counts = pa.table({"source": folders}).group_by("source").aggregate([([], "count_all")]).to_pylist()
    return [{"source": row["source"], "what": "quarantined", "bucket": "", "documents": row["count_all"]} for row in counts]


def _counted(documents: pa.Table, what: str, by: str) -> list[Row]:
    """A row for each value of ``by`` in every source; beyond the _MOST_BUCKETS most frequent of a source all in one."""
    rows: list[Row] = []
    place: dict[str, int] = {}
    for row in sorted(_grouped(documents, ["source", by]), key=lambda r: (r["source"], -r["documents"], r[by] or "")):
        place[row["source"]] = place.get(row["source"], 0) + 1
        bucket = row.pop(by) or ""
        if place[row["source"]] <= _MOST_BUCKETS and bucket != OTHER:
            rows.append({**row, "what": what, "bucket": bucket})
            continue
        rest = next((r for r in rows if r["source"] == row["source"] and r["bucket"] == OTHER), None)
        if rest is None:
            rows.append({**row, "what": what, "bucket": OTHER})
        else:
            rest.update({name: _plus(rest[name], row[name]) for name in ("documents", *_SUMS)})
    return rows


def _plus(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else a + b


def _lengths(documents: pa.Table, what: str, measure: str) -> list[Row]:
    """A histogram over powers of two: the bucket 1024 holds lengths of 1024 to 2047."""
    import pyarrow as pa
    import pyarrow.compute as pc

    measured = documents.filter(pc.greater(documents[measure], 0))
    # frexp is exact where log2 is not: just below a power of two.
    exponents = np.frexp(measured[measure].to_numpy().astype(np.float64))[1] - 1
    rows = _grouped(measured.append_column("exponent", pa.array(exponents, pa.int32())), ["source", "exponent"])
    return [{**row, "what": what, "bucket": str(1 << row["exponent"])} for row in sorted(rows, key=lambda r: (r["source"], r["exponent"]))]


def _grouped(documents: pa.Table, by: list[str]) -> list[Row]:
    """Documents and sums by some columns; a sum over nothing known is None."""
    sums = [name for name in _SUMS if name in documents.column_names]
    found = documents.group_by(by).aggregate([("doc_id", "count"), *((name, "sum") for name in sums)]).to_pylist()
    return [{**{name: row[name] for name in by}, "documents": row["doc_id_count"], **{name: row.get(f"{name}_sum") for name in _SUMS}} for row in found]


def _table(rows: Iterable[Row]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist([dict(row) for row in rows], pa.schema([f for f in arrow_schema(STATISTICS) if f.name != STATISTICS.partition]))
