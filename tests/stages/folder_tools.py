"""The tools a stage gets, kept in a folder: for stages run in this process by tests."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class FolderTools:
    """jobs.contract.Tools over one folder, for one process."""

    root: Path
    session: Any = None
    interval: str | None = "2026-11-01"
    recipe: str = "tiny"
    run_key: str = "0" * 32
    gauntlet_data: str | None = None
    reported: list[tuple[float, float, str]] = field(default_factory=list)

    @property
    def scratch(self) -> str:
        return self.artifact_dir("scratch")

    @property
    def spark(self) -> Any:
        return self.session

    def materialise(self, frame: Any) -> Any:
        path = str(Path(self.scratch) / uuid.uuid4().hex)
        frame.write.parquet(path)
        return self.session.read.schema(frame.schema).parquet(path)

    def progress(self, done: float, total: float, text: str = "") -> None:
        self.reported.append((done, total, text))

    def artifact_dir(self, name: str) -> str:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def put_once(self, name: str, make: Callable[[], bytes]) -> bytes:
        file = self.root / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(make())
        return file.read_bytes()

    def cost_so_far(self) -> float:
        return 0.0

    def price(self, *, core_seconds: float = 0.0, gib_seconds: float = 0.0, gpu_seconds: float = 0.0) -> float:
        return 0.0
