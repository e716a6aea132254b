"""The only bridge from Airflow to moeline: one task = one ``python -m jobs.run <stage>`` process.

Change here: how a stage process is started, watched, stopped and how its result reaches the next one. Not here: what a
stage does (jobs/stages), in which order stages run (the DAG files).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from airflow.sdk import Asset, BaseOperator, Param
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from data_interval import resolve_interval

REPO = Path(__file__).resolve().parent.parent
RECIPES = (  # jobs.recipes.RECIPES; a literal because DAG files import nothing of jobs (a test compares them)
    "tiny", "tiny_dense", "smoke", "small_cpu", "small_cpu_dense", "small_gpu", "small_gpu_dense", "h200", "h200_dense", "moe_b", "moe_b_dense", "dbrx",
)  # fmt: skip
RECIPE_NAME = "[a-z][a-z0-9_-]{0,63}"  # jobs.own_recipes.NAME, likewise
CORPUS = Asset("corpus")  # emitted per data day by summarise, awaited by build_model

REFUSED = 3  # exit code of jobs.run: a check or a budget said no, and would say so again
STOP_SECONDS = 20.0  # between SIGTERM and SIGKILL: enough to write the cost row
RETRY = {"retries": 2, "retry_delay": timedelta(seconds=10), "retry_exponential_backoff": 2.0, "max_retry_delay": timedelta(minutes=10)}


def recipe_param() -> Param:
    """Any name is taken, because a recipe made a moment ago is not in this file's parsed form yet; a run of an unknown one fails at its first task."""
    about = "What to do: a function of jobs/recipes.py, or a recipe made by `moeline propose` (`moeline recipes` lists all)."
    return Param("tiny", type="string", examples=[*RECIPES, *own_recipes()], pattern=f"^{RECIPE_NAME}$", title="Recipe", description=about)


def own_recipes() -> list[str]:
    """Names of the files in the home's folder ``recipes``, offered in the form."""
    folder = Path(os.environ.get("MOELINE_HOME") or REPO / ".moeline") / "recipes"
    return sorted(f.stem for f in folder.glob("*.json") if re.fullmatch(RECIPE_NAME, f.stem) and f.stem not in RECIPES)


def gauntlet_param() -> Param:
    return Param(
        None,
        type=["null", "string"],
        title="Gauntlet data folder",
        description="Also use Foundry's benchmark files from this folder of the machine that runs the stages. Empty: the built-in suite only.",
    )


def pod_of(stage: str) -> dict[str, Any]:
    """Where Airflow starts a pod per task: the template of this stage's pod, made by the chart as large as [resources.<stage>]. Else nothing.

    A file and not a pod_override: that one is an object of the package kubernetes, which every process that parses the DAGs would have to load.
    """
    folder = conf.get("moeline", "pod_templates", fallback="")
    if conf.get("core", "executor") != "KubernetesExecutor" or not folder:
        return {}
    return {"executor_config": {"pod_template_file": f"{folder}/{stage}.yaml"}}


class StageOperator(BaseOperator):
    """Runs the stage named like the task in a process of its own and returns its StageResult as a dict (all that XCom carries).

    The table versions named by the results of all stages upstream are pinned for this one. ``dated``: the stage works on one
    data day, taken from the run. ``arguments``: further arguments of ``jobs.run``; empty ones are left out.
    """

    template_fields = ("arguments",)
    ui_color = "#e8f1f8"

    def __init__(self, *, dated: bool = False, arguments: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**{**RETRY, **pod_of(str(kwargs.get("task_id"))), **kwargs})
        self.dated = dated
        self.arguments = list(arguments)
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        recipe = context["params"]["recipe"]
        command = [sys.executable, "-m", "jobs.run", self.task_id, "--recipe", recipe, *(a for a in self.arguments if a)]
        if self.dated:
            command += ["--interval", resolve_interval(context)]
        if inputs := pinned_inputs(self._upstream_results(context["ti"])):
            command += ["--inputs", json.dumps(inputs)]
        result = self._run(command, stage_environment(context))
        for asset in self.outlets:
            extra = {"interval": result.get("interval"), "recipe": recipe, "sequences": result["inputs"].get("sequences")}
            context["outlet_events"][asset].extra = {**extra, "tokens": result["metrics"].get("training_tokens")}
        return result

    def on_kill(self) -> None:
        """Ask the stage's process group to stop, and make sure that it does even if this task process is killed first."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        # Airflow kills this process 5 s after asking; the stage may need longer to write its cost row, so the deadline is another process's.
        subprocess.Popen([sys.executable, "-c", _KILL_LATE, str(process.pid), str(STOP_SECONDS)], start_new_session=True, stdin=subprocess.DEVNULL)

    def _upstream_results(self, ti: Any) -> list[dict[str, Any] | None]:
        """Results of the stages before this one, in the order they ran (None for a skipped one)."""
        before = self.get_flat_relative_ids(upstream=True)
        names = [task.task_id for task in self.dag.topological_sort() if task.task_id in before and isinstance(task, StageOperator)]
        return [ti.xcom_pull(task_ids=name) for name in names]

    def _run(self, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
        self.log.info("Starting: %s", " ".join(command[1:]))
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out:
            # A process group of its own: Airflow signals the task's whole group and kills it 5 s later.
            self._process = subprocess.Popen(
                command, cwd=REPO, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
                text=True, encoding="utf-8", errors="replace", process_group=0,
            )  # fmt: skip
            last_lines: list[str] = []
            # A thread, because services a stage starts may keep its stderr open after it has ended.
            reader = threading.Thread(target=self._relay, args=(self._process.stderr, last_lines), daemon=True)
            reader.start()
            code = self._process.wait()
            reader.join(timeout=5)
            out.seek(0)
            printed = out.read()
        if code == 0:
            return last_json_line(printed, self.task_id)
        said = "\n".join(last_lines[-5:]) or "it said nothing"
        if code == REFUSED:
            raise AirflowFailException(f"{self.task_id} was refused and is not retried:\n{said}")
        how = f"was stopped by signal {-code}" if code < 0 else f"failed with exit code {code}"
        raise AirflowException(f"{self.task_id} {how}:\n{said}")

    def _relay(self, stream: IO[str], last_lines: list[str]) -> None:
        for line in stream:
            text = line.rstrip("\n")
            self.log.info("%s", text)
            if text.strip():
                last_lines.append(text)
                del last_lines[:-20]


# Ends a process group that is still there after the given seconds. The group's number cannot be reused while a member lives.
_KILL_LATE = """
import os, signal, sys, time
group, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
try:
    while time.monotonic() < deadline:
        os.killpg(group, 0)
        time.sleep(0.2)
    os.killpg(group, signal.SIGKILL)
except ProcessLookupError:
    pass
"""


def pinned_inputs(results: Sequence[Mapping[str, Any] | None]) -> dict[str, str]:
    """Table versions (``name`` -> ``name@7``) that earlier results read or wrote; what a stage wrote wins over what one read."""
    found = [result for result in results if result]
    pinned: dict[str, str] = {}
    for side in ("inputs", "outputs"):
        for result in found:
            pinned.update({name: version for name, version in result.get(side, {}).items() if "@" in str(version)})
    return pinned


def stage_environment(context: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a stage process: this one, plus which attempt of which task it is (for the cost ledger)."""
    ti = context["ti"]
    attempt = {"dag_id": ti.dag_id, "dag_run_id": ti.run_id, "task_id": ti.task_id, "map_index": ti.map_index, "try_number": ti.try_number}
    environment = {**os.environ, "MOELINE_ATTEMPT": json.dumps(attempt), "PYTHONUNBUFFERED": "1"}
    if folder := context["params"].get("gauntlet_data"):
        environment["GAUNTLET_DATA"] = str(folder)
    return environment


def last_json_line(printed: str, stage: str) -> dict[str, Any]:
    """The JSON object on the last line a stage process printed; raises AirflowException when there is none."""
    lines = printed.strip().splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError):
        result = None
    if not isinstance(result, dict):
        raise AirflowException(f"{stage} ended well but printed no result as its last line; it printed: {printed[-500:]!r}")
    return result
