"""Which data days must be done again because another day changed after them, the recipe did, or a document was forgotten.

A day drops a document because another day kept its like. When that other day is prepared again (other files, other code) and no longer
keeps it, the text is in no day at all: the dropping day is stale. Running its deduplication again finds that out by itself and does not
take the recorded result; ``moeline backfill --stale`` does exactly the stale days.
Change here: what makes a day stale. Not here: which copy survives (jobs/stages/deduplicate.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jobs.config import Recipe
from jobs.contract import MoelineError, StageResult, TableVersion, is_held_out
from jobs.environment import Environment
from jobs.repeats import PASSAGE_BAND
from jobs.services import delta, results, tombstones

_CHAIN = {"clean": "documents", "deduplicate": "clean_documents", "decontaminate": "unique_documents", "pack": "training_documents", "summarise": "documents"}
_DOC_ID_LENGTH = 32


@dataclass(frozen=True)
class StaleDay:
    """``lost``: how many documents it dropped or shortened for documents of which days that these no longer keep. ``other_rules``: the recipe has
    changed since, and no day of the new one stands in its place. ``forgotten``: documents it held when they were forgotten. ``items``:
    benchmark items made of forgotten documents that its decontamination names. ``unfinished``: it was being done again for them and was left."""

    interval: str
    lost: dict[str, int] = field(default_factory=dict)
    other_rules: bool = False
    forgotten: int = 0
    items: int = 0
    unfinished: bool = False

    def why(self) -> str:
        reasons = ["it was prepared with other rules"] if self.other_rules else []
        reasons += [f"{n} documents were dropped or shortened for copies that {day} no longer keeps" for day, n in sorted(self.lost.items())]
        reasons += [f"{self.forgotten} of its documents were forgotten on request"] if self.forgotten else []
        reasons += [f"its decontamination names {self.items} benchmark items of a forgotten document"] if self.items else []
        reasons += ["it was left unfinished after a document was forgotten"] if self.unfinished else []
        return "; ".join(reasons)


def stale_days(env: Environment, recipe: Recipe) -> list[StaleDay]:
    """The stale days of a recipe, in order."""
    last = "pack"  # what a training reads; what is written about a day makes no day stale
    config, prepared = recipe.config_hash(last), [r for r in results.of_stage(env, last) if r.recipe == recipe.name]
    current = {str(r.interval) for r in prepared if r.config_hash == config}
    found = {str(r.interval): StaleDay(str(r.interval), other_rules=True) for r in prepared if str(r.interval) not in current}
    for day, result in _newest(env, recipe.config_hash("deduplicate")).items():
        if lost := lost_copies(env, result):
            found[day] = StaleDay(day, lost, other_rules=day in found)
    if requests := tombstones.requests(env):
        recorded = {stage: _of_recipe(env, recipe, stage) for stage in ("ingest", *_CHAIN)}
        forgotten_of = _held(env, requests, list(recorded.values()))
        items_of = _named_items(env, requests, recorded["decontaminate"])
        unfinished = {day for stage in ("pack", "summarise") for day, r in recorded[stage].items() if _is_behind(r, recorded["decontaminate"].get(day))}
        for day in {*forgotten_of, *items_of, *unfinished}:
            counts = {"forgotten": forgotten_of.get(day, 0), "items": items_of.get(day, 0), "unfinished": day in unfinished}
            found[day] = replace(found.get(day, StaleDay(day)), **counts)
    return [found[day] for day in sorted(found)]


def _of_recipe(env: Environment, recipe: Recipe, stage: str) -> dict[str, StageResult]:
    """Day -> newest result of a stage that the recipe, as it is now or was before, has recorded or shares with another one."""
    config = recipe.config_hash(stage)
    return {str(r.interval): r for r in results.of_stage(env, stage) if r.interval and (r.recipe == recipe.name or r.config_hash == config)}


def _held(env: Environment, requests: Sequence[tombstones.Request], recorded: Sequence[Mapping[str, StageResult]]) -> dict[str, int]:
    """Day -> forgotten documents it held, where the newest result of any stage was made before they were forgotten."""
    asked = sorted({day for request in requests for day in request.days})
    days = [day for day in asked if not all(is_without_forgotten(env, stage[day]) for stage in recorded if day in stage)]
    return {day: len(tombstones.of_day(env, day)) for day in days}


def _is_behind(reader: StageResult, decontaminated: StageResult | None) -> bool:
    """Whether a stage read an older decontamination of its day than the newest one."""
    return decontaminated is not None and reader.inputs["training_documents"] != decontaminated.outputs["training_documents"]


def _named_items(env: Environment, requests: Sequence[tombstones.Request], newest: Mapping[str, StageResult]) -> dict[str, int]:
    doc_ids = frozenset(doc_id for request in requests for doc_id in request.places if is_held_out(doc_id))
    return {day: n for day, result in newest.items() if doc_ids and (n := named_items(env, result, doc_ids))}


def is_without_forgotten(env: Environment, result: StageResult) -> bool:
    """Whether a day's rows come from an ingest that let nothing through of what the day is asked to forget."""
    try:
        while result.stage != "ingest":
            result = results.writer_of(env, TableVersion.parse(result.inputs[_CHAIN[result.stage]]))
    except (MoelineError, KeyError):  # its origin is not recorded here
        return False
    return result.inputs.get("forgotten", "") == tombstones.digest(env, result.interval)


def named_items(env: Environment, result: StageResult, forgotten: frozenset[str]) -> int:
    """Own-data items of forgotten documents that this decontamination found in its day (an item's id begins with its document's)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    tables = [result.table(name) for name in ("contamination", "contaminated_items") if name in result.outputs]  # the second came later
    ids = [delta.dataset(env, table, where_in=[str(result.interval)]).to_table(columns=["item_id"])["item_id"] for table in tables]
    found = pc.unique(pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string()))
    return int(pc.sum(pc.is_in(pc.utf8_slice_codeunits(found, 0, _DOC_ID_LENGTH), pa.array(sorted(forgotten), pa.string()))).as_py() or 0)


def lost_copies(env: Environment, result: StageResult) -> dict[str, int]:
    """Day -> documents that this deduplication dropped, or took passages from, for documents the day no longer keeps or without those passages.

    Looks only into days prepared again since, so it costs nothing where there are none.
    """
    own = result.table("duplicates")
    since = {day: r for day, r in _newest(env, result.config_hash).items() if day != result.interval and r.table("duplicates") > own}
    gone: dict[str, set[str]] = {}
    for table, kept_in, key in (("duplicates", "unique_documents", ("doc_id",)), ("repeated_passages", "fingerprints", ("doc_id", "hash"))):
        if since and table in result.outputs:  # the second came later
            for day, doc_id in _lost(env, result, since, table, kept_in, key):
                gone.setdefault(day, set()).add(doc_id)
    return {day: len(doc_ids) for day, doc_ids in gone.items()}


def _lost(env: Environment, result: StageResult, since: Mapping[str, StageResult], table: str, kept_in: str, key: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(day, doc_id) of the rows of ``table`` that name a document of the day (or a passage of it) that ``kept_in`` no longer holds."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = ["doc_id", "kept_interval", "kept_doc_id", *key[1:]]
    asked = pc.field("kept_interval").isin(pa.array(sorted(since)))
    named = delta.dataset(env, result.table(table), where_in=[str(result.interval)]).to_table(columns=columns, filter=asked)
    for day in pc.unique(named["kept_interval"]).to_pylist():
        wanted = named.filter(pc.equal(named["kept_interval"], day))
        held = delta.dataset(env, since[day].table(kept_in), where_in=[day])
        only = None if len(key) == 1 else pc.field("band") == PASSAGE_BAND
        kept = held.to_table(columns=list(key), filter=only)
        left = wanted.join(kept, ["kept_doc_id", *key[1:]], list(key), join_type="left anti")
        yield from ((day, doc_id) for doc_id in pc.unique(left["doc_id"]).to_pylist())


def must_be_done_again(env: Environment, stage: str, found: StageResult) -> bool:
    """Whether a recorded result no longer holds although nothing it is identified by has changed."""
    if stage == "decontaminate":
        return bool(_named_items(env, tombstones.requests(env), {str(found.interval): found}))
    return stage == "deduplicate" and bool(lost_copies(env, found))


def _newest(env: Environment, config: str) -> dict[str, StageResult]:
    """Day -> its newest deduplication with this config."""
    return {str(r.interval): r for r in results.of_stage(env, "deduplicate") if r.config_hash == config}


def summary(env: Environment, recipe: Recipe) -> dict[str, Any]:
    """What ``moeline stale --json`` prints."""
    found = stale_days(env, recipe)
    return {"recipe": recipe.name, "stale": [{**asdict(day), "why": day.why()} for day in found]}


def render(found: dict[str, Any]) -> str:
    if not found["stale"]:
        return f"No day of recipe {found['recipe']} is stale.\n"
    lines = [f"{day['interval']}  {day['why']}" for day in found["stale"]]
    return "\n".join([*lines, f"Do them again: moeline backfill --stale --recipe {found['recipe']}"]) + "\n"
