"""The price sheet of an environment ([prices] of infra/env/<name>.toml): what holding resources costs, by day, and the energy it is taken to use.

Standard library only. Change here: how a sheet is read and a price found. Not here: the prices (infra/env/*.toml), what an attempt held (services/ledger.py).
A missing price is an error that says where to put it, before anything is spent; it is never 0.

A sheet prices cores, memory and GPUs by the hour, or whole machines ([[prices.instances]], one entry per machine and ``valid_from``), which a
stage names by ``instance`` in its [resources.<stage>]: it then pays the share of the machine that it holds, the largest of its shares of cores,
memory and GPUs. Energy is an estimate: nameplate watts x what is held x seconds x PUE. Nothing measures power.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from jobs.contract import MoelineError

PURCHASES = ("on_demand", "spot", "reserved")
_HOUR = 3600.0


@dataclass(frozen=True)
class Resources:
    """What an attempt is allocated (and pays for); ``instance``: the machine type of the price sheet it is a share of."""

    cores: float
    memory_gib: float
    gpus: float = 0.0
    instance: str = ""

    @property
    def sku(self) -> str:
        """The name of the shape, or of the machine type."""
        return self.instance or f"{self.cores:g}-cores-{self.memory_gib:g}-gib-{self.gpus:g}-gpus"


@dataclass(frozen=True)
class InstanceType:
    """A machine type and its hourly prices from ``valid_from`` on (ISO day). ``source``: where the prices were read, in words, and when.

    ``peak_tflops``: dense bf16 of the whole machine, and ``mfu_low`` to ``mfu_high`` the share of it a training is expected to use: what an
    answer to "how long there?" needs when nobody has trained there.
    """

    name: str
    cores: float
    memory_gib: float
    gpus: float
    valid_from: str
    source: str
    on_demand: float | None = None
    spot: float | None = None
    reserved: float | None = None
    peak_tflops: float | None = None
    mfu_low: float | None = None
    mfu_high: float | None = None

    def share(self, held: Resources) -> float:
        """How much of this machine ``held`` is; above 1: more than one machine."""
        return max(held.cores / self.cores, held.memory_gib / self.memory_gib, held.gpus / self.gpus if self.gpus else 0.0)


@dataclass(frozen=True)
class Prices:
    """Prices in ``currency`` per hour from ``valid_from`` on, machine types, and watts for the energy estimate. ``purchase``: how machines are bought."""

    currency: str
    core_hour: float
    gib_hour: float
    gpu_hour: float
    watts_per_core: float = 0.0
    watts_per_gib: float = 0.0
    watts_per_gpu: float = 0.0
    pue: float = 1.0
    valid_from: str = "1970-01-01"
    source: str = ""
    purchase: str = "on_demand"
    storage_gib_month: float | None = None
    instances: tuple[InstanceType, ...] = ()
    earlier: tuple[Mapping[str, Any], ...] = ()
    sheet: str = "infra/env/<environment>.toml"

    def __post_init__(self) -> None:
        if self.purchase not in PURCHASES:
            raise MoelineError(f"{self.sheet}: purchase must be one of {', '.join(PURCHASES)}, not {self.purchase!r}.")
        for day in (self.valid_from, *(i.valid_from for i in self.instances), *(str(e.get("valid_from")) for e in self.earlier)):
            try:
                dt.date.fromisoformat(day)
            except ValueError:
                raise MoelineError(f"{self.sheet}: valid_from = {day!r} is not a day. Write it as YYYY-MM-DD.") from None

    @classmethod
    def read(cls, raw: Mapping[str, Any], sheet: str) -> Prices:
        """From the table [prices] of an environment file; raises TypeError for an unknown or missing setting, MoelineError for a bad value."""
        given = {**raw, "instances": tuple(InstanceType(**i) for i in raw.get("instances", ())), "earlier": tuple(raw.get("earlier", ()))}
        return cls(**given, sheet=sheet)

    def bought(self, purchase: str) -> Prices:
        """The same sheet with machines bought otherwise."""
        return replace(self, purchase=purchase)

    def on(self, day: dt.date) -> Prices:
        """The sheet as it held on ``day``; raises MoelineError when it starts later."""
        if day.isoformat() >= self.valid_from:
            return self
        held = [e for e in self.earlier if e["valid_from"] <= day.isoformat()]
        if not held:
            first = min([self.valid_from, *(e["valid_from"] for e in self.earlier)])
            raise MoelineError(
                f"{self.sheet} has no prices for {day}: they begin on {first}. Add [[prices.earlier]] with valid_from and the prices of that day."
            )
        known = {f.name for f in fields(self)} - {"earlier", "instances", "sheet"}
        newest = max(held, key=lambda e: e["valid_from"])
        return replace(self, earlier=(), **{k: v for k, v in newest.items() if k in known})

    def instance(self, name: str, day: dt.date) -> InstanceType:
        """The machine type ``name`` as it was priced on ``day``."""
        named = [i for i in self.instances if i.name == name]
        held = [i for i in named if i.valid_from <= day.isoformat()]
        if held:
            return max(held, key=lambda i: i.valid_from)
        known = ", ".join(sorted({i.name for i in self.instances})) or "none"
        what = f"its prices begin on {min(i.valid_from for i in named)}, not by {day}" if named else f"it has {known}"
        raise MoelineError(f"{self.sheet} was asked for the machine type {name!r}; {what}. Add [[prices.instances]] with that name and valid_from.")

    def hourly(self, held: Resources, at: float | None = None) -> float:
        """Price of holding ``held`` for an hour at the time ``at`` (Unix seconds; None: now). Raises MoelineError when the sheet has none for it."""
        day = (dt.datetime.now(dt.UTC) if at is None else dt.datetime.fromtimestamp(at, dt.UTC)).date()
        if held.instance:
            machine = self.instance(held.instance, day)
            price = getattr(machine, self.purchase)
            if price is None:
                offered = ", ".join(p for p in PURCHASES if getattr(machine, p) is not None) or "no price at all"
                raise MoelineError(f"{self.sheet} has no {self.purchase} price of {machine.name}; it has {offered}. Add it, or choose another purchase.")
            return float(price) * machine.share(held)
        if self.purchase != "on_demand":
            raise MoelineError(f"{self.sheet} was asked for {self.purchase} prices, which only machine types have. Name one by instance in [resources].")
        sheet = self.on(day)
        if held.gpus and not sheet.gpu_hour:
            raise MoelineError(f"{held.gpus:g} GPUs were to be priced and gpu_hour is 0 in {self.sheet}. Set it in [prices], or name an instance.")
        return held.cores * sheet.core_hour + held.memory_gib * sheet.gib_hour + held.gpus * sheet.gpu_hour

    def allocated(self, held: Resources, seconds: float, at: float | None = None) -> float:
        """Price of holding ``held`` for ``seconds`` from the time ``at`` on."""
        return self.hourly(held, at) * seconds / _HOUR

    def cost(self, *, core_seconds: float = 0.0, gib_seconds: float = 0.0, gpu_seconds: float = 0.0) -> float:
        """Price of an amount of compute by the sheet's prices of cores, memory and GPUs."""
        return (core_seconds * self.core_hour + gib_seconds * self.gib_hour + gpu_seconds * self.gpu_hour) / _HOUR

    def energy_kwh(self, held: Resources, seconds: float) -> float:
        """Estimated energy of holding ``held`` for ``seconds``: nameplate watts, not a measurement."""
        watts = held.cores * self.watts_per_core + held.memory_gib * self.watts_per_gib + held.gpus * self.watts_per_gpu
        return watts * self.pue * seconds / 3.6e6

    @property
    def energy_method(self) -> str:
        """How ``energy_kwh`` estimates, for the ledger."""
        return f"{self.watts_per_core:g} W/core + {self.watts_per_gib:g} W/GiB + {self.watts_per_gpu:g} W/GPU held, PUE {self.pue:g}; not measured"
