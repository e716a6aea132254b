"""``moeline costs export``: the table ``costs`` as a FOCUS 1.3 dataset (CSV or Parquet), refused when a row breaks one of the specification's rules.

Change here: the columns of an export and the rules it is held against. Not here: what a charge row says (services/charges.py).
The specification: FinOps Open Cost and Usage Specification 1.3, dataset Cost and Usage, CC-BY-4.0. FOCUS columns first, custom columns (x_) after them.
Columns of concepts that do not exist here (commitments, contracts, regions, reservations) are left out, as the specification has it for
providers that do not support them. An independent judge: tests/oracles/focus_validator.py.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from expectations.costs import COLUMNS
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import charges, delta

FORMATS = ("csv", "parquet")
Row = dict[str, Any]

# Columns of an export that the ledger does not keep: prices in the currency of the bill, and a status that is null because nothing is committed.
_DERIVED = (
    ("PricingCurrency", "string"), ("PricingCurrencyContractedUnitPrice", "float64"), ("PricingCurrencyEffectiveCost", "float64"),
    ("PricingCurrencyListUnitPrice", "float64"), ("CommitmentDiscountStatus", "string"),
)  # fmt: skip
_OURS = [(name, kind) for name, kind, *_ in COLUMNS if name.startswith("x_")]
EXPORTED = (*((name, kind) for name, kind, *_ in COLUMNS if not name.startswith("x_")), *_DERIVED, *_OURS)  # custom columns last
_MUST_NOT_BE_NULL = (
    "BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "BillingAccountId", "BillingCurrency", "BillingPeriodStart", "BillingPeriodEnd",
    "ChargePeriodStart", "ChargePeriodEnd", "ChargeCategory", "InvoiceIssuerName", "ServiceProviderName", "HostProviderName", "ProviderName",
    "PublisherName", "ServiceCategory", "ServiceSubcategory", "ServiceName", "ChargeFrequency",
)  # fmt: skip
_USAGE_NOT_NULL = ("PricingQuantity", "PricingUnit", "PricingCategory", "ListUnitPrice", "ContractedUnitPrice", "SkuId", "SkuPriceId")  # unless a correction
_UNIT = re.compile(r"^([A-Z][A-Za-z]*-)?[A-Z][A-Za-z]*$")
_CURRENCY = re.compile(r"^[A-Z]{3}$")
_CUSTOM = re.compile(r"^x_[A-Z][A-Za-z0-9]{0,47}$")
_ALLOCATED = ("AllocatedMethodDetails", "AllocatedResourceId", "AllocatedResourceName", "AllocatedTags")


def completed(row: Mapping[str, Any]) -> Row:
    """A row with every column: rows of old get what later columns would have held, from what they do say."""
    found = {name: row.get(name) for name, *_ in COLUMNS}
    return _priced(found if found["SkuPriceId"] is not None else found | _of_old(row))


def _priced(row: Row) -> Row:
    return row | {
        "PricingCurrency": row["BillingCurrency"], "PricingCurrencyContractedUnitPrice": row["ContractedUnitPrice"],
        "PricingCurrencyEffectiveCost": row["EffectiveCost"], "PricingCurrencyListUnitPrice": row["ListUnitPrice"], "CommitmentDiscountStatus": None,
    }  # fmt: skip


def _of_old(row: Mapping[str, Any]) -> Row:
    unit, listed = charges.unit_prices(row)
    hours = row["x_WallSeconds"] / 3600.0
    shape = f"{row['x_Cores']:g}-cores-{row['x_MemoryGib']:g}-gib-{row['x_Gpus']:g}-gpus"
    tags = {"environment": row["BillingAccountId"], "recipe": row["x_Recipe"], "stage": row["x_Stage"], "phase": row["x_Phase"]}
    return {
        "PricingQuantity": hours, "PricingUnit": "Hours", "ConsumedQuantity": hours, "ConsumedUnit": "Hours", "ListUnitPrice": listed,
        "ContractedUnitPrice": unit, "PricingCategory": "Standard", "SkuId": shape, "SkuMeter": "Allocated Hours", "SkuPriceId": f"{shape}/on_demand",
        "HostProviderName": row["ServiceProviderName"], "ServiceSubcategory": "Machine Learning", "ChargeFrequency": "Usage-Based",
        "ResourceId": row["x_AttemptId"], "ResourceName": row["ChargeDescription"], "ResourceType": "Attempt", "Tags": json.dumps(tags, sort_keys=True),
        "x_RunId": row["x_DagRunId"] or f"by-hand-{(row['x_RunKey'] or '')[:8]}",
    }  # fmt: skip


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


def _json_object(text: str | None) -> bool:
    try:
        return text is None or isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _usage(row: Row) -> bool:
    return row["ChargeCategory"] in ("Usage", "Purchase") and row["ChargeClass"] != "Correction"


# name of the rule (column and what it must) -> whether a row keeps it
RULES: dict[str, Callable[[Row], bool]] = {
    **{f"{name} must not be null": lambda row, name=name: row[name] is not None for name in _MUST_NOT_BE_NULL},
    **{f"{name} must not be null for usage": lambda row, name=name: row[name] is not None or not _usage(row) for name in _USAGE_NOT_NULL},
    "ChargeCategory must be an allowed value": lambda row: row["ChargeCategory"] in ("Usage", "Purchase", "Tax", "Credit", "Adjustment"),
    "ChargeClass must be Correction or null": lambda row: row["ChargeClass"] in (None, "Correction"),
    "ChargeFrequency must be an allowed value": lambda row: row["ChargeFrequency"] in ("One-Time", "Recurring", "Usage-Based"),
    "PricingCategory must be an allowed value": lambda row: row["PricingCategory"] in (None, "Standard", "Dynamic", "Committed", "Other"),
    "ServiceSubcategory must belong to its ServiceCategory": lambda row: (row["ServiceCategory"], row["ServiceSubcategory"]) in _SERVICES,
    "BillingCurrency must be an ISO 4217 code": lambda row: bool(_CURRENCY.match(row["BillingCurrency"] or "")),
    "numbers must be finite": lambda row: all(math.isfinite(v) for v in row.values() if isinstance(v, float)),
    "times must be in UTC": lambda row: all(v.utcoffset() == dt.timedelta(0) for v in row.values() if isinstance(v, dt.datetime)),
    "BillingPeriodEnd must be after its start": lambda row: row["BillingPeriodStart"] < row["BillingPeriodEnd"],
    "ChargePeriodEnd must not be before its start": lambda row: row["ChargePeriodStart"] <= row["ChargePeriodEnd"],
    "PricingUnit must be a FOCUS unit": lambda row: row["PricingUnit"] is None or bool(_UNIT.match(row["PricingUnit"])),
    "PricingUnit must be null exactly when PricingQuantity is": lambda row: (row["PricingUnit"] is None) == (row["PricingQuantity"] is None),
    "ConsumedUnit must be null exactly when ConsumedQuantity is": lambda row: (row["ConsumedUnit"] is None) == (row["ConsumedQuantity"] is None),
    "PricingQuantity must be null when SkuPriceId is": lambda row: row["SkuPriceId"] is not None or row["PricingQuantity"] is None,
    "SkuPriceId must have a SkuId": lambda row: row["SkuPriceId"] is None or row["SkuId"] is not None,
    "ContractedUnitPrice x PricingQuantity must be ContractedCost": lambda row: _product(row, "ContractedUnitPrice", "ContractedCost"),
    "ListUnitPrice x PricingQuantity must be ListCost": lambda row: _product(row, "ListUnitPrice", "ListCost"),
    "unit prices must not be negative": lambda row: min(row["ListUnitPrice"] or 0.0, row["ContractedUnitPrice"] or 0.0) >= 0,
    "Tags must be a JSON object": lambda row: _json_object(row["Tags"]),
    "AllocatedMethodDetails must be a JSON object": lambda row: _json_object(row["AllocatedMethodDetails"]),
    "only allocated charges may name what they are allocated to": lambda row: row["AllocatedMethodId"] is not None or all(row[n] is None for n in _ALLOCATED),
}
_SERVICES = {("AI and Machine Learning", "Machine Learning"), ("Compute", "Other (Compute)"), ("Storage", "Other (Storage)")}


def _product(row: Row, price: str, cost: str) -> bool:
    known = row[price] is not None and row["PricingQuantity"] is not None and row["ChargeClass"] != "Correction"
    return not known or _close(row[price] * row["PricingQuantity"], row[cost])


def violations(rows: Sequence[Row]) -> dict[str, int]:
    """Broken rules and in how many rows, over the whole dataset too: shares of one origin charge sum to 1, a SKU price has one SKU."""
    found = {name: broken for name, rule in RULES.items() if (broken := sum(not rule(row) for row in rows))}
    custom = [name for name, *_ in COLUMNS if name.startswith("x_") and not _CUSTOM.match(name)]
    if custom:
        found[f"custom columns must be x_ and PascalCase: {', '.join(custom)}"] = len(rows)
    ratios: dict[str, Decimal] = {}
    for row in rows:
        if row["AllocatedMethodDetails"]:
            origin = f"{row['ResourceId']} {row['ChargePeriodStart']}"
            ratios[origin] = ratios.get(origin, Decimal(0)) + sum(Decimal(str(e["AllocatedRatio"])) for e in _elements(row))
    if broken := sum(total != 1 for total in ratios.values()):
        found["AllocatedRatio of one origin charge must sum to 1"] = broken
    parents: dict[str, set[str]] = {}
    for row in rows:
        parents.setdefault(row["SkuPriceId"], set()).add(row["SkuId"])
    if broken := sum(len(skus) > 1 for price, skus in parents.items() if price is not None):
        found["SkuPriceId must have one and only one parent SkuId"] = broken
    return found


def _elements(row: Row) -> list[Mapping[str, Any]]:
    return list(json.loads(row["AllocatedMethodDetails"], parse_float=str).get("Elements", []))


def dataset(env: Environment, first: str | None = None, last: str | None = None) -> list[Row]:
    """Rows of the days (ISO, UTC, both included) in which a charge began, oldest first. Raises MoelineError naming each rule a row breaks."""
    low, high = (None if day is None else _day(day) for day in (first, last))
    rows = [
        completed(row) for row in delta.rows(env, "costs")
        if (low is None or row["ChargePeriodStart"].date() >= low) and (high is None or row["ChargePeriodStart"].date() <= high)
    ]  # fmt: skip
    if broken := violations(rows):
        said = "; ".join(f"{rule} ({count} rows)" for rule, count in broken.items())
        raise MoelineError(f"The table costs breaks rules of FOCUS 1.3, so nothing was exported: {said}. Correct these rows with `moeline costs correct`.")
    return sorted(rows, key=lambda r: (r["ChargePeriodStart"], r["x_AttemptId"], r["x_Phase"], r["AllocatedResourceId"] or ""))


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise MoelineError(f"Not a day: {text!r}. Write --from and --to as YYYY-MM-DD.") from None


def export(env: Environment, out: Path, form: str, first: str | None = None, last: str | None = None) -> dict[str, Any]:
    """Write the dataset to ``out``; returns the file, its rows and the sum of BilledCost."""
    rows = dataset(env, first, last)
    out.parent.mkdir(parents=True, exist_ok=True)
    if form == "csv":
        with out.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow([name for name, _ in EXPORTED])
            writer.writerows([_cell(row[name], up=name.endswith("End")) for name, _ in EXPORTED] for row in rows)
    elif form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([(name, delta.arrow_type(kind)) for name, kind in EXPORTED])), out)
    else:
        raise MoelineError(f"A FOCUS export is {' or '.join(FORMATS)}, not {form!r}.")
    return {"file": str(out), "format": form, "rows": len(rows), "billed": sum(row["BilledCost"] for row in rows), "version": "1.3"}


def _cell(value: Any, *, up: bool = False) -> str:
    """NumericFormat has no exponents, DateTimeFormat ends in whole seconds and Z (an exclusive end is rounded up), null is empty."""
    if value is None:
        return ""
    if isinstance(value, dt.datetime):
        whole = value.replace(microsecond=0) + dt.timedelta(seconds=1 if up and value.microsecond else 0)
        return whole.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)


def read(file: Path) -> Iterable[dict[str, str]]:
    """Rows of a FOCUS CSV file as text, of whoever wrote it."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            yield from csv.DictReader(opened)
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise MoelineError(f"Cannot read {file}: {problem}. Give a FOCUS CSV file.") from None
