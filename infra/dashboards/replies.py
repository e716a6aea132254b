"""What all pages ask for and answer alike: a run key, JSON in which missing numbers look missing, rows as a CSV file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Query, Response

RunKey = Annotated[str, Query(pattern=r"^[A-Za-z0-9-]{1,64}$")]


def json_reply(value: Any) -> Response:
    return Response(as_json(value), media_type="application/json")


def csv_reply(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], name: str) -> Response:
    """Rows as the file ``name``.csv, which a spreadsheet takes for text and never for formulas."""
    from jobs.services import trend

    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(trend.as_csv(rows, columns), media_type="text/csv; charset=utf-8", headers=headers)


def as_json(value: Any) -> str:
    """JSON in which NaN and infinities are null: JSON has neither, and a missing number must look missing."""
    try:
        return json.dumps(value, default=str, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_finite(item) for item in value]
    return value
