"""Every forecast that came out as a picture (SVG): where its outcome lay in its 95 % interval, by metric, and how many lay inside.

Change here: the picture. Not here: what is judged (calibration.py). One row per metric; the shaded band is the interval, its middle line the
prediction; the intervals of all forecasts are drawn equally wide, each side for itself. Outside is a cross, so that colour says nothing alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_WIDTH, _LEFT, _ROW, _TOP = 760, 150, 70, 46
REACH = 3.0  # half-widths of the interval shown on each side; what lies further is drawn at the edge
_STYLE = (
    "text{font:13px sans-serif;fill:#222}.band{fill:#dbe7f3}.mid{stroke:#5b7fa6}.in{fill:#1f5fa6}.out{stroke:#b3261e;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#eee}.band{fill:#24384d}.mid{stroke:#8fb1d6}.in{fill:#9cc4f2}.out{stroke:#ff8a80}}"
)


def position(row: Mapping[str, Any]) -> float:
    """0: as predicted; -1 and 1: at the ends of the interval; clipped to REACH."""
    away = row["outcome"] - row["predicted"]
    side = row["predicted"] - row["low"] if away < 0 else row["high"] - row["predicted"]
    if away == 0:
        return 0.0
    return max(-REACH, min(REACH, away / side if side > 0 else REACH * (1 if away > 0 else -1)))


def svg(found: Mapping[str, Any]) -> str:
    """The picture of what ``calibration.calibration`` found, as a whole SVG file."""
    scale = (_WIDTH - _LEFT - 20) / (2 * REACH)
    middle = _LEFT + REACH * scale
    height = _TOP + _ROW * max(1, len(found["metrics"])) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{escape(_title(found))}</title><style>{_STYLE}</style>",
        '<text x="10" y="20">Outcomes in their 95 % intervals</text>',
        f'<text x="{middle}" y="38" text-anchor="middle">predicted</text>',
    ]
    for number, metric in enumerate(found["metrics"]):
        y = _TOP + _ROW * number + _ROW / 2
        label = f"{metric['inside']} of {metric['n']} inside ({metric['coverage']:.0%})"
        parts += [
            f'<rect class="band" x="{middle - scale:.1f}" y="{y - 24:.1f}" width="{2 * scale:.1f}" height="48"/>',
            f'<line class="mid" x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 24:.1f}" y2="{y + 24:.1f}"/>',
            f'<text x="10" y="{y - 4:.1f}">{escape(metric["metric"])}</text><text x="10" y="{y + 14:.1f}">{escape(label)}</text>',
        ]
        rows = [row for row in found["forecasts"] if row["metric"] == metric["metric"]]
        for i, row in enumerate(rows):
            parts.append(_mark(row, middle + position(row) * scale, y - 20 + 40 * (i + 0.5) / len(rows)))
    if not found["metrics"]:
        parts.append(f'<text x="10" y="{_TOP + 20}">No forecast has come out yet.</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _title(found: Mapping[str, Any]) -> str:
    return "; ".join(f"{m['metric']}: {m['inside']} of {m['n']} inside, {m['verdict']}" for m in found["metrics"]) or "No forecast has come out yet"


def _mark(row: Mapping[str, Any], x: float, y: float) -> str:
    about = escape(f"{row['run_id']}: {row['metric']} {row['outcome']:.4g}, forecast {row['predicted']:.4g} ({row['low']:.4g} to {row['high']:.4g})")
    if row["inside"]:
        return f'<circle class="in" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{about}</title></circle>'
    return f'<path class="out" d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"><title>{about}</title></path>'
