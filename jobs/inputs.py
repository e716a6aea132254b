"""Which rows a stage reads: exact table versions, and of those the days or the run its scope allows.

Scopes: ``interval`` this day's rows; ``other_intervals`` all other recorded days; ``all`` every recorded day, or the rows of the run
that wrote the version. Rows of other days do not enter the identity of a day's work: they change with every day that is added, and a
day that is already done must stay done (infra/decisions/0004).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from expectations.tables import TABLES
from jobs.config import WRITERS
from jobs.contract import MoelineError, TableVersion
from jobs.environment import Environment
from jobs.services import delta, results


@dataclass(frozen=True)
class LandedFile:
    """One file of the landing zone. ``relative`` is its path under it, ``source`` its first folder."""

    path: str
    source: str
    relative: str
    interval: str
    sha256: str


@dataclass(frozen=True)
class Inputs:
    """Resolved inputs: ``versions`` is what was read (recorded), ``identity`` the part that enters the run key."""

    versions: dict[str, str]
    identity: dict[str, str]
    interval: str | None
    landing: tuple[LandedFile, ...] = ()

    def open(self, env: Environment, module: ModuleType, tools: Any) -> dict[str, Any]:
        """The rows themselves: Spark DataFrames or Arrow datasets by the stage's ENGINE; None for a table nobody wrote yet."""
        opened: dict[str, Any] = {"landing": list(self.landing)} if self.landing else {}
        for name, scope in module.READS.items():
            text = self.versions.get(name)
            opened[name] = None if text is None else _open(env, TableVersion.parse(text), scope, self.interval, module.ENGINE, tools)
        return opened


def resolve_inputs(env: Environment, stage: str, module: ModuleType, recipe: str, interval: str | None, given: Mapping[str, str]) -> Inputs:
    """Pin every input to one version: the given one, else the newest that a recorded result names.

    Raises MoelineError when an input that the stage cannot do without has not been written.
    """
    unknown = set(given) - set(module.READS)
    versions = {name: version for name, version in given.items() if name not in unknown}  # a task may hand on more than is read
    for name, scope in module.READS.items():
        if name in versions:
            continue
        writer = WRITERS[name]
        if scope == "interval":
            found = results.newest(env, writer, interval=interval)
            version = found.table(name) if found else None
        elif TABLES[name].partition == "run_key":
            found = results.newest(env, writer, recipe=recipe)
            version = found.table(name) if found else None
        else:
            version = results.newest_version(env, writer, name)
        if version is not None:
            versions[name] = str(version)
        elif scope != "other_intervals":
            where = f" for {interval}" if interval else ""
            raise MoelineError(f"Stage {stage} reads {name}{where}, which stage {writer} has not written yet. Run `moeline stage {writer}` first.")
    identity = {name: version for name, version in versions.items() if module.READS[name] != "other_intervals"}
    landing: tuple[LandedFile, ...] = ()
    if stage == "ingest":
        landing = landed_files(env, str(interval))
        if not landing:
            raise MoelineError(
                f"Nothing has landed for {interval}: looked for files in {env.landing}/<source>/{interval}/. Put files there, or run `moeline sample-data`."
            )
        identity = {f"landing/{file.relative}": file.sha256 for file in landing}
        versions = {"landing": hashlib.sha256("".join(f"{f.relative}\0{f.sha256}\n" for f in landing).encode()).hexdigest()[:16]}
    return Inputs(versions, identity, interval, landing)


def landed_files(env: Environment, interval: str) -> tuple[LandedFile, ...]:
    """Files that landed for a day, in a fixed order, with the hash of their content (their identity)."""
    found = []
    for folder in sorted(env.landing.glob(f"*/{interval}")):
        for path in sorted(folder.rglob("*")):
            # A name that starts with a dot is still being written. A link could point anywhere.
            if path.name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            with open(path, "rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            found.append(LandedFile(str(path), folder.parent.name, str(path.relative_to(env.landing)), interval, digest))
    return tuple(found)


def _open(env: Environment, version: TableVersion, scope: str, interval: str | None, engine: str, tools: Any) -> Any:
    table = TABLES[version.name]
    if table.partition == "run_key":
        wanted = [results.writer_of(env, version).run_key]
    elif scope == "interval":
        wanted = [str(interval)]
    else:  # days whose result is recorded: a half-published day stays invisible
        days = results.intervals(env, WRITERS[version.name], version.name, version)
        wanted = [d for d in days if scope == "all" or d != interval]
    if engine == "spark":
        from pyspark.sql import functions as f

        from jobs.services import spark

        frame = spark.read_table(tools.spark, delta.uri(env, version.name), version.version)
        return frame.where(f.col(table.partition).isin(wanted)) if wanted else None
    return delta.dataset(env, version, where_in=wanted)
