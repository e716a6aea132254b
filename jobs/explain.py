"""moeline explain DOC_ID: the story of one document, from the file it landed in to the sequences that hold it, or every rule it broke.

Reads recorded results only, so a half-done day never shows. Change here: what the story tells. Not here: what the rows mean
(expectations/tables.py).
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.config import WRITERS
from jobs.contract import MoelineError, TableVersion
from jobs.decontamination import split_pieces
from jobs.environment import Environment
from jobs.services import delta, results
from jobs.terminal import printed

if TYPE_CHECKING:
    import pyarrow.compute as pc

MIN_PREFIX = 6  # of a doc_id; shorter ones would meet strangers
WIDTH = 110
MAX_COPIES = 20  # documents listed that were dropped for this one
_SHOWN = 60
MAX_PASSAGES = 8  # lines listed that a document lost, and passages that were cut out of it
_ALL = (
    "documents", "clean_documents", "rejections", "unique_documents", "duplicates", "repeated_passages", "training_documents", "contamination",
    "benchmark_items", "sequences",
)  # fmt: skip


def explain(env: Environment, asked: str, *, recipe: Any = None) -> dict[str, Any]:
    """What ``moeline explain --json`` prints. ``asked``: a doc_id, the beginning of one, or a uri.

    ``recipe`` (a Recipe) narrows the story to the days as this recipe prepared them; else each day as it was prepared last.
    Raises MoelineError when no recorded day holds such a document, or several begin like this.
    """
    tables = {name: _days(env, name, recipe) for name in _ALL}
    landed = _find(env, tables["documents"], asked)
    if not landed:
        days = len(tables["documents"])
        raise MoelineError(
            f"No document {asked!r} in {days} recorded days: neither a doc_id, nor the beginning of one ({MIN_PREFIX} or more letters), nor a uri."
        )
    if len({row["doc_id"] for row in landed}) > 1:
        found = ", ".join(f"{row['doc_id']} ({row['interval']})" for row in landed[:5])
        raise MoelineError(f"{asked!r} means {len(landed)} documents: {found}{' ...' if len(landed) > 5 else ''}. Give one doc_id.")
    doc_id = landed[0]["doc_id"]
    return {"doc_id": doc_id, "days": [_day(env, tables, row) for row in landed], "dropped_for_it": _dropped_for(env, tables["duplicates"], doc_id)}


def _days(env: Environment, table: str, recipe: Any) -> dict[str, TableVersion]:
    """Day -> version at which the last recorded result (of this recipe's config) wrote the day."""
    writer = WRITERS[table]
    config = None if recipe is None else recipe.config_hash(writer)
    known = [r for r in results.of_stage(env, writer) if r.interval and table in r.outputs and (config is None or r.config_hash == config)]
    return {str(r.interval): r.table(table) for r in sorted(known, key=lambda r: r.table(table))}


def _rows(env: Environment, version: TableVersion, day: str, where: pc.Expression, columns: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = delta.dataset(env, version, where_in=[day]).to_table(filter=where, columns=list(columns)).to_pylist()
    return found


def _find(env: Environment, days: Mapping[str, TableVersion], asked: str) -> list[dict[str, Any]]:
    """Landed documents meant by ``asked``, by day."""
    import pyarrow.compute as pc

    where = (pc.field("doc_id") == asked) | (pc.field("uri") == asked)
    if len(asked) >= MIN_PREFIX:
        where |= pc.starts_with(pc.field("doc_id"), pattern=asked)
    columns = ("doc_id", "interval", "source", "uri", "licence", "n_bytes", "landed_file")
    return [{**row, "table": str(version)} for day, version in sorted(days.items()) for row in _rows(env, version, day, where, columns)]


def _day(env: Environment, tables: Mapping[str, Mapping[str, TableVersion]], landed: Mapping[str, Any]) -> dict[str, Any]:
    """What every stage did with the document on one day; a stage that has not run that day is None."""
    import pyarrow.compute as pc

    day, mine = landed["interval"], pc.field("doc_id") == landed["doc_id"]

    def rows(table: str, *columns: str) -> list[dict[str, Any]] | None:
        version = tables[table].get(day)
        return None if version is None else _rows(env, version, day, mine, columns)

    story: dict[str, Any] = {"landed": dict(landed), "rejected": rows("rejections", "rule", "value", "threshold", "detail")}
    cleaned = rows("clean_documents", "n_bytes", "scores")
    story["cleaned"] = {"n_bytes": cleaned[0]["n_bytes"], "scores": json.loads(cleaned[0]["scores"])} if cleaned else cleaned
    story["duplicate_of"] = rows("duplicates", "kept_doc_id", "kept_interval", "jaccard", "scope", "cluster_size")
    story["repeated"] = _repeated(rows("repeated_passages", "start", "characters", "kept_interval", "kept_doc_id"), rows("clean_documents", "text"))
    split = rows("training_documents", "split", "piece_starts", "text")
    story["split"] = split[0]["split"] if split else split
    story["pieces"] = len(split[0]["piece_starts"] or ()) if split else 0  # 0: the document is whole, or out
    story["cut"] = _cut(rows("unique_documents", "text"), split[0]) if story["pieces"] else []
    story["contaminated"] = rows("contamination", "benchmark", "item_id", "ngram", "action", "rule", "removed_characters")
    story["benchmark_items"] = rows("benchmark_items", "benchmark", "item_id")
    sequences = tables["sequences"].get(day)
    story["sequences"] = None if sequences is None else pieces_of(env, sequences, day, landed["doc_id"])
    story["trainings"] = list(_trainings(env, day, landed["doc_id"]))
    return story


def _repeated(lost: Sequence[Mapping[str, Any]] | None, cleaned: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The passages the document lost because others hold them, in the order of its text."""
    whole = cleaned[0]["text"] if cleaned else ""
    ordered = sorted(lost or (), key=lambda row: row["start"])
    return [{**row, "text": whole[row["start"] : row["start"] + row["characters"]]} for row in ordered]


def _cut(unique: Sequence[Mapping[str, Any]] | None, trained: Mapping[str, Any]) -> list[str]:
    """What decontamination cut out of the document: its text between the pieces that are left, which stand in it in order."""
    if not unique:
        return []
    found, at, whole = [], 0, unique[0]["text"]
    for piece in split_pieces(trained["text"], trained["piece_starts"]):
        place = max(whole.find(piece, at), at)
        found.append(whole[at:place])
        at = place + len(piece)
    return [passage for passage in (*found, whole[at:]) if passage]


def pieces_of(env: Environment, version: TableVersion, day: str, doc_id: str) -> list[dict[str, Any]]:
    """Every piece of the document in the day's sequences: where it starts and how many tokens it has. Raises MoelineError when they are removed."""
    found = []
    columns = ["sequence_id", "split", "doc_ids", "boundaries", "n_tokens"]
    for batch in delta.dataset(env, version, where_in=[day]).to_batches(columns=columns):
        for at in _holding(batch.column("doc_ids"), doc_id):
            row = batch.slice(at, 1).to_pylist()[0]
            ends = [*row["boundaries"][1:], row["n_tokens"]]
            found += [
                {"table": str(version), "sequence_id": row["sequence_id"], "split": row["split"], "start": start, "tokens": end - start}
                for piece, start, end in zip(row["doc_ids"], row["boundaries"], ends, strict=True)
                if piece == doc_id
            ]
    return sorted(found, key=lambda piece: (piece["split"], piece["sequence_id"], piece["start"]))


def _holding(lists: Any, value: str) -> list[int]:
    """Positions of the lists that hold ``value``."""
    import pyarrow.compute as pc

    hits = pc.equal(pc.list_flatten(lists), value)
    return sorted(set(pc.filter(pc.list_parent_indices(lists), hits).to_pylist()))


def _trainings(env: Environment, day: str, doc_id: str) -> Iterator[dict[str, Any]]:
    """Finished trainings whose training split held the document. What a run drew of it depends on its tokens."""
    pieces: dict[TableVersion, int | None] = {}
    for training in results.of_stage(env, "train"):
        read = training.inputs.get("sequences")
        if read is None:
            continue
        up_to = TableVersion.parse(read)
        days = results.days_by_version(env, "pack", "sequences", up_to, results.writer_of(env, up_to).config_hash)
        version = next((v for v, names in days.items() if day in names), None)
        if version is None:
            continue
        if version not in pieces:
            try:
                pieces[version] = sum(piece["tokens"] for piece in pieces_of(env, version, day, doc_id) if piece["split"] == "train")
            except MoelineError:  # removed, because another document of the day was forgotten
                pieces[version] = None
        if pieces[version] != 0:
            yield {
                "run_key": training.run_key, "recipe": training.recipe, "finished_at": training.finished_at, "sequences": str(version),
                "tokens": pieces[version], "trained_tokens": training.metrics.get("tokens"), "corpus_tokens": training.metrics.get("corpus_tokens"),
            }  # fmt: skip


def _dropped_for(env: Environment, days: Mapping[str, TableVersion], doc_id: str) -> list[dict[str, Any]]:
    """Copies on any day that were dropped because this document was kept."""
    import pyarrow.compute as pc

    columns = ("doc_id", "interval", "jaccard", "scope")
    return [row for day, version in sorted(days.items()) for row in _rows(env, version, day, pc.field("kept_doc_id") == doc_id, columns)]


def render(story: Mapping[str, Any]) -> str:
    """The story on one screen. Texts of the corpus are strangers' texts: control characters are shown, not sent to the terminal."""
    lines = [f"document {story['doc_id']}"]
    for day in story["days"]:
        landed = day["landed"]
        lines += ["", f"{landed['interval']}  landed     {landed['landed_file']}, {landed['n_bytes']:,} bytes, source {landed['source']} ({landed['table']})"]
        lines += [_line("", f"uri {landed['uri']}, licence {landed['licence'] or 'unknown'}")]
        lines += list(_stages(day))
    if copies := story["dropped_for_it"]:
        lines += ["", f"kept in place of {len(copies)} other documents:"]
        lines += [_line("", f"{c['doc_id']} of {c['interval']}: {c['scope']}, Jaccard {c['jaccard']:.3f}") for c in copies[:MAX_COPIES]]
        lines += [_line("", f"... and {len(copies) - MAX_COPIES} more (--json lists all)")] if len(copies) > MAX_COPIES else []
    return printed(lines)


def _line(stage: str, text: str) -> str:
    return f"{'':10}  {stage:10} {text}"


def _short(text: str) -> str:
    """A passage on one line: its beginning and its end."""
    squeezed = " ".join(text.split())
    return squeezed if len(squeezed) <= _SHOWN else f"{squeezed[: _SHOWN // 2]} ... {squeezed[-_SHOWN // 2 :]}"


def _stages(day: Mapping[str, Any]) -> Iterator[str]:
    """What came after landing, until the document is out or at the end of what has run."""
    if day["rejected"] is None:
        yield _line("clean", "has not run for this day")
        return
    for broken in day["rejected"]:
        limit = "" if broken["value"] is None else f" {broken['value']:.4g}, limit {broken['threshold']:.4g}"
        yield _line("rejected", f"{broken['rule']}{limit}{' ' + broken['detail'] if broken['detail'] else ''}")
    if day["cleaned"]:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in sorted(day["cleaned"]["scores"].items()))
        yield _line("clean", f"kept, {day['cleaned']['n_bytes']:,} bytes after normalising")
        yield from (_line("", part) for part in textwrap.wrap(f"measured: {scores}", WIDTH))
    else:
        return
    for kept in day["duplicate_of"] or ():
        yield _line("duplicate", f"of {kept['kept_doc_id']} of {kept['kept_interval']}: {kept['scope']}, Jaccard {kept['jaccard']:.3f}")
    if repeated := day["repeated"]:
        total = sum(row["characters"] for row in repeated)
        yield _line("shortened", f"{total:,} characters in {len(repeated)} passages that other documents hold already, or that it says twice")
        yield from (_line("", f"held by {r['kept_doc_id']} of {r['kept_interval']}: {_short(r['text'])}") for r in repeated[:MAX_PASSAGES])
        yield from [_line("", f"... and {len(repeated) - MAX_PASSAGES} more (--json lists all)")] if len(repeated) > MAX_PASSAGES else []
    for hit in day["contaminated"] or ():
        rule = f" by rule {hit['rule']}" if hit["rule"] else ""
        yield _line("overlaps", f"{hit['benchmark']} item {hit['item_id']}{rule}: {hit['action']} ({hit['ngram']})")
    if day["pieces"]:
        yield _line("cut", f"{day['contaminated'][0]['removed_characters']:,} characters removed, {day['pieces']} pieces left, packed apart")
        yield from (_line("", f"cut out: {_short(passage)}") for passage in day["cut"][:MAX_PASSAGES])
    if items := day["benchmark_items"]:
        yield _line("asked", f"{len(items)} benchmark items were made of it: {', '.join(sorted({i['benchmark'] for i in items}))}")
    if day["split"]:
        yield _line("split", day["split"])
    for piece in day["sequences"] or ():
        yield _line(
            "packed", f"sequence {piece['sequence_id']} ({piece['split']}), tokens {piece['start']} to {piece['start'] + piece['tokens']} ({piece['table']})"
        )
    for training in day["trainings"]:
        drawn = f"{training['trained_tokens']:,} of {training['corpus_tokens']:,} tokens drawn" if training["corpus_tokens"] else "share drawn unknown"
        held = (
            "its tokens are not known any more (the day's rows were removed)" if training["tokens"] is None else f"{training['tokens']} of its tokens; {drawn}"
        )
        yield _line("trained", f"{training['recipe']} {training['run_key'][:12]} at {training['finished_at']}: {held}")
