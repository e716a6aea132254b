"""The nouns every part of moeline shares: table versions, stage results, run keys, intervals.

Standard library only, so that any process (an Airflow task, a Spark worker, a test) can import it for free.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

_TABLE_VERSION = re.compile(r"^([a-z][a-z0-9_]*)@(\d+)$")
# Metadata of a config field that came later: at its default it is no part of the identity, so work done before the field existed stays done.
ADDED = {"added": True}
HELD_OUT_PER_MILLE = 10  # 1 % of documents never train: they give the held-out loss and the own-data benchmark


class MoelineError(Exception):
    """A problem a person can act on: what was asked, what was found, what to do. Shown without a traceback."""


class CheckFailed(MoelineError):
    """A data-quality gate refused the rows of a stage; nothing was published."""


class BudgetExceeded(MoelineError):
    """The forecast (or the money already spent) is above what the recipe may cost."""


class CommitConflict(MoelineError):
    """A table moved between being read and being written; the attempt must be run again."""


@dataclass(frozen=True, order=True)
class TableVersion:
    """One immutable version of one Delta table, written ``name@7``."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> TableVersion:
        """Read ``name@7``; raises MoelineError on anything else."""
        match = _TABLE_VERSION.match(text)
        if match is None:
            raise MoelineError(f"Not a table version: {text!r}. Write it as name@number, for example documents@7.")
        return cls(match[1], int(match[2]))


@dataclass(frozen=True)
class StageResult:
    """What a finished stage hands on (and all that XCom carries): small JSON, no rows.

    ``inputs``/``outputs`` map table names to ``name@version``. ``metrics`` are small JSON values. ``reused`` is True when
    the same run key had been recorded before and nothing was computed or spent.
    """

    stage: str
    run_key: str
    recipe: str
    interval: str | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    metrics: Mapping[str, Any]
    cost_usd: float
    wall_seconds: float
    config_hash: str = ""
    code_revision: str = ""
    finished_at: str = ""
    reused: bool = False

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> StageResult:
        return cls(**json.loads(text))

    def table(self, name: str) -> TableVersion:
        """The version of output table ``name``; raises MoelineError when this stage did not write it."""
        if name not in self.outputs:
            raise MoelineError(f"Stage {self.stage} wrote {sorted(self.outputs)}, not {name!r}.")
        return TableVersion.parse(self.outputs[name])


@dataclass
class StageOutput:
    """What a stage's ``run`` returns: rows per table (Spark DataFrame or pyarrow.Table) and small JSON metrics.

    ``noticed``: by (table, name of a check) what the stage saw that no rule on the rows can see; stored as a failed check of severity warning.
    ``refused``: the same of severity error: nothing is published.
    """

    tables: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    noticed: dict[tuple[str, str], Any] = field(default_factory=dict)
    refused: dict[tuple[str, str], Any] = field(default_factory=dict)


class Tools(Protocol):
    """What a stage may use besides its config and inputs. It never learns paths of tables, prices or Airflow.

    ``interval`` is the data day (ISO date) or None. ``recipe`` is the recipe's name (for labels only).
    ``scratch`` is a private directory removed afterwards.
    """

    interval: str | None
    recipe: str
    run_key: str
    scratch: str

    @property
    def spark(self) -> Any:
        """The Spark (Connect) session; only for stages with ENGINE = "spark"."""

    def materialise(self, frame: Any) -> Any:
        """Compute a Spark DataFrame once (into scratch) and return it, so that several outputs do not recompute it."""

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Tell a person how far the stage is; shown with elapsed time and ETA."""

    def artifact_dir(self, name: str) -> str:
        """A durable directory for files of this kind, e.g. ``checkpoints/<run_key>``; created if missing."""

    def put_once(self, name: str, make: Any) -> bytes:
        """Bytes of a durable artifact, made by ``make()`` exactly once per name however many processes ask at once."""

    def cost_so_far(self) -> float:
        """Dollars this attempt has cost until now, by the environment's price sheet."""

    def price(self, *, core_seconds: float = 0.0, gib_seconds: float = 0.0, gpu_seconds: float = 0.0) -> float:
        """Dollars for an amount of compute by the environment's price sheet (what a forecast prices with)."""


def canonical(value: Any) -> Any:
    """Plain JSON form of configs for hashing: dataclasses to dicts (without ADDED fields at their default), tuples to lists, sets refused."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        asked = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if not (f.metadata.get("added") and getattr(value, f.name) == f.default)}
        return {name: canonical(part) for name, part in asked.items()}
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of an identity: {value!r}")


def run_key(stage: str, revision: int, config: Any, inputs: Mapping[str, str], interval: str | None) -> str:
    """Identity of a piece of work: what to compute, never where. 32 hex digits.

    ``inputs`` maps input names to their exact versions (``documents@3``) or content hashes (landing files).
    """
    identity = {"stage": stage, "revision": revision, "config": canonical(config), "inputs": dict(inputs), "interval": interval}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def config_hash(config: Any) -> str:
    """16 hex digits that two configs (or lists of them) share exactly when they ask for the same."""
    return hashlib.sha256(json.dumps(canonical(config), sort_keys=True).encode()).hexdigest()[:16]


def parse_day(text: str) -> str:
    """Check an ISO data day (``2026-11-01``) and return it; raises MoelineError otherwise."""
    try:
        return dt.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise MoelineError(f"Not a data day: {text!r} ({error}). Write it as YYYY-MM-DD.") from None


def is_held_out(doc_id: str) -> bool:
    """Whether a document is held out from training (1 %, decided by its id alone, so the same on every machine and day)."""
    return int.from_bytes(hashlib.sha256(b"held-out:" + doc_id.encode()).digest()[:4], "big") % 1000 < HELD_OUT_PER_MILLE
