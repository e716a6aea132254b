"""What became of the documents of every day and source, from the table ``statistics``: for `moeline statistics`.

Change here: which days are read, how they look in a terminal. Not here: what is counted (jobs/stages/summarise.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expectations.tables import FUNNEL
from jobs.contract import MoelineError, parse_day
from jobs.environment import Environment
from jobs.services import delta, results

_RULES = 5
_BAR = 40
Row = Mapping[str, Any]


def read(env: Environment, first: str | None = None, last: str | None = None, source: str | None = None) -> list[dict[str, Any]]:
    """Rows of the days ``first`` to ``last`` (both included), as each was summarised last. Raises MoelineError when there are none."""
    low, high = (parse_day(day) if day else None for day in (first, last))
    newest = {str(r.interval): r for r in results.of_stage(env, "summarise")}
    days = [day for day in sorted(newest) if (low is None or day >= low) and (high is None or day <= high)]
    found: list[dict[str, Any]] = []
    for day in days:
        found += delta.dataset(env, newest[day].table("statistics"), where_in=[day]).to_table().to_pylist()
    rows = [row for row in found if source is None or row["source"] == source]
    if not rows:
        counted = f"days counted so far: {', '.join(sorted(newest)) or 'none'}"
        there = f"sources counted: {', '.join(sorted({row['source'] for row in found}))}" if found else counted
        raise MoelineError(f"No statistics of {source or 'any source'} for the days asked for: {there}. `moeline stage summarise --interval DAY` counts a day.")
    return rows


def render(rows: Sequence[Row]) -> str:
    """One screen: the funnel by day and source, then rules, languages and lengths of all of them together."""
    width = max(len("source"), *(len(_plain(row["source"])) for row in rows))
    lines = [f"{'day':<12}{'source':<{width}}" + "".join(f"{what:>14}" for what in FUNNEL) + f"{'tokens':>14}"]
    for day, source in sorted({(row["interval"], row["source"]) for row in rows if row["what"] == "landed"}):
        own = {row["what"]: row for row in rows if (row["interval"], row["source"]) == (day, source) and row["what"] in FUNNEL}
        counts = "".join(f"{own[what]['documents']:>14,}" for what in FUNNEL)
        lines.append(f"{day:<12}{_plain(source):<{width}}{counts}{own['kept']['tokens'] or 0:>14,}")
    quarantined = sum(row["documents"] for row in rows if row["what"] == "quarantined")
    lines += [f"{quarantined:,} records could not be read."] if quarantined else []
    for title, what, unknown in (
        ("rejected by rule (a document may break several)", "rejected_by_rule", ""),
        ("languages kept", "kept_by_language", "not measured"),
    ):
        totals = sorted(_totals(rows, what).items(), key=lambda item: (-item[1], item[0]))[:_RULES]
        lines += [f"\n{title}:", *(f"  {count:>10,}  {_plain(bucket) or unknown}" for bucket, count in totals)] if totals else []
    lengths = {int(bucket): count for bucket, count in _totals(rows, "kept_by_bytes").items()}
    lines += ["\nlength of kept documents, bytes:", *_histogram(lengths)] if lengths else []
    return "\n".join(lines) + "\n"


def _totals(rows: Iterable[Row], what: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        if row["what"] == what:
            found[row["bucket"]] = found.get(row["bucket"], 0) + row["documents"]
    return found


def _histogram(lengths: Mapping[int, int]) -> list[str]:
    most, length, lines = max(lengths.values()), min(lengths), []
    while length <= max(lengths):
        count = lengths.get(length, 0)
        lines.append(f"  {length:>12,}+ {'#' * -(-count * _BAR // most):<{_BAR}} {count:,}")
        length *= 2
    return lines


def _plain(text: str) -> str:
    """Text of the data as a terminal may show it: no control characters, and not for ever."""
    return "".join(c if c.isprintable() else "?" for c in text)[:60]
