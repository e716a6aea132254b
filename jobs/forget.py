"""moeline forget DOC_ID: the document leaves every table, every older version of them and every training set to come; what saw it is named.

In this order, each step found done by the next call, so that a kill at any moment is mended by the same command: the request is written down with
what only the rows can tell (days, trainings, copies); the days that held it, or relied on it, are prepared again; answers to items made of it are
published without them; files of older versions are removed; every file is searched.
Change here: the order, what is told. Not here: what is left of a document (purge.py), who saw it (seen_by.py), the list (services/tombstones.py).
"""

from __future__ import annotations

import argparse
import datetime as dt
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobs import purge, recipes, seen_by, stale
from jobs.config import PREPARE_STAGES, Recipe
from jobs.contract import MoelineError
from jobs.environment import Environment
from jobs.services import landing, results, table_migrations, tombstones, unfinished_home
from jobs.services.locks import locked
from jobs.services.tombstones import Request
from jobs.terminal import printed

ABOUT = "Forget a document on request: it leaves every table, older versions included, and every future training set; the trainings that saw it are listed."
_SHOWN = 10
_PASSES = 4  # preparing a day again can make another one stale: one that relied on it
Echo = Callable[[str], None]


def add_to(command: argparse.ArgumentParser) -> None:
    command.add_argument("document", nargs="?", help="whole doc_id (`moeline explain` finds it)")
    command.add_argument("--uri", help="instead: the document landed under this uri, and whatever lands under it later")
    command.add_argument("--all", action="store_true", help="with --uri: all documents that landed under it")
    command.add_argument("--why", default="", help="kept with the request; do not quote the document")
    command.add_argument("--with-copies", action="store_true", help="its exact and near copies too (listed without this option)")
    command.add_argument("--here", action="store_true", help="prepare the days again in this process, without Airflow")
    command.add_argument("--check", action="store_true", help="only search every file for the document; exit status 1 when something is left")
    command.add_argument("--gauntlet-data", help="folder with Foundry's task files, for recipes whose days were prepared with it (default: GAUNTLET_DATA)")


def act(arguments: argparse.Namespace, env: Environment, echo: Echo) -> dict[str, Any]:
    """``moeline forget`` as asked on the command line."""
    if bool(arguments.document) == bool(arguments.uri):
        raise MoelineError("A document to forget is named by its doc_id or by --uri, one of the two.")
    if arguments.check:
        if not arguments.document:
            raise MoelineError("--check searches for a doc_id. `moeline explain URI` tells it as long as the document is there.")
        found = check(env, arguments.document)
    else:
        found = forget(
            env, arguments.document, uri=arguments.uri, all_of_uri=arguments.all, why=arguments.why, with_copies=arguments.with_copies, here=arguments.here,
            gauntlet_data=arguments.gauntlet_data, echo=echo,
        )  # fmt: skip
    if not arguments.json:
        print(render(found), end="")
    return found


def forget(
    env: Environment, doc_id: str | None, *, uri: str | None = None, all_of_uri: bool = False, why: str = "", with_copies: bool = False, here: bool = False,
    gauntlet_data: str | None = None, echo: Echo = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Forget a document (or all that landed under ``uri``) and return what ``moeline forget --json`` prints; ``exit_status`` 0 means it is gone.

    Where days have to be prepared again and neither the platform is up nor ``here`` was asked for, ``to_do`` names the commands and nothing is
    removed yet. Raises MoelineError, having written nothing, for a document that is not known or not one.
    """
    unfinished_home.refuse(env)
    table_migrations.require_current(env)
    with locked(env, "forget"):
        request = _remember(env, _asked(env, doc_id, uri, all_of_uri), why, with_copies)
        prepared, to_do, unknown = _prepare_again(env, here, gauntlet_data, echo)
        written, removed = [], 0
        if not to_do:
            written = purge.clear_runs(env, request)
            doomed = purge.superseded(env, request)
            request = tombstones.keep(env, replace(request, unreadable=purge.unreadable(env, doomed)))  # before: nothing could tell it afterwards
            removed = purge.remove(env, doomed)
            request = tombstones.keep(env, replace(request, removed_at=_now()))
        told = _told(env, request)
        done = {"prepared_again": prepared, "to_do": to_do, "unknown_recipes": unknown, "written_again": written, "removed_files": removed}
        return told | done | ({"exit_status": 1} if to_do else {})


def check(env: Environment, doc_id: str) -> dict[str, Any]:
    """What is left of a document: every file of every table is read. ``exit_status`` 0 means nothing is."""
    _whole(doc_id)
    request = next((r for r in tombstones.requests(env) if doc_id in r.places), None)
    return _told(env, replace(request or Request(doc_id, {}, ""), places={doc_id: request.places[doc_id] if request else []}))


# -- the request ------------------------------------------------------------------------------------------------------------


def _whole(doc_id: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{32}", doc_id):
        raise MoelineError(
            f"{doc_id!r} is not a whole doc_id (32 hex digits), and forgetting takes nothing less: `moeline explain {doc_id}` shows the document it means."
        )


def _asked(env: Environment, doc_id: str | None, uri: str | None, all_of_uri: bool) -> Request:
    """The request with the documents it means; raises MoelineError when there is none, or no one."""
    import pyarrow.compute as pc

    if doc_id is not None:
        _whole(doc_id)
        before = next((request for request in tombstones.requests(env) if doc_id in request.places), None)
        request = before or Request(doc_id, {}, _now())
        where = pc.field("doc_id") == doc_id
    else:
        name = f"uri-{tombstones.hidden(str(uri))[:32]}"
        before = tombstones.find(env, name)
        request = before or Request(name, {}, _now(), uri=tombstones.hidden(str(uri)))
        where = pc.field("uri") == str(uri).strip()
    found = _places(env, where)
    if not found.places and before is None:
        days = len({r.interval for r in results.of_stage(env, "ingest")})
        raise MoelineError(f"No document {(doc_id or uri)!r} in any recorded day ({days}), nor was it forgotten before. Nothing was changed.")
    if uri is not None and not all_of_uri and len({*found.places, *request.places}) > 1 and not set(found.places) <= set(request.places):
        listed = ", ".join(f"{one} ({', '.join(days)})" for one, days in sorted(found.places.items()))
        raise MoelineError(f"{len(found.places)} documents landed under {uri!r}: {listed}. Give one doc_id, or --all for all of them. Nothing was changed.")
    return _with(request, found)


def _places(env: Environment, where: Any) -> Request:
    """The documents that meet ``where``, with their days and files."""
    places: dict[str, set[str]] = {}
    files: set[str] = set()
    for day, rows in seen_by.landed(env, ["doc_id", "landed_file"], where):
        for row in rows.to_pylist():
            places.setdefault(row["doc_id"], set()).add(day)
            files.add(row["landed_file"])
    return Request("", {one: sorted(days) for one, days in places.items()}, "", landed=sorted(files))


def _with(request: Request, more: Request) -> Request:
    places = {one: sorted({*request.places.get(one, ()), *more.places.get(one, ())}) for one in sorted({*request.places, *more.places})}
    return replace(request, places=places, landed=sorted({*request.landed, *more.landed}))


def _remember(env: Environment, request: Request, why: str, with_copies: bool) -> Request:
    """Write the request down, with all that only the rows can tell."""
    import pyarrow.compute as pc

    copies = {copy["doc_id"]: copy for copy in (*request.copies, *seen_by.copies(env, request.doc_ids))}
    if with_copies and copies:
        request = _with(request, _places(env, pc.field("doc_id").isin(sorted(copies))))
    trainings = seen_by.trainings(env, request.places)
    return tombstones.keep(env, replace(request, why=why or request.why, copies=list(copies.values()), trainings=trainings))


# -- the days ---------------------------------------------------------------------------------------------------------------


def _prepare_again(env: Environment, here: bool, gauntlet_data: str | None, echo: Echo) -> tuple[list[str], list[str], list[str]]:
    """Prepare again the days of every recipe that held something forgotten or relied on it.

    Returns what was prepared ("recipe day"), the commands that are left to a person, and recipes that are not known any more.
    """
    known, unknown = _recipes(env, gauntlet_data)
    prepared: list[str] = []
    for _ in range(_PASSES):
        days = {recipe.name: found for recipe in known if (found := _stale(env, recipe))}
        if not days:
            return prepared, [], unknown
        if not here and not env.platform.get("airflow_url"):
            return prepared, [f"moeline backfill --stale --recipe {name}" for name in sorted(days)], unknown
        for recipe in known:
            if recipe.name in days:
                echo(f"{recipe.name}: preparing {', '.join(days[recipe.name])} again")
                _prepare(env, recipe, days[recipe.name], here, gauntlet_data, echo)
                prepared += [f"{recipe.name} {day}" for day in days[recipe.name]]
    left = {recipe.name: _stale(env, recipe) for recipe in known}
    return prepared, [f"moeline backfill --stale --recipe {name}" for name, found in sorted(left.items()) if found], unknown


def _recipes(env: Environment, gauntlet_data: str | None) -> tuple[list[Recipe], list[str]]:
    """The recipes that prepared anything here, and the names that no recipe has any more."""
    known, unknown = [], []
    for name in sorted({result.recipe for stage in PREPARE_STAGES for result in results.of_stage(env, stage)}):
        try:
            known.append(recipes.load(name, gauntlet_data=gauntlet_data, home=env.home))
        except MoelineError:
            unknown.append(name)
    return known, unknown


def _stale(env: Environment, recipe: Recipe) -> list[str]:
    """Days that are stale for what was forgotten; days of other rules alone are not this command's."""
    return [day.interval for day in stale.stale_days(env, recipe) if day.forgotten or day.items or day.lost or day.unfinished]


def _prepare(env: Environment, recipe: Recipe, days: Sequence[str], here: bool, gauntlet_data: str | None, echo: Echo) -> None:
    if here:
        from jobs import run

        for day in days:
            for stage in PREPARE_STAGES:
                run.run_stage(env, stage, recipe, interval=day, gauntlet_data=gauntlet_data)
        return
    from jobs import launch

    launch.backfill(env, days, recipe=recipe.name, reprocess=True, echo=echo, gauntlet_data=gauntlet_data)


# -- what is told -----------------------------------------------------------------------------------------------------------


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _told(env: Environment, request: Request) -> dict[str, Any]:
    """The state of a request: what is left, who saw it, what cannot be rebuilt."""
    left = purge.left(env, request.doc_ids)
    running = [f"{a['stage']} {a['run_key']}" for a in purge.running_attempts(env) if not request.removed_at or _iso(a["started_at"]) < request.removed_at]
    there = [file for file in request.landed if landing.is_there(env, file)]
    tokenizers = seen_by.tokenizers(env, request.days)
    gone = not left and not running
    return {
        "doc_ids": list(request.doc_ids), "days": list(request.days), "why": request.why, "asked_at": request.asked_at, "landing_files": there,
        "trainings": request.trainings, "copies": [c for c in request.copies if c["doc_id"] not in request.places], "tokenizers": tokenizers,
        "unreadable": request.unreadable, "left": left, "running": running, "gone": gone, "exit_status": 0 if gone else 1,
    }  # fmt: skip


def _iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


def render(found: Mapping[str, Any]) -> str:
    """The outcome on one screen; names of files and recipes are shown, not sent to the terminal, where they are no plain text."""
    lines = [f"{'GONE' if found['gone'] else 'NOT GONE'}: {', '.join(found['doc_ids'])}"]
    lines += [f"  days that held it: {', '.join(found['days']) or 'none known'}"]
    lines += [f"  prepared again: {', '.join(found['prepared_again'])}"] if found.get("prepared_again") else []
    lines += [f"  files of older versions removed: {found['removed_files']}"] if found.get("removed_files") else []
    lines += [f"  published again without it: {', '.join(found['written_again'])}"] if found.get("written_again") else []
    lines += _list("still held by", [f"{row['where']}: {row['file']}" for row in found["left"]])
    lines += _list("still running on what was there before; check again when it has ended", found["running"])
    lines += _list("to do, then this command again", found.get("to_do", ()))
    lines += _list("recipes that are not known any more; their days stay as they are", found.get("unknown_recipes", ()))
    lines += _list("training runs that saw it", [_training(run) for run in found["trainings"]]) or ["  no training run saw it"]
    lines += _list("copies, which are documents of their own (--with-copies forgets them too)", [_copy(c) for c in found["copies"]])
    lines += _list("can no longer be rebuilt", [row["what"] for row in found["unreadable"]])
    lines += _list("tokenizers trained on a day that held it (their vocabulary may hold words of it; they stay)", found["tokenizers"])
    lines += _list("landing files that hold it (yours: moeline never changes them; it will not come in again)", found["landing_files"])
    return printed(lines)


def _list(title: str, rows: Iterable[str]) -> list[str]:
    rows = list(rows)
    if not rows:
        return []
    return [
        f"  {title}:",
        *(f"    {row}" for row in rows[:_SHOWN]),
        *([f"    ... and {len(rows) - _SHOWN} more (--json lists all)"] if len(rows) > _SHOWN else []),
    ]


def _training(run: Mapping[str, Any]) -> str:
    at = "no order was written: some of its steps" if run["read_at_steps"] is None else f"at {run['read_at_steps']} steps, first {run['first_steps'][0]}"
    after = ("" if run["finished"] else ", unfinished") + (f"; registered as {', '.join(run['models'])}" if run["models"] else "")
    return f"{run['stage']} {run['run_key']} {run['recipe']} ({run['sequences']}, {run['tokens']} of its tokens, {at}){after}"


def _copy(copy: Mapping[str, Any]) -> str:
    return f"{copy['doc_id']} of {copy['interval']}: {copy['relation']}"
