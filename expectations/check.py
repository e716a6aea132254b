"""Evaluate a table's rules on rows that are not published yet. The only file that imports Great Expectations.

Small tables are read into pandas (only the columns a rule names), large ones stay in Spark: the same rules, the same library,
two execution engines. Which one is used can never change a verdict.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expectations.tables import Rule, Table

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # nothing about the data leaves this machine


@dataclass(frozen=True)
class CheckResult:
    """One evaluated rule. ``observed`` is JSON; ``failed_rows`` counts rows that broke it (0 for table-level rules)."""

    rule: str
    severity: str
    passed: bool
    observed: str
    failed_rows: int

    def sentence(self) -> str:
        rows = f", {self.failed_rows} rows" if self.failed_rows else ""
        return f"{self.rule}: observed {self.observed}{rows}"


def columns_needed(table: Table) -> list[str]:
    """Columns some rule looks at: all a pandas check has to read."""
    named = {column for rule in table.all_rules for column in rule.columns}
    return [c.name for c in table.columns if c.name in named]


def load() -> None:
    """Import Great Expectations now (seconds) instead of at the first evaluation."""
    import great_expectations.expectations  # noqa: F401


def read_files(folder: Path, schema: Any, columns: Sequence[str]) -> Any:
    """The ``columns`` of all Parquet files under ``folder`` as a pandas frame; ``schema`` (pyarrow) holds for every file."""
    import pyarrow.dataset as ds

    return ds.dataset(folder, format="parquet", schema=schema).to_table(columns=list(columns)).to_pandas()


def evaluate_files(table: Table, folder: Path, schema: Any) -> list[CheckResult]:
    """``evaluate`` on staged Parquet files that fit into memory, with pandas."""
    return evaluate(table, read_files(folder, schema, columns_needed(table)), engine="pandas")


def evaluate(table: Table, frame: Any, *, engine: str) -> list[CheckResult]:
    """Evaluate every rule of ``table`` on ``frame`` (``engine`` "pandas" or "spark"); raises ValueError for an unknown rule."""
    return evaluate_rules(table.name, table.all_rules, frame, engine=engine)


def evaluate_rules(name: str, rules: Sequence[Rule], frame: Any, *, engine: str) -> list[CheckResult]:
    """Evaluate ``rules`` on the rows of the table called ``name``."""
    if not rules:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GX 1.24 warns about pandas and pydantic internals of its own
        import great_expectations as gx

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        source = getattr(context.data_sources, f"add_{engine}")("staged")
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        suite = gx.ExpectationSuite(name=name, expectations=[_expectation(rule) for rule in rules])
        outcome = batch.validate(suite, result_format="BASIC")
    results = [_result(found) for found in outcome.results]
    if len(results) != len(rules):
        raise ValueError(f"{name}: {len(rules)} rules were asked, {len(results)} answered")
    return results


def _expectation(rule: Rule) -> Any:
    import great_expectations.expectations as gxe

    if not hasattr(gxe, rule.expectation):
        raise ValueError(f"Unknown expectation {rule.expectation!r}; see great_expectations.expectations for the names")
    meta = {"severity": rule.severity, "name": rule.name}
    return getattr(gxe, rule.expectation)(**rule.arguments, meta=meta)


def _result(found: Any) -> CheckResult:
    """Our row for one GX result. A rule that could not be evaluated counts as failed."""
    meta = found.expectation_config.meta
    detail = dict(found.result or {})
    raised = found.exception_info or {}
    error = raised.get("exception_message") or next((v.get("exception_message") for v in raised.values() if isinstance(v, dict)), None)
    observed: Any = detail.get("observed_value")
    if observed is None:
        observed = {k: detail[k] for k in ("element_count", "unexpected_count", "unexpected_percent") if k in detail}
    if error:
        observed = {"error": str(error)[:500]}
    passed = bool(found.success) and not error
    return CheckResult(meta["name"], meta["severity"], passed, json.dumps(observed, default=str), int(detail.get("unexpected_count") or 0))
