"""What became of tables' columns since the first release: one migration for every schema version after 1. Declarations only.

To change columns: edit tables.py, raise the table's ``schema_version``, add a migration here, run `make golden` (which adds the new version to
tests/golden/table_shapes.json; versions that were released never change there). Another kind of step (a renamed, dropped or retyped column) is another
class here, named in ``Step``, and a branch in jobs/services/table_migrations.py; history has needed none.
Change here: which columns a version added, what old rows get. Not here: how files are written again (jobs/services/table_migrations.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fill:
    """What rows written before the column get: ``by_value`` of their ``column`` where it is listed, else ``otherwise``."""

    otherwise: Any
    column: str = ""
    by_value: Mapping[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AddColumn:
    """A new column (``type`` as in tables.py, fixed here for ever). Without ``fill`` old rows are null there and no file is written again."""

    name: str
    type: str
    fill: Fill | None = None


Step = AddColumn


@dataclass(frozen=True)
class Migration:
    """The steps from schema version ``to - 1`` of a table to ``to``; ``why`` old rows get what they get."""

    table: str
    to: int
    steps: tuple[Step, ...]
    why: str


_COSTS_2 = (
    *((name, "string") for name in ("HostProviderName", "ServiceSubcategory", "ChargeFrequency", "PricingCategory")),
    *((name, "float64") for name in ("ListUnitPrice", "ContractedUnitPrice", "ConsumedQuantity")),
    *((name, "string") for name in ("ConsumedUnit", "SkuId", "SkuMeter", "SkuPriceId", "SkuPriceDetails", "InvoiceId", "ResourceId", "ResourceName")),
    *((name, "string") for name in ("ResourceType", "Tags", "AllocatedMethodId", "AllocatedMethodDetails", "AllocatedResourceId")),
    *((name, "string") for name in ("AllocatedResourceName", "AllocatedTags", "x_RunId", "x_ForecastId")),
    ("x_Mfu", "float64"), ("x_EnergyMethod", "string"), ("x_Evidence", "string"), ("x_CorrectsId", "string"), ("x_ProcessId", "int64"),
    ("x_InstanceType", "string"),
)  # fmt: skip
_OWN_BENCHMARKS = ("next_line", "docstring", "identifier", "brackets", "arithmetic", "*", "**")

MIGRATIONS: tuple[Migration, ...] = (
    Migration("duplicates", 2, (AddColumn("containment", "float64"),), "Recipes decided by Jaccard similarity alone: nothing was measured."),
    Migration(
        "contamination", 2, (AddColumn("rule", "string", Fill("ngram")), AddColumn("removed_characters", "int64", Fill(0))),
        "There was one rule, and it dropped whole documents; their characters were not counted.",
    ),
    Migration("training_documents", 2, (AddColumn("piece_starts", "list<int32>"),), "No document was cut; null means it is whole."),
    Migration(
        "scores", 2, (AddColumn("mode", "string", Fill("exact", "benchmark", dict.fromkeys(_OWN_BENCHMARKS, "fixed"))),),
        "Our own benchmarks had the higher baseline subtracted, Foundry's tasks theirs. Means over a category of Foundry's count as ours: no column tells them "
        "apart.",
    ),
    Migration("responses", 2, (AddColumn("confidence", "float64"),), "It was not kept."),
    Migration(
        "verdicts", 2,
        (
            AddColumn("second_choice", "int32"), AddColumn("lead", "float64"), AddColumn("pattern", "string"), AddColumn("pattern_agreement", "float64"),
            AddColumn("format", "string", Fill("ok", "verdict", {"format_failure": "no_words"})),
            AddColumn("contaminated", "bool", Fill(False, "verdict", {"contaminated": True})),
            AddColumn("key_suspect", "bool", Fill(False)), AddColumn("failure_group", "int32"),
        ),
        "What the verdict itself says; whether a wrong answer's item overlapped, or its key was suspect, nobody had looked.",
    ),
    Migration("costs", 2, tuple(AddColumn(*column) for column in _COSTS_2), "An export completes old rows (jobs/focus.py)."),
)  # fmt: skip


def steps_between(table: str, found: int, wanted: int) -> tuple[Step, ...]:
    """All steps from schema version ``found`` of a table to ``wanted``, in order."""
    passed = sorted((m for m in MIGRATIONS if m.table == table and found < m.to <= wanted), key=lambda m: m.to)
    return tuple(step for migration in passed for step in migration.steps)
