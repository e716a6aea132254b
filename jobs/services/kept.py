"""What was read of the tables and the recorded results, kept by file in one process: reading again reads only the files that are new.

A file of a Delta table never changes and a recorded result is only ever replaced by another file, so nothing kept can be out of date; which files
there are is asked anew each time. For processes that answer often about thousands of runs (the pages); rows are shared, so nobody may change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.contract import StageResult
from jobs.environment import Environment
from jobs.services import delta, results


class Kept:
    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, tuple[str, ...] | None], dict[str, list[dict[str, Any]]]] = {}
        self._results: dict[tuple[str, str], dict[str, results.Held]] = {}

    def rows(self, env: Environment, name: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """As ``delta.rows``: of the newest version of a table, these columns or all."""
        table = delta.open_table(env, name)
        if table is None:
            return []
        chosen = None if columns is None else tuple(columns)
        held = self._rows.setdefault((delta.uri(env, name), name, chosen), {})
        files = sorted(table.file_uris())
        held.update(delta.rows_by_file(env, name, [f for f in files if f not in held], chosen))
        for gone in held.keys() - set(files):
            del held[gone]
        return [row for file in files for row in held[file]]

    def of_stage(self, env: Environment, stage: str) -> list[StageResult]:
        """As ``results.of_stage``: all recorded results of a stage, oldest first."""
        return results.of_stage(env, stage, self._results.setdefault((str(env.warehouse), stage), {}))
