"""Which data days must be done again because another day changed after them, the recipe did, or a document was forgotten.

A day drops a document because another day kept its like. When that other day is prepared again (other files, other code) and no longer
keeps it, the text is in no day at all: the dropping day is stale. Running its deduplication again finds that out by itself and does not
take the recorded result; ``moeline backfill --stale`` does exactly the stale days.
Change here: what makes a day stale. Not here: which copy survives (jobs/stages/deduplicate.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jobs.config import Recipe
from jobs.contract import MoelineError, StageResult, TableVersion, is_held_out
from jobs.environment import Environment
from jobs.repeats import PASSAGE_BAND
from jobs.services import delta, results, tombstones

if TYPE_CHECKING:
    import pyarrow.dataset

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
    deduplicated = Deduplicated(env, recipe.config_hash("deduplicate"))
    for day, result in deduplicated.newest.items():
        if lost := deduplicated.lost_copies(result):
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


class Deduplicated:
    """The deduplications of one config, and what they wrote; each table is opened once, however many days are looked at."""

    def __init__(self, env: Environment, config: str) -> None:
        self.env = env
        self._all = results.of_stage(env, "deduplicate")
        self.newest = {str(r.interval): r for r in self._all if r.config_hash == config}  # day -> its newest
        self._config = config
        self._versions: dict[str, dict[str, TableVersion]] = {}
        self._files: dict[TableVersion, dict[str, list[str]]] = {}

    def lost_copies(self, result: StageResult) -> dict[str, int]:
        """Day -> documents that this deduplication dropped, or took passages from, for documents the day no longer keeps or without those passages.

        Looks only into days prepared again since, so it costs nothing where there are none.
        """
        own = result.table("duplicates")
        since = {day: r for day, r in self.newest.items() if day != result.interval and r.table("duplicates") > own}
        gone: dict[str, set[str]] = {}
        for table, kept_in, key in (("duplicates", "unique_documents", ("doc_id",)), ("repeated_passages", "fingerprints", ("doc_id", "hash"))):
            if since and table in result.outputs:  # the second came later
                for day, doc_id in self._lost(result, since, table, kept_in, key):
                    gone.setdefault(day, set()).add(doc_id)
        return {day: len(doc_ids) for day, doc_ids in gone.items()}

    def _lost(self, result: StageResult, since: Mapping[str, StageResult], table: str, kept_in: str, key: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """(day, doc_id) of the rows of ``table`` that name a document of the day (or a passage of it) that ``kept_in`` no longer holds."""
        import pyarrow as pa
        import pyarrow.compute as pc

        columns = ["doc_id", "kept_interval", "kept_doc_id", *key[1:]]
        asked = pc.field("kept_interval").isin(pa.array(sorted(since)))
        named = self._rows(result, table).to_table(columns=columns, filter=asked)
        for day in pc.unique(named["kept_interval"]).to_pylist():
            wanted = named.filter(pc.equal(named["kept_interval"], day))
            only = None if len(key) == 1 else pc.field("band") == PASSAGE_BAND
            kept = self._rows(since[day], kept_in).to_table(columns=list(key), filter=only)
            left = wanted.join(kept, ["kept_doc_id", *key[1:]], list(key), join_type="left anti")
            yield from ((day, doc_id) for doc_id in pc.unique(left["doc_id"]).to_pylist())

    def _rows(self, result: StageResult, table: str) -> pyarrow.dataset.Dataset:
        """The rows that this result wrote, read at the newest version that still holds them: most days are, and one opening serves them all."""
        if table not in self._versions:
            up_to = max(r.table(table) for r in self._all if table in r.outputs)
            held = results.days_by_version(self.env, "deduplicate", table, up_to, self._config)
            self._versions[table] = {day: version for version, days in held.items() for day in days}
        day = str(result.interval)
        version = self._versions[table][day] if self.newest.get(day) == result else result.table(table)
        if version not in self._files:
            self._files[version] = delta.files_by_partition(self.env, version)
        return delta.of_files(self.env, version, self._files[version].get(day, []))


def must_be_done_again(env: Environment, stage: str, found: StageResult) -> bool:
    """Whether a recorded result no longer holds although nothing it is identified by has changed."""
    if stage == "decontaminate":
        return bool(_named_items(env, tombstones.requests(env), {str(found.interval): found}))
    return stage == "deduplicate" and bool(Deduplicated(env, found.config_hash).lost_copies(found))


def summary(env: Environment, recipe: Recipe) -> dict[str, Any]:
    """What ``moeline stale --json`` prints."""
    found = stale_days(env, recipe)
    return {"recipe": recipe.name, "stale": [{**asdict(day), "why": day.why()} for day in found]}


def render(found: dict[str, Any]) -> str:
    if not found["stale"]:
        return f"No day of recipe {found['recipe']} is stale.\n"
    lines = [f"{day['interval']}  {day['why']}" for day in found["stale"]]
    return "\n".join([*lines, f"Do them again: moeline backfill --stale --recipe {found['recipe']}"]) + "\n"
