"""What the stages were asked for: every config under its hash, beside the results, written once. What ran is known after its recipe has changed.

Change here: where configs are kept, how two are held against each other. Not here: what a config is (jobs/config.py), its hash (contract.config_hash).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.contract import canonical
from jobs.environment import Environment
from jobs.services import results

DEFAULT = "default"  # a field that was added later and is not asked for is left out of an identity, so out of what is kept


def _file(env: Environment, name: str) -> Path:
    return env.warehouse / "_results" / "configs" / f"{name}.json"


def keep(env: Environment, name: str, asked: Mapping[str, Any]) -> None:
    """Keep the configs by stage that the hash ``name`` stands for. The same name always holds the same, so what is there stays."""
    if not (file := _file(env, name)).exists():
        results.write_whole(file, json.dumps({stage: canonical(config) for stage, config in asked.items()}, sort_keys=True).encode())


def find(env: Environment, name: str) -> dict[str, Any] | None:
    """The configs by stage behind a result's ``config_hash``; None where an older version, which kept none, recorded it."""
    try:
        found: dict[str, Any] = json.loads(_file(env, name).read_text())
    except FileNotFoundError:
        return None
    return found


def flat(config: Any, name: str = "") -> dict[str, Any]:
    """Settings by dotted name: ``{"train.model.d_model": 256}``. Lists are values, an empty mapping as well."""
    if not isinstance(config, Mapping) or (name and not config):
        return {name: config}
    return {dotted: value for key, part in config.items() for dotted, value in flat(part, f"{name}.{key}" if name else str(key)).items()}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows {setting, a, b} where two configs by stage differ, by name. A setting only one of them names has its default in the other."""
    ours, theirs = flat(a), flat(b)
    rows = ({"setting": name, "a": ours.get(name, DEFAULT), "b": theirs.get(name, DEFAULT)} for name in sorted(ours.keys() | theirs.keys()))
    return [row for row in rows if row["a"] != row["b"]]
