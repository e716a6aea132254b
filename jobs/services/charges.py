"""Charge rows in the shape of FOCUS 1.3 (table ``costs``): what one is made of, and how one is corrected.

Change here: what a row says. Not here: the columns (expectations/costs.py), who writes rows and when (ledger.py for attempts, shared_costs.py for idle
time and storage, reconciling.py for corrections), the export (jobs/focus.py).

What is bought is the shape an attempt held (2 cores, 4 GiB, no GPU), by the hour, or a share of a machine type: one SKU, so quantity x unit price
is the cost. Rows are estimates at the sheet's prices: nothing here has seen an invoice, so BilledCost is what would be billed.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.environment import Environment
from jobs.price_sheet import Resources

PURCHASED = {"on_demand": "Standard", "reserved": "Standard", "spot": "Dynamic"}  # a reserved rate is a price agreed on; its commitment is not in the ledger
_NULL = (
    "ChargeClass", "InvoiceId", "AllocatedMethodId", "AllocatedMethodDetails", "AllocatedResourceId", "AllocatedResourceName", "AllocatedTags", "x_RunKey",
    "x_Interval", "x_DagId", "x_DagRunId", "x_TaskId", "x_Tokens", "x_Flops", "x_Error", "x_RunId", "x_ForecastId", "x_Mfu", "x_EnergyMethod", "x_CorrectsId",
    "x_ProcessId", "x_InstanceType",
)  # fmt: skip


@dataclass(frozen=True)
class Charge:
    """Holding ``held`` from ``start`` to ``end`` (Unix seconds), of which ``seconds`` are charged here. ``own``: more columns, which win."""

    held: Resources
    start: float
    end: float
    seconds: float
    stage: str
    phase: str
    description: str
    attempt_id: str
    recipe: str
    outcome: str
    evidence: str = "own"
    resource: str = ""
    resource_type: str = "Attempt"
    own: Mapping[str, Any] = field(default_factory=dict)


def month_of(at: float) -> tuple[dt.datetime, dt.datetime]:
    """First moment of the calendar month (UTC) that ``at`` lies in, and of the next: the billing period."""
    start = dt.datetime.fromtimestamp(at, dt.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return start, (start + dt.timedelta(days=32)).replace(day=1)


def row(env: Environment, charge: Charge) -> dict[str, Any]:
    """The row of one charge, priced by the sheet as it held at its start."""
    hours = charge.seconds / 3600.0
    unit = env.prices.hourly(charge.held, charge.start)
    listed = env.prices.bought("on_demand").hourly(charge.held, charge.start) if env.prices.purchase == "reserved" else unit
    cost = unit * hours
    month, next_month = month_of(charge.start)
    tags = {"environment": env.name, "recipe": charge.recipe, "stage": charge.stage, "phase": charge.phase}
    found: dict[str, Any] = {
        **dict.fromkeys(_NULL), "BilledCost": cost, "EffectiveCost": cost, "ListCost": listed * hours, "ContractedCost": cost,
        "BillingAccountId": env.name, "BillingAccountName": env.name, "BillingCurrency": env.prices.currency, "BillingPeriodStart": month,
        "BillingPeriodEnd": next_month, "ChargePeriodStart": _moment(charge.start), "ChargePeriodEnd": _moment(max(charge.end, charge.start)),
        "ChargeCategory": "Usage", "ChargeDescription": charge.description, "InvoiceIssuerName": env.name, "PricingQuantity": hours, "PricingUnit": "Hours",
        "ServiceProviderName": env.name, "ProviderName": env.name, "PublisherName": env.name, "HostProviderName": env.name,
        "ServiceCategory": "AI and Machine Learning", "ServiceSubcategory": "Machine Learning", "ServiceName": f"moeline {charge.stage}",
        "ChargeFrequency": "Usage-Based", "PricingCategory": PURCHASED[env.prices.purchase], "ListUnitPrice": listed, "ContractedUnitPrice": unit,
        "ConsumedQuantity": hours, "ConsumedUnit": "Hours", "SkuId": charge.held.sku, "SkuMeter": "Allocated Hours",
        "SkuPriceId": f"{charge.held.sku}/{env.prices.purchase}", "SkuPriceDetails": _details(charge.held),
        "ResourceId": charge.resource or charge.attempt_id, "ResourceName": charge.description,
        "ResourceType": charge.resource_type, "Tags": json.dumps(tags, sort_keys=True), "x_AttemptId": charge.attempt_id, "x_Recipe": charge.recipe,
        "x_Stage": charge.stage, "x_Phase": charge.phase, "x_MapIndex": -1, "x_TaskTry": 0, "x_Outcome": charge.outcome, "x_WallSeconds": charge.seconds,
        "x_Cores": charge.held.cores, "x_MemoryGib": charge.held.memory_gib, "x_Gpus": charge.held.gpus,
        "x_EnergyKwh": env.prices.energy_kwh(charge.held, charge.seconds), "x_EnergyMethod": env.prices.energy_method, "x_Evidence": charge.evidence,
        "x_InstanceType": charge.held.instance or None,
    }  # fmt: skip
    return {**found, **charge.own}


def correction(env: Environment, charged: Mapping[str, Any], seconds: float, because: str, evidence: str, *, now: float | None = None) -> dict[str, Any]:
    """A new row that adds ``seconds`` (may be negative) to what ``charged`` was charged for, at its own unit price.

    ChargeClass is Correction where the month of the charge is over, as FOCUS has it; x_CorrectsId says of any month what is corrected.
    """
    found = dict(charged)
    now = dt.datetime.now(dt.UTC).timestamp() if now is None else now
    unit, listed = unit_prices(charged)
    hours, held = seconds / 3600.0, Resources(charged["x_Cores"], charged["x_MemoryGib"], charged["x_Gpus"], charged.get("x_InstanceType") or "")
    end = charged["ChargePeriodEnd"]
    found |= {
        "BilledCost": unit * hours, "EffectiveCost": unit * hours, "ContractedCost": unit * hours, "ListCost": listed * hours,
        "ChargeClass": "Correction" if now >= charged["BillingPeriodEnd"].timestamp() else None,
        "ChargePeriodStart": end if seconds > 0 else charged["ChargePeriodStart"],
        "ChargePeriodEnd": end + dt.timedelta(seconds=max(0.0, seconds)), "PricingQuantity": hours, "PricingUnit": "Hours",
        "ConsumedQuantity": hours, "ConsumedUnit": "Hours", "ChargeDescription": f"{charged['ChargeDescription']}: {because}", "x_WallSeconds": seconds,
        "x_EnergyKwh": env.prices.energy_kwh(held, seconds), "x_EnergyMethod": env.prices.energy_method, "x_Evidence": evidence,
        "x_CorrectsId": charged["x_AttemptId"], "x_Tokens": None, "x_Flops": None, "x_Mfu": None,
    }  # fmt: skip
    return found


def unit_prices(charged: Mapping[str, Any]) -> tuple[float, float]:
    """(contracted, list) price per hour of a row; rows of old have none, but what they cost and how long they took."""
    if charged.get("ContractedUnitPrice") is not None:
        return float(charged["ContractedUnitPrice"]), float(charged["ListUnitPrice"])
    hours = charged["x_WallSeconds"] / 3600.0
    return (charged["ContractedCost"] / hours, charged["ListCost"] / hours) if hours else (0.0, 0.0)


def _details(held: Resources) -> str:
    """The shape, per hour held, under the names FOCUS defines where it defines them."""
    found: dict[str, Any] = {"CoreCount": held.cores, "MemorySize": held.memory_gib, "GpuCount": held.gpus}
    return json.dumps(found | ({"InstanceType": held.instance} if held.instance else {}), sort_keys=True)


def _moment(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.UTC)
