"""Where things run and what they cost: infra/env/<name>.toml plus the addresses of the running platform.

Standard library only. Nothing read here may enter a run key.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.contract import MoelineError
from jobs.price_sheet import Prices, Resources

__all__ = ["PLATFORM_FILE", "REPO", "Environment", "Prices", "Resources"]

REPO = Path(__file__).resolve().parent.parent
GIVEN = ("spark_remote", "ray_address", "mlflow_uri", "mlflow_user", "mlflow_password_file", "check_socket", "postgres_url")  # of [services]
PLATFORM_FILE = "platform.json"  # written by `moeline up`: {"services": {name: {...}}, "addresses": {...}}


@dataclass(frozen=True)
class Environment:
    name: str
    home: Path
    warehouse: Path
    landing: Path | str  # a folder, or the URL of one (jobs/services/landing.py)
    artifacts: Path
    prices: Prices
    resources: dict[str, Resources]
    services: dict[str, Any]
    budgets: dict[str, Any] = field(default_factory=dict)
    tables: str | None = None  # URL of the store the tables lie in (jobs/services/table_store.py); None: in the warehouse

    @classmethod
    def load(cls, name: str | None = None, home: str | Path | None = None) -> Environment:
        """Read ``infra/env/<name>.toml`` (default: MOELINE_ENV or ``local``; a path to a .toml is taken as is)."""
        name = name or os.environ.get("MOELINE_ENV", "local")
        file = Path(name) if name.endswith(".toml") else REPO / "infra" / "env" / f"{name}.toml"
        if not _is_file(file):
            known = ", ".join(sorted(p.stem for p in (REPO / "infra" / "env").glob("*.toml")))
            raise MoelineError(f"Unknown environment {name[:300]!r}: no such file in infra/env, nor a .toml elsewhere. Known environments: {known}.")
        raw = tomllib.loads(file.read_text())
        root = Path(home or os.environ.get("MOELINE_HOME") or REPO / ".moeline").resolve()
        try:
            prices = Prices.read(raw["prices"], f"infra/env/{file.name}" if file.is_relative_to(REPO) else str(file))
            default = raw["resources"]["default"]
            resources = {stage: Resources(**{**default, **values}) for stage, values in raw["resources"].items()}
            given = {key: raw["paths"][key] for key in ("warehouse", "landing", "artifacts")}
            paths = {key: path if key == "landing" and "://" in path else (root / path).resolve() for key, path in given.items()}
        except (KeyError, TypeError) as error:
            raise MoelineError(f"{file}: missing or unknown setting: {error}. Compare it with infra/env/local.toml.") from None
        tables = _tables_url(file, raw["paths"].get("tables"))
        return cls(
            name=file.stem,
            home=root,
            tables=tables,
            prices=prices,
            resources=resources,
            services=raw.get("services", {}),
            budgets=raw.get("budgets", {}),
            **paths,
        )

    def stage_resources(self, stage: str) -> Resources:
        return self.resources.get(stage, self.resources["default"])

    @property
    def platform(self) -> dict[str, Any]:
        """Addresses of the running platform: the environment file's own, else those written by ``moeline up``; {} if neither."""
        addresses: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            addresses = json.loads((self.home / PLATFORM_FILE).read_text()).get("addresses", {})
        given = {key: self.services[key] for key in GIVEN if self.services.get(key)}
        if "mlflow_uri" in given:  # another server than ours: our password is none of its business
            addresses = {key: value for key, value in addresses.items() if not key.startswith("mlflow_")}
        return {**addresses, **given}


def _tables_url(file: Path, given: Any) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str) or not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/\w[\w.=-]*)+/?", given):
        raise MoelineError(
            f'{file}: tables = {given!r} is no place for tables in a store. Name a bucket and a folder in it, "s3://bucket/tables", or leave it out: then '
            "tables lie in the warehouse."
        )
    return given.rstrip("/")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name no file can have
        return False
