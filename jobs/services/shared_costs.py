"""What no attempt causes alone: machines that were up and idle, and storage. Both become charge rows when costs are reconciled.

Change here: what is shared, how it is split. Not here: what a row says (charges.py), how uptime is known (platform/uptime.py).

moeline-idle-v1, the method of AllocatedMethodId: while the platform is up it holds [resources.platform]. What the attempts of a window held of that
machine is theirs already; the rest of the window is idle, and borne by the work that ran in it (run keys), in proportion to the machine time each
held. Ratios have nine decimals, the last one takes the rounding rest, so they sum to exactly 1. Nobody used the window: one unallocated row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from jobs.environment import Environment
from jobs.price_sheet import InstanceType, Resources
from jobs.services import charges, delta, ledger, table_store
from jobs.services.platform import uptime

METHOD = "moeline-idle-v1"
STORAGE = "storage"
SHARED = ("idle", "storage")
_LEAST_SECONDS = 1.0
_NINE = Decimal("1e-9")
_MONTH_HOURS = 730.0  # a month of a price per GiB and month
_GIB = float(1 << 30)
Rows = Sequence[Mapping[str, Any]]


def charge_idle(env: Environment, *, now: float) -> list[dict[str, Any]]:
    """Charge idle time of the platform that was not charged yet, until ``now``; returns the new rows. Nothing where [resources.platform] is not set."""
    if "platform" not in env.resources:
        return []
    rows = delta.rows(env, "costs")
    found: list[dict[str, Any]] = []
    for started, seen in uptime.windows(env.home):
        name = f"idle:{started:.3f}"
        begin = max([started, *(r["ChargePeriodEnd"].timestamp() for r in rows if r["x_AttemptId"] == name)])
        for start, end in by_month(begin, min(seen, now)):
            new = idle_rows(env, name, start, end, rows, _open(env, now))
            delta.append(env, "costs", new, once=f"{name}:{start:.3f}")
            found += new
    return found


def by_month(begin: float, end: float) -> Iterable[tuple[float, float]]:
    """The parts of a window that lie in one billing period each; none shorter than a second."""
    while end - begin >= _LEAST_SECONDS:
        stop = min(end, charges.month_of(begin)[1].timestamp())
        yield begin, stop
        begin = stop


def _open(env: Environment, now: float) -> list[tuple[str, str, Resources, float, float]]:
    return [(a.run_key, a.run_id, a.resources, a.started_at, now) for a, _, alive in ledger.open_attempts(env) if alive]


def used_seconds(
    machine: Resources, rows: Rows, running: Iterable[tuple[str, str, Resources, float, float]], begin: float, end: float
) -> dict[tuple[str, str], float]:
    """Seconds of the whole ``machine`` that each (run key, run id) held between ``begin`` and ``end``, rows of one period spread evenly over it."""
    whole = InstanceType("machine", machine.cores, machine.memory_gib, machine.gpus, "1970-01-01", "")
    found: dict[tuple[str, str], float] = {}

    def add(key: str, run: str, held: Resources, start: float, stop: float, seconds: float) -> None:
        overlap = max(0.0, min(end, stop) - max(begin, start))
        if overlap and stop > start:
            found[key, run] = found.get((key, run), 0.0) + whole.share(held) * seconds * overlap / (stop - start)

    for r in rows:
        if r["x_Phase"] not in SHARED:
            held = Resources(r["x_Cores"], r["x_MemoryGib"], r["x_Gpus"])
            key = r["x_RunKey"] or r["x_AttemptId"]
            add(key, r["x_RunId"] or r["x_DagRunId"] or key, held, r["ChargePeriodStart"].timestamp(), r["ChargePeriodEnd"].timestamp(), r["x_WallSeconds"])
    for key, run, held, start, stop in running:
        add(key, run, held, start, stop, stop - start)
    return found


def idle_rows(
    env: Environment, name: str, begin: float, end: float, rows: Rows, running: Iterable[tuple[str, str, Resources, float, float]]
) -> list[dict[str, Any]]:
    """Allocation rows of one origin charge: the machine's time from ``begin`` to ``end`` that nobody held."""
    machine = env.resources["platform"]
    used = used_seconds(machine, rows, running, begin, end)
    idle = Decimal(str(round(max(0.0, end - begin - sum(used.values())), 6)))
    if idle <= 0:
        return []
    recipes = {r["x_RunKey"]: r["x_Recipe"] for r in rows}
    shares = exact_shares({key: seconds for (key, _), seconds in used.items()}) or {None: Decimal(1)}
    run_of = {key: run for key, run in used}
    found, left = [], idle
    for key, ratio in shares.items():
        part = left if key == list(shares)[-1] else (idle * ratio).quantize(Decimal("1e-6"))
        left -= part
        details = {"Elements": [{"AllocatedRatio": float(ratio), "UsageUnit": "Machine-Seconds", "UsageQuantity": _held(used, key)}]}
        found.append(charges.row(env, charges.Charge(
            held=machine, start=begin, end=end, seconds=float(part), stage="platform", phase="idle", description="platform, idle", attempt_id=name,
            recipe=recipes.get(key) or "none", outcome="idle", evidence="uptime", resource=name, resource_type="Engines",
            own={
                "ServiceCategory": "Compute", "ServiceSubcategory": "Other (Compute)", "AllocatedMethodId": METHOD,
                "AllocatedMethodDetails": json.dumps(details, sort_keys=True), "AllocatedResourceId": key,
                "AllocatedResourceName": None if key is None else run_of[key], "AllocatedTags": None if key is None else json.dumps({"run": run_of[key]}),
                "x_RunKey": key, "x_RunId": None if key is None else run_of[key],
            },
        )))  # fmt: skip
    return found


def _held(used: Mapping[tuple[str, str], float], key: str | None) -> float:
    return round(sum(seconds for (k, _), seconds in used.items() if k == key), 6)


def exact_shares(weights: Mapping[Any, float]) -> dict[Any, Decimal]:
    """Shares in proportion to ``weights`` (above 0), of nine decimals, that sum to exactly 1: the last (by name) takes the rounding rest."""
    positive = {key: Decimal(repr(weight)) for key, weight in sorted(weights.items()) if weight > 0}
    total = sum(positive.values())
    found = {key: (weight / total).quantize(_NINE) for key, weight in positive.items()}
    if found:
        last = list(found)[-1]
        found[last] = 1 - sum(share for key, share in found.items() if key != last)
    return found


def stored_bytes(env: Environment) -> int:
    """Bytes of tables, artifacts and, where it is a folder here, the landing zone."""
    places = [env.warehouse, env.artifacts, *([env.landing] if isinstance(env.landing, Path) else [])]
    in_store = 0 if env.tables is None else sum(file.size for root in table_store.roots(env) for file in table_store.files(root))
    return in_store + sum(_size(Path(root, name)) for place in places for root, _, files in os.walk(place) for name in files)


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0  # removed meanwhile


def charge_storage(env: Environment, *, now: float) -> list[dict[str, Any]]:
    """Charge what is stored now for the time since it was last charged (at first: since the first attempt). Nothing where the sheet has no price.

    Measured when asked, so what came and went in between is not seen.
    """
    price = env.prices.storage_gib_month
    rows = delta.rows(env, "costs")
    if price is None or not rows:
        return []
    stored = [r["ChargePeriodEnd"].timestamp() for r in rows if r["x_Phase"] == STORAGE]
    begin = max(stored) if stored else min(r["ChargePeriodStart"].timestamp() for r in rows)
    gib, found = stored_bytes(env) / _GIB, []
    for start, end in by_month(begin, now):
        quantity = gib * (end - start) / 3600.0 / _MONTH_HOURS
        cost = price * quantity
        priced = dict.fromkeys(("BilledCost", "EffectiveCost", "ListCost", "ContractedCost"), cost)
        row = charges.row(env, charges.Charge(
            held=Resources(0.0, 0.0), start=start, end=end, seconds=end - start, stage=STORAGE, phase=STORAGE, description=f"{gib:.3f} GiB stored",
            attempt_id=STORAGE, recipe="none", outcome="stored", evidence="measured", resource=STORAGE, resource_type="Storage",
            own={
                **priced, "PricingQuantity": quantity, "PricingUnit": "GiB-Months", "ConsumedQuantity": quantity, "ConsumedUnit": "GiB-Months",
                "ListUnitPrice": price, "ContractedUnitPrice": price, "PricingCategory": "Standard", "SkuId": "gib-stored", "SkuMeter": "Stored",
                "SkuPriceId": "gib-stored/on_demand", "SkuPriceDetails": None, "ServiceCategory": "Storage", "ServiceSubcategory": "Other (Storage)",
            },
        ))  # fmt: skip
        delta.append(env, "costs", [row], once=f"{STORAGE}:{start:.3f}")
        found.append(row)
    return found
