"""Stored responses of one model, found by any name a person has for it: a version, a run, a checkpoint, or what ``moeline evaluate`` wrote.

Change here: which names are understood, which columns are read. Not here: what is done with the answers (models/gauntlet/paired.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.contract import MoelineError, StageResult, TableVersion
from jobs.environment import Environment
from jobs.services import delta, report, results

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("benchmark", "category", "item_id", "prompt_hash", "sum_logprobs", "mean_logprobs", "prediction", "gold", "correct")
OPTIONAL = ("kind", "choices", "output", "item", "subset", "contaminated", "confidence", "weights_digest")
_NAMES = (
    "A model is a registered version (v3, 3 or champion), a run id of `moeline report`, the first digits (6 or more) of a checkpoint's sha256, "
    "or a folder or .parquet file written by `moeline evaluate`"
)


@dataclass(frozen=True)
class Model:
    """``name`` as asked for, ``about`` in words, ``rows`` one response each: COLUMNS, and of OPTIONAL what was stored.

    ``evaluation``: run key of the stage evaluate that stored them; None: they are of a file.
    """

    name: str
    about: str
    rows: pa.Table
    evaluation: str | None = None


def find(env: Environment, name: str) -> Model:
    """The responses of the model called ``name``. Raises MoelineError saying what was looked for where."""
    path = Path(name).expanduser()
    if path.suffix == ".parquet" or "/" in name or path.is_dir():
        return from_file(path)
    if name == "champion" or re.fullmatch(r"v?\d+", name):
        return _registered(env, name)
    run = next((r for r in reversed(report.runs(env)) if r["run_id"] == name), None)
    if run is not None:
        return of_run(env, run)
    if re.fullmatch(r"[0-9a-f]{6,64}", name):
        return _checkpoint(env, name)
    raise MoelineError(f"No model is called {name!r} here. {_NAMES}.")


def from_file(path: Path) -> Model:
    """Responses written by ``moeline evaluate``: the Parquet file or the folder that holds it."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = path / "responses.parquet" if path.is_dir() else path
    if not file.is_file():
        raise MoelineError(f"Asked for the responses in {file}, which is not there. {_NAMES}.")
    try:
        known = set(pq.read_schema(file).names)
        if absent := [c for c in COLUMNS if c not in known]:
            raise MoelineError(f"{file} has no column {', '.join(absent)}; it is not a file of responses. Write it with `moeline evaluate`.")
        rows = pq.read_table(file, columns=[*COLUMNS, *(c for c in OPTIONAL if c in known)])
    except (pa.ArrowException, OSError) as error:
        raise MoelineError(f"{file} cannot be read as Parquet ({str(error).splitlines()[0]}). Write it again with `moeline evaluate`.") from None
    return Model(str(path), f"file {file}", rows.filter(pc.is_valid(rows["correct"])))  # perplexities of lm_eval are neither right nor wrong


def _recorded(env: Environment, stage: str, run_key: str) -> StageResult:
    found = results.find(env, stage, run_key)
    if found is None:
        raise MoelineError(f"Stage {stage} of run key {run_key} is not recorded here; its home may be another one (--home). Run the stage again.")
    return found


def _stored(env: Environment, evaluated: StageResult) -> pa.Table:
    """The rows one evaluation published."""
    names = [*COLUMNS, "kind", "choices", "output", "item", "confidence", "weights_digest"]
    return delta.dataset(env, evaluated.table("responses"), where_in=[evaluated.run_key]).to_table(columns=names)


def _registered(env: Environment, name: str) -> Model:
    rows = sorted(delta.rows(env, "registrations"), key=lambda r: r["registered_at"])
    if name == "champion":
        rows = [r for r in rows if r["promoted"]]
        if not rows:
            raise MoelineError("There is no champion: no registered model has passed its gates yet. Name two versions or runs instead (`moeline report`).")
    else:
        known = sorted({r["model_version"] for r in rows}, key=int)
        rows = [r for r in rows if r["model_version"] == name.lstrip("v")]
        if not rows:
            raise MoelineError(f"No registered model has the version {name!r}; there are {', '.join(f'v{k}' for k in known) or 'none yet'}.")
    row = rows[-1]
    return _of_evaluation(env, name, f"{row['model_name']} v{row['model_version']}", _judged(env, row["run_key"]))


def of_run(env: Environment, run: Mapping[str, Any]) -> Model:
    """The responses of a build of services/report.py. Raises MoelineError when no model of it was evaluated, or they are not stored here."""
    name = run["run_id"]
    if "evaluate" not in run["run_keys"]:
        raise MoelineError(f"Run {name} is only {run['status']}: no model of it was evaluated, so there are no answers to compare.")
    return _of_evaluation(env, name, f"run {name}", _recorded(env, "evaluate", run["run_keys"]["evaluate"]))


def _of_evaluation(env: Environment, name: str, about: str, evaluated: StageResult) -> Model:
    return Model(name, about, _stored(env, evaluated), evaluated.run_key)


def of_registration(env: Environment, run_key: str) -> pa.Table:
    """Responses of the model that the register stage with this run key registered. Raises MoelineError when they are not stored here."""
    return _stored(env, _judged(env, run_key))


def _judged(env: Environment, run_key: str) -> StageResult:
    """The evaluation that a registration judged."""
    registered = _recorded(env, "register", run_key)
    if "scores" not in registered.inputs:
        raise MoelineError(f"The registration with run key {run_key} does not say which scores it judged. Run stage register again.")
    return results.writer_of(env, TableVersion.parse(registered.inputs["scores"]))


def _checkpoint(env: Environment, prefix: str) -> Model:
    evaluated = {r["run_key"]: r["model"] for r in delta.rows(env, "scores") if r["model"].startswith(prefix[:16])}
    models = sorted(set(evaluated.values()))
    if len(models) != 1:
        what = "begins the sha256 of no evaluated checkpoint" if not models else f"begins those of {len(models)} evaluated checkpoints ({', '.join(models)})"
        raise MoelineError(f"{prefix!r} {what}. {_NAMES}.")
    known = [found for key in evaluated if (found := results.find(env, "evaluate", key)) is not None]
    if not known:
        raise MoelineError(f"Checkpoint {models[0]} was scored, but that evaluation is not recorded. Run stage evaluate again.")
    newest = max(known, key=lambda r: r.finished_at)
    return _of_evaluation(env, prefix, f"checkpoint {models[0]}", newest)


def answers(rows: pa.Table, *, by_text: bool = False) -> dict[str, Sequence[Any]]:
    """The columns of models.gauntlet.paired.Answers. ``by_text``: items are the same when prompt and choices read the same, whatever the tokens.

    Items made from one document (``doc_id``) depend on each other and become one cluster.
    """
    columns = {name: rows[name].to_pylist() for name in rows.column_names if name not in ("sum_logprobs", "mean_logprobs")}
    parts: list[Mapping[str, Any]] = [json.loads(text) for text in columns["item"]] if "item" in columns else [{}] * rows.num_rows
    hashes = columns["prompt_hash"]
    if by_text:
        if "item" not in columns or "choices" not in columns:
            raise MoelineError("Asked to match items by their text, but these responses hold no prompts (columns item and choices). Leave --by-text out.")
        hashes = [repr((part.get("prompt"), part.get("prompt_chars"), choices)) for part, choices in zip(parts, columns["choices"], strict=True)]
    return {
        "benchmark": columns["benchmark"], "category": columns["category"], "item_id": columns["item_id"], "prompt_hash": hashes, "correct": columns["correct"],
        "subset": columns.get("subset") or [str(part.get("subset") or "") for part in parts], "cluster": [str(part.get("doc_id") or "") for part in parts],
        "contaminated": columns.get("contaminated") or [part.get("contaminated") for part in parts],
    }  # fmt: skip
