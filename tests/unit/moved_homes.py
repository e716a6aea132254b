"""Environment files like local.toml with other paths and services."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.environment import REPO


def environment_file(file: Path, services: dict[str, Any] | None = None, **paths: Path | str) -> Path:
    """Write ``file``: local.toml, its ``paths`` (warehouse, landing, artifacts) and ``services`` replaced."""
    lines = (REPO / "infra" / "env" / "local.toml").read_text().splitlines()
    for name, path in paths.items():
        lines = [f"{name} = {json.dumps(str(path))}" if line.startswith(f"{name} =") else line for line in lines]
    file.write_text("\n".join(lines) + "\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in (services or {}).items()))
    return file
