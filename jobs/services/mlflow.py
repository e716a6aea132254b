"""MLflow: one run per piece of work, one registered model, aliases moved only by a gate.

Everything is keyed by the run key, so a retry resumes its run and registers no second version.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.contract import MoelineError
from jobs.environment import Environment

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "moeline"


def client(env: Environment) -> MlflowClient:
    """A client of the environment's MLflow server, or of a local database when a stage is run by hand without the platform."""
    import mlflow

    uri = env.platform.get("mlflow_uri")
    if not uri:
        env.home.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{env.home}/mlflow-by-hand.db"
    _sign_in(env)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def _sign_in(env: Environment) -> None:
    """Give MLflow the server's user and password in the one way it takes them: this process's environment, which only its owner can read."""
    addresses = env.platform
    if (file := addresses.get("mlflow_password_file")) is None:
        return
    try:
        password = Path(file).read_text().strip()
    except OSError as error:
        raise MoelineError(f"The password of the MLflow server cannot be read from {file}: {error.strerror}. `moeline up` makes it.") from None
    os.environ |= {"MLFLOW_TRACKING_USERNAME": addresses.get("mlflow_user", "moeline"), "MLFLOW_TRACKING_PASSWORD": password}


@dataclass
class MlflowRun:
    """An open run. Failing to log never fails the work it describes, except at registration."""

    api: MlflowClient
    run_id: str

    def log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        known = self.api.get_run(self.run_id).data.params
        new = [Param(key, str(value)[:500]) for key, value in params.items() if key not in known]
        if new:
            self.api.log_batch(self.run_id, params=new)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(key, float(value), now, step) for key, value in metrics.items() if isinstance(value, (int, float)) and math.isfinite(value)]
        if found:
            self.api.log_batch(self.run_id, metrics=found)

    def finish(self, status: str = "FINISHED") -> None:
        self.api.set_terminated(self.run_id, status=status)


def start_or_resume_run(env: Environment, run_key: str, recipe: str, stage: str) -> MlflowRun:
    """The MLflow run tagged with this run key, opened again if it exists."""
    api = client(env)
    experiment = api.get_experiment_by_name(EXPERIMENT)
    try:
        local = None if env.platform.get("mlflow_uri") else (env.artifacts / "mlflow").as_uri()
        experiment_id = experiment.experiment_id if experiment else api.create_experiment(EXPERIMENT, artifact_location=local)
    except Exception:  # two processes may create it at once; the second finds it
        found = api.get_experiment_by_name(EXPERIMENT)
        if found is None:
            raise
        experiment_id = found.experiment_id
    runs = api.search_runs([experiment_id], filter_string=f"tags.run_key = '{run_key}'", max_results=1)
    if runs:
        api.update_run(runs[0].info.run_id, status="RUNNING")
        return MlflowRun(api, runs[0].info.run_id)
    tags = {"run_key": run_key, "recipe": recipe, "stage": stage}
    run = api.create_run(experiment_id, run_name=f"{stage} {recipe} {run_key[:8]}", tags=tags)
    return MlflowRun(api, run.info.run_id)


def version_of_run_key(api: MlflowClient, model_name: str, run_key: str) -> Any:
    """The model version registered by this run key, or None."""
    found = api.search_model_versions(f"name = '{model_name}'")
    return next((v for v in found if v.tags.get("run_key") == run_key and v.status == "READY"), None)


def champion(api: MlflowClient, model_name: str) -> Any:
    """The version the alias ``champion`` points at, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return api.get_model_version_by_alias(model_name, "champion")
    except MlflowException:
        return None


def register_folder(api: MlflowClient, *, run_id: str, folder: Path, model_name: str, run_key: str, tags: Mapping[str, str]) -> Any:
    """Log a model folder (MLmodel inside) to the run and register it as a new version, once per run key."""
    from mlflow.exceptions import MlflowException

    existing = version_of_run_key(api, model_name, run_key)
    if existing is not None:
        return existing
    place = f"model-{run_key[:16]}"  # a folder of its own: a training that is registered again must not mix its files
    api.log_artifacts(run_id, str(folder), artifact_path=place)
    try:
        api.create_registered_model(model_name, description="Mixture-of-experts language models made by moeline")
    except MlflowException as error:
        if "RESOURCE_ALREADY_EXISTS" not in str(error.error_code):
            raise
    source = f"{api.get_run(run_id).info.artifact_uri}/{place}"
    version = api.create_model_version(model_name, source=source, run_id=run_id, tags={**tags, "run_key": run_key}, await_creation_for=60)
    return api.get_model_version(model_name, version.version)


def fetch(env: Environment, model_name: str, version: str, into: Path) -> Path:
    """A copy of a registered version's folder below ``into``; not checked yet. Raises MoelineError when the registry has none, or its files are gone."""
    import mlflow
    from mlflow.exceptions import MlflowException

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    api = client(env)
    try:
        source = api.get_model_version(model_name, version).source
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(into), tracking_uri=api.tracking_uri))
    except (MlflowException, OSError) as problem:
        said = str(problem).splitlines()[0][:200]
        raise MoelineError(
            f"{model_name}/{version} cannot be fetched from the registry: {said}. Is the platform running (`moeline up`), the home right?"
        ) from None
