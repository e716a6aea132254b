"""Which rows a stage reads: exact table versions, and of those the days or the run its scope allows.

Scopes: ``interval`` this day's rows; ``other_intervals`` all other recorded days; ``all`` every recorded day, or the rows of the run
that wrote the version. Rows of other days do not enter the identity of a day's work: they change with every day that is added, and a
day that is already done must stay done (infra/decisions/0004).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from expectations.tables import TABLES
from jobs.config import WRITERS, Recipe
from jobs.contract import MoelineError, TableVersion
from jobs.environment import Environment
from jobs.services import delta, results, table_store, tombstones
from jobs.services.landing import LandedFile
from jobs.services.landing import files as landed_files


@dataclass(frozen=True)
class Inputs:
    """Resolved inputs: ``versions`` is what was read (recorded), ``identity`` the part that enters the run key."""

    versions: dict[str, str]
    identity: dict[str, str]
    interval: str | None
    configs: dict[str, str]
    landing: tuple[LandedFile, ...] = ()
    forgotten: tombstones.Forgotten | None = None

    def open(self, env: Environment, module: ModuleType, tools: Any) -> dict[str, Any]:
        """The rows themselves: Spark DataFrames or Arrow datasets by the stage's ENGINE; None for a table nobody wrote yet."""
        opened: dict[str, Any] = {"landing": list(self.landing), "forgotten": self.forgotten} if self.landing or self.forgotten else {}
        for name, scope in module.READS.items():
            text = self.versions.get(name)
            opened[name] = None
            if text is not None:
                version = TableVersion.parse(text)
                opened[name] = _open(env, version.name, self._where(env, version, scope), module.ENGINE, tools)
        return opened

    def _where(self, env: Environment, version: TableVersion, scope: str) -> dict[TableVersion, list[str]]:
        """Which values of the partition column to read, at which version."""
        if TABLES[version.name].partition == "run_key":
            return {version: [results.writer_of(env, version).run_key]}
        if scope == "interval":
            return {version: [str(self.interval)]}
        days = results.days_by_version(env, WRITERS[version.name], version.name, version, self.configs[version.name])
        if scope == "other_intervals":
            days = {v: [d for d in found if d != self.interval] for v, found in days.items()}
        return {v: found for v, found in days.items() if found}


def resolve_inputs(env: Environment, stage: str, module: ModuleType, recipe: Recipe, interval: str | None, given: Mapping[str, str]) -> Inputs:
    """Pin every input to one version: the given one, else the newest that a recorded result names.

    Raises MoelineError when an input that the stage cannot do without has not been written.
    """
    versions = {name: version for name, version in given.items() if name in module.READS}  # a task may hand on more than is read
    configs = {name: recipe.config_hash(WRITERS[name]) for name in module.READS}
    for name, scope in module.READS.items():
        if name in versions:
            continue
        writer = WRITERS[name]
        if scope == "interval":
            found = results.newest(env, writer, interval=interval, config=configs[name])
            version = found.table(name) if found else None
        elif TABLES[name].partition == "run_key":
            found = results.newest(env, writer, recipe=recipe.name)
            version = found.table(name) if found else None
        else:
            version = results.newest_version(env, writer, name, configs[name])
        if version is not None:
            versions[name] = str(version)
        elif scope != "other_intervals":
            where = f" for {interval}" if interval else ""
            raise MoelineError(f"Stage {stage} reads {name}{where}, which stage {writer} has not written yet. Run `moeline stage {writer}` first.")
    identity = {name: version for name, version in versions.items() if module.READS[name] != "other_intervals"}
    landing: tuple[LandedFile, ...] = ()
    forgotten = None
    if stage == "ingest":
        landing = landed_files(env, str(interval))
        if not landing and not _all_forgotten(env, str(interval)):
            raise MoelineError(
                f"Nothing has landed for {interval}: looked for files in {env.landing}/<source>/{interval}/. Put files there, or run `moeline sample-data`."
            )
        identity = {f"landing/{file.relative}": file.sha256 for file in landing}
        versions = {"landing": hashlib.sha256("".join(f"{f.relative}\0{f.sha256}\n" for f in landing).encode()).hexdigest()[:16]}
        forgotten = tombstones.forgotten(env)
        if without := tombstones.digest(env, interval):  # other days keep their identity
            identity["forgotten"] = versions["forgotten"] = without
    return Inputs(versions, identity, interval, configs, landing, forgotten)


def _all_forgotten(env: Environment, interval: str) -> bool:
    """Whether the day held documents and every one was forgotten: then it may be prepared without files, so that its rows go."""
    gone = set(tombstones.of_day(env, interval))
    before = results.newest(env, "ingest", interval=interval)
    if not gone or before is None:
        return False
    held = delta.dataset(env, before.table("documents"), where_in=[interval]).to_table(columns=["doc_id"])
    return gone.issuperset(held["doc_id"].to_pylist())


def parse_versions(text: str) -> dict[str, str]:
    """Exact table versions from JSON such as ``{"documents": "documents@3"}``. Raises MoelineError for anything else."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or not all(isinstance(version, str) for version in found.values()):
            raise ValueError("not a JSON object of texts")
    except (ValueError, RecursionError) as error:
        raise MoelineError(f'The inputs {text[:100]!r} cannot be read ({error}). Write them like {{"documents": "documents@3"}}.') from None
    for version in found.values():
        TableVersion.parse(version)
    return found


def _open(env: Environment, name: str, where: dict[TableVersion, list[str]], engine: str, tools: Any) -> Any:
    """The rows of a table at the given versions and partitions; None (Spark) or an empty dataset (Arrow) when there are none."""
    if engine == "spark":
        return _open_spark(env, name, where, tools)
    import pyarrow.dataset as ds

    parts = [delta.dataset(env, version, where_in=values) for version, values in where.items()]
    if not parts:
        return ds.dataset(delta.arrow_schema(TABLES[name]).empty_table())
    return parts[0] if len(parts) == 1 else ds.dataset(parts)


def _open_spark(env: Environment, name: str, where: dict[TableVersion, list[str]], tools: Any) -> Any:
    from pyspark.sql import functions as f

    from jobs.services import spark

    partition = TABLES[name].partition
    parts = [spark.read_table(tools.spark, table_store.spark_address(env, name), v.version).where(f.col(partition).isin(values)) for v, values in where.items()]
    union = None
    for part in parts:
        union = part if union is None else union.unionByName(part)
    return union
