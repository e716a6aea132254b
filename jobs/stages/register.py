"""Register: a model version in MLflow with weights, tokenizer, config, card, pyfunc and lineage; champion only if the gates pass.

Change here: what is stored with a version. Not here: promotion thresholds (expectations/gates.py), what the card says (jobs/model_card.py), how a
folder is signed (models/signature.py), how MLflow is talked to.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expectations.gates import Candidate, Gate, PairedLoss, evaluate
from jobs.config import RegisterConfig
from jobs.contract import MoelineError, StageOutput, StageResult, Tools
from models.signature import Verified

ENGINE = "arrow"
READS = {"checkpoints": "all", "scores": "all", "responses": "all", "verdicts": "all", "forecasts": "all"}
WRITES = ("registrations",)
REVISION = 3
_LONGEST_TAG = 8000  # characters, MLflow's limit


def run(config: RegisterConfig, inputs: Mapping[str, Any], tools: Tools) -> StageOutput:
    """Register the final checkpoint and move the alias if every gate passes; the same run key never makes a second version."""
    from jobs.services import mlflow as registry

    checkpoint = _final_checkpoint(inputs["checkpoints"].to_table().to_pylist())
    lineage = tools.lineage()
    candidate = _candidate(config, inputs["scores"].to_table().to_pylist(), lineage)
    api = registry.client(tools.env)
    folder, signed = _model_folder(checkpoint, tools, config.model_name)
    tools.progress(1, 3, "model folder written, signed and loaded back")
    story = _lineage_json(lineage, checkpoint, tools)
    tags = {"recipe": tools.recipe, "checkpoint_sha256": checkpoint["sha256"], "cost_usd": f"{candidate.cost_usd:.6f}", "accuracy": f"{candidate.accuracy:.4f}"}
    tags |= {"signing_key": signed.key, "signed_digest": signed.digest}
    if ended := lineage["train"].metrics.get("ended_early"):
        tags["ended_early"] = f"{ended}: {checkpoint['step']} of {lineage['train'].metrics['steps_planned']} steps"
    with tools.lock("registry"):  # the alias is compared and set by one process at a time
        run_id = checkpoint["mlflow_run_id"] or registry.start_or_resume_run(tools.env, tools.run_key, tools.recipe, "register").run_id
        version = registry.register_folder(api, run_id=run_id, folder=folder, model_name=config.model_name, run_key=tools.run_key, tags=tags)
        before = registry.champion(api, config.model_name)
        if before is not None and before.version == version.version:
            before = _previous(api, config.model_name, version)
        gates = evaluate(candidate, _champion(before), *_paired(inputs["responses"], before, tools))
        promoted = all(gate.passed for gate in gates)
        _describe(api, config.model_name, version, gates, candidate, story)
        api.set_registered_model_alias(config.model_name, "champion" if promoted else "challenger", version.version)
    tools.progress(3, 3, f"version {version.version} is {'champion' if promoted else 'challenger'}")
    row = {
        "model_name": config.model_name, "model_version": str(version.version), "aliases": ["champion" if promoted else "challenger"], "promoted": promoted,
        "champion_before": str(before.version) if before else None, "gates": json.dumps([g.to_dict() for g in gates]),
        "moved_by": f"moeline register {tools.run_key}", "lineage": json.dumps(story), "registered_at": dt.datetime.now(dt.UTC),
    }  # fmt: skip
    import pyarrow as pa

    metrics = {
        "model_name": config.model_name, "model_version": str(version.version), "promoted": promoted,
        "gates": {g.name: g.passed for g in gates}, "reasons": [g.sentence for g in gates if not g.passed],
    }  # fmt: skip
    return StageOutput({"registrations": pa.Table.from_pylist([row])}, metrics)


def _final_checkpoint(rows: list[dict[str, Any]]) -> dict[str, Any]:
    final = [row for row in rows if row["final"]]
    if len(final) != 1:
        raise MoelineError(f"Asked to register one finished training run, found {len(final)} final checkpoints. Run stage train to its end first.")
    return final[0]


def _candidate(config: RegisterConfig, scores: list[dict[str, Any]], lineage: Mapping[str, StageResult]) -> Candidate:
    """What the gates judge: held-out loss, scores, and the cost of everything but the shared corpus."""
    trained = lineage["train"].metrics
    tasks = {r["benchmark"]: {k: r[k] for k in ("accuracy", "stderr", "chance", "best_constant")} for r in scores if not r["benchmark"].startswith("*")}
    overall = next((r for r in scores if r["benchmark"] == "**"), None)
    if overall is None:
        raise MoelineError("The scores hold no overall average (benchmark **). Run stage evaluate again.")
    cost = sum(lineage[stage].cost_usd for stage in ("forecast", "train", "evaluate", "review") if stage in lineage)
    return Candidate(
        held_out_loss=trained["held_out_loss"], unigram_loss=trained["unigram_loss"], accuracy=overall["accuracy"], accuracy_stderr=overall["stderr"],
        tasks=tasks, cost_usd=cost, budget_usd=config.budget_usd,
    )  # fmt: skip


def _model_folder(checkpoint: Mapping[str, Any], tools: Tools, model_name: str) -> tuple[Path, Verified]:
    """An MLflow model folder: Hugging Face DBRX layout and card inside, pyfunc as code; both folders signed, and loaded back once before it may be
    registered. The inner signature stays good where the Hugging Face folder goes alone, and is what the pyfunc checks."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    import models
    from jobs.services import pyfunc_source, signing_key
    from models import signature as signing

    key = signing_key.private(tools.env.home)
    public = signing.public_of(key)
    exported = Path(tools.scratch) / "huggingface"
    _export(checkpoint, tools, exported)
    (exported / "README.md").write_text(_card(tools, model_name, public))
    (exported / signing.KEY_FILE).write_bytes(public)
    signing.sign(exported, key, model_name)
    folder = Path(tools.scratch) / "mlflow_model"
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "prompt")]), outputs=Schema([ColSpec("string")]), params=ParamSchema([ParamSpec("max_new_tokens", "long", 32)])
    )
    mlflow.pyfunc.save_model(
        str(folder), python_model=str(pyfunc_source()), artifacts={"model": str(exported)}, code_paths=[str(Path(models.__file__).parent)],
        signature=signature, pip_requirements=["mlflow", "pandas", "safetensors", "tokenizers", "torch", "transformers", "cryptography"],
        model_config={"public_key_file": ""},
    )  # fmt: skip
    signed = signing.sign(folder, key, model_name)
    loaded = mlflow.pyfunc.load_model(str(folder), model_config={"public_key_file": str(exported / signing.KEY_FILE)})
    answer = loaded.predict(pd.DataFrame({"prompt": ["def main():"]}), params={"max_new_tokens": 4})
    if len(answer) != 1 or not isinstance(answer[0], str):
        raise MoelineError(f"The exported model answered {answer!r} to a prompt; it must give one string. Nothing was registered.")
    signing.verify(folder, [public])  # loading it wrote nothing into it
    return folder, signed


def _card(tools: Tools, model_name: str, public_key: bytes) -> str:
    """The model card. Its version number and its gates are not known yet: `moeline model card` adds them."""
    from jobs import model_card, model_card_text

    return model_card_text.render(model_card.facts(tools.env, tools.inputs_read, model_name=model_name), public_key=public_key)


def _export(checkpoint: Mapping[str, Any], tools: Tools, folder: Path) -> None:
    """Hugging Face DBRX folder of a checkpoint whose files still have the recorded hash."""
    from models import huggingface
    from models.checkpoint import read, verify
    from models.config import ModelConfig
    from models.transformer import Transformer

    source = Path(tools.artifact_dir(checkpoint["uri"]))
    found = verify(source)
    if found != checkpoint["sha256"]:
        raise MoelineError(f"Checkpoint {checkpoint['uri']} was recorded with sha256 {checkpoint['sha256']} and now has {found}. Run stage train again.")
    config = ModelConfig(**json.loads(checkpoint["config"])["model"])
    model = Transformer(config)
    model.load_state_dict(read(source)[0]["model"])
    tokenizer = Path(tools.artifact_dir(f"tokenizers/{tools.lineage()['pack'].metrics['tokenizer_id']}")) / "tokenizer.json"
    huggingface.export(model, config, folder, tokenizer.read_bytes(), eos_id=0, pad_id=1)


def _lineage_json(lineage: Mapping[str, StageResult], checkpoint: Mapping[str, Any], tools: Tools) -> dict[str, Any]:
    return {
        "checkpoint": {"uri": checkpoint["uri"], "sha256": checkpoint["sha256"]},
        "forecast_run_key": lineage["forecast"].run_key if "forecast" in lineage else None,
        "stages": {
            stage: {"run_key": r.run_key, "inputs": dict(r.inputs), "outputs": dict(r.outputs), "code_revision": r.code_revision, "cost_usd": r.cost_usd}
            for stage, r in sorted(lineage.items())
        },
    }


def _champion(version: Any) -> Candidate | None:
    """The champion as the gates saw it when it was registered (stored with the version)."""
    if version is None or "candidate" not in version.tags:
        return None
    return Candidate(**json.loads(version.tags["candidate"]))


def _paired(responses: Any, champion: Any, tools: Tools) -> tuple[Sequence[PairedLoss], str]:
    """(losses against the champion's stored answers to the same items, ""), or ([], why there is nothing paired to judge)."""
    from jobs.services import responses as stored
    from models.gauntlet import paired

    if champion is None:
        return [], ""
    try:
        theirs = stored.of_registration(tools.env, champion.tags.get("run_key", ""))
    except MoelineError as problem:
        return [], f"the champion's answers are not stored here ({problem})"
    try:
        pairs, left_out = paired.pair(paired.Answers(**stored.answers(theirs)), paired.Answers(**stored.answers(responses.to_table())))
        if left_out:
            n = sum(one.only_a + one.only_b + one.other_prompt for one in left_out)
            return [], f"the models did not answer the same items ({len(pairs.a)} in common, {n} not, the first in {left_out[0].benchmark})"
        return paired.losses(paired.strata(pairs)), ""
    except ValueError as problem:
        return [], f"the answers cannot be paired ({problem})"


def _previous(api: Any, model_name: str, version: Any) -> Any:
    """The champion before ``version`` (a retry after the alias was moved must judge against the same one)."""
    number = version.tags.get("champion_before")
    return api.get_model_version(model_name, number) if number else None


def _describe(api: Any, model_name: str, version: Any, gates: list[Gate], candidate: Candidate, story: Mapping[str, Any]) -> None:
    before = api.get_registered_model(model_name).aliases.get("champion")
    if before and before != version.version:
        api.set_model_version_tag(model_name, version.version, "champion_before", before)
    api.set_model_version_tag(model_name, version.version, "candidate", json.dumps(candidate.__dict__))
    api.set_model_version_tag(model_name, version.version, "gates", json.dumps([g.to_dict() for g in gates]))
    lineage = json.dumps(story)
    if len(lineage) > _LONGEST_TAG:  # the row of ``registrations`` holds all of it
        lineage = json.dumps({"checkpoint": story["checkpoint"], "forecast_run_key": story["forecast_run_key"], "stages": "see the table registrations"})
    api.set_model_version_tag(model_name, version.version, "lineage", lineage)
    text = "\n".join(f"- {'passed' if g.passed else 'FAILED'} {g.name}: {g.sentence}" for g in gates)
    api.update_model_version(model_name, version.version, description=text)
