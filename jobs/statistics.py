"""What became of the documents of every day and source, from the table ``statistics``: for `moeline statistics` and the page about the corpus.

Change here: which days are read, how they look in a terminal, what the page adds up. Not here: what is counted (jobs/stages/summarise.py),
how the page draws it (infra/dashboards/static/corpus.js).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expectations.tables import BREAKDOWNS, FUNNEL
from jobs.contract import MoelineError, TableVersion, parse_day
from jobs.environment import Environment
from jobs.services import delta, results

if TYPE_CHECKING:
    import pyarrow as pa

_RULES = 5
_BAR = 40
_MEASURES = ("documents", "bytes", "tokens")
_MOST_KEPT = 4096  # days; a day of some sources has 100 kB
_KEPT: dict[tuple[str, TableVersion, str], pa.Table] = {}
Row = Mapping[str, Any]


def read(env: Environment, first: str | None = None, last: str | None = None, source: str | None = None) -> list[dict[str, Any]]:
    """Rows of the days ``first`` to ``last`` (both included), as each was summarised last. Raises MoelineError when there are none."""
    low, high = (parse_day(day) if day else None for day in (first, last))
    newest = {str(r.interval): r for r in results.of_stage(env, "summarise")}
    days = [day for day in sorted(newest) if (low is None or day >= low) and (high is None or day <= high)]
    found: list[dict[str, Any]] = []
    for day in days:
        found += _of_day(env, newest[day].table("statistics"), day).to_pylist()
    rows = [row for row in found if source is None or row["source"] == source]
    if not rows:
        counted = f"days counted so far: {', '.join(sorted(newest)) or 'none'}"
        there = f"sources counted: {', '.join(sorted({row['source'] for row in found}))}" if found else counted
        raise MoelineError(f"No statistics of {source or 'any source'} for the days asked for: {there}. `moeline stage summarise --interval DAY` counts a day.")
    return rows


def _of_day(env: Environment, version: TableVersion, day: str) -> pa.Table:
    """Rows of a day, kept in memory: at one version they never change, and a page of 200 days would open the table 200 times."""
    key = (str(env.warehouse), version, day)
    if key not in _KEPT:
        if len(_KEPT) >= _MOST_KEPT:
            _KEPT.clear()
        _KEPT[key] = delta.dataset(env, version, where_in=[day]).to_table()
    return _KEPT[key]


def counted(env: Environment) -> dict[str, list[str]]:
    """The ``days`` that were summarised and their ``sources``, each sorted: what can be asked for."""
    newest = {str(r.interval): r for r in results.of_stage(env, "summarise")}
    sources = {source for day, r in newest.items() for source in _of_day(env, r.table("statistics"), day)["source"].unique().to_pylist()}
    return {"days": sorted(newest), "sources": sorted(sources)}


def overview(env: Environment, first: str | None = None, last: str | None = None, source: str | None = None) -> dict[str, Any]:
    """What the page about the corpus shows of the days ``first`` to ``last``, of one source or all of them.

    ``funnel``: per day and source, each end with its documents, bytes and tokens. ``breakdowns``: per breakdown the same sums per bucket over
    everything asked for, most documents first. ``days`` and ``sources``: what there is, asked for or not. Nothing counted: all of them empty.
    """
    there = counted(env)
    rows = read(env, first, last, source) if there["days"] else []
    funnel: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["what"] in FUNNEL:
            of_day = funnel.setdefault((row["interval"], row["source"]), {"day": row["interval"], "source": row["source"]})
            of_day[row["what"]] = {measure: row[measure] or 0 for measure in _MEASURES}
    breakdowns = {what: _by_bucket(row for row in rows if row["what"] == what) for what in BREAKDOWNS}
    quarantined = sum(row["documents"] for row in rows if row["what"] == "quarantined")
    return {**there, "funnel": [funnel[key] for key in sorted(funnel)], "breakdowns": breakdowns, "quarantined": quarantined}


def _by_bucket(rows: Iterable[Row]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        sums = found.setdefault(row["bucket"], {"bucket": row["bucket"], **dict.fromkeys(_MEASURES, 0)})
        for measure in _MEASURES:
            sums[measure] += row[measure] or 0
    return sorted(found.values(), key=lambda row: (-row["documents"], row["bucket"]))


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
