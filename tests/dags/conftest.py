"""The DAG files as Airflow sees them, without a database or a scheduler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
DAGS = REPO / "dags"

_home: str | None = None
if "airflow" not in sys.modules:  # airflow reads its home once, when first imported
    _home = tempfile.mkdtemp(prefix="moeline-airflow-")
    os.environ.setdefault("AIRFLOW_HOME", _home)
    os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
if str(DAGS) not in sys.path:  # Airflow puts the DAGs folder there itself
    sys.path.append(str(DAGS))


def pytest_unconfigure() -> None:
    """Not ``atexit``: xdist's workers end without it."""
    if _home is not None:
        shutil.rmtree(_home, ignore_errors=True)


_PARSE = """
import json, sys, time
from airflow.dag_processing.dagbag import DagBag
before, began = set(sys.modules), time.perf_counter()
sys.path.append(sys.argv[1])
bag = DagBag(sys.argv[1])
seconds = time.perf_counter() - began
dags = {
    dag.dag_id: {
        "doc": dag.doc_md, "tags": sorted(dag.tags), "paused": dag.is_paused_upon_creation, "catchup": dag.catchup, "timetable": type(dag.timetable).__name__,
        "max_active_runs": dag.max_active_runs, "params": {k: dag.params.get_param(k).serialize() for k in dag.params},
        "tasks": {t.task_id: {"downstream": sorted(t.downstream_task_ids), "operator": type(t).__name__, "rule": t.trigger_rule.value, "retries": t.retries,
                              "at_once": t.max_active_tis_per_dag, "outlets": [o.name for o in t.outlets]} for t in dag.tasks},
    } for dag in bag.dags.values()
}
top = lambda names: sorted({name.partition(".")[0] for name in names})
print(json.dumps({"errors": bag.import_errors, "dags": dags, "loaded": top(set(sys.modules) - before), "all_loaded": top(sys.modules), "seconds": seconds}))
"""


@pytest.fixture(scope="session")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process finds in the DAGs folder: errors, DAGs, and the modules that parsing loaded."""
    home = str(tmp_path_factory.mktemp("airflow"))
    environment = {**os.environ, "AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "MOELINE_HOME": home}
    done = subprocess.run([sys.executable, "-c", _PARSE, str(DAGS)], env=environment, cwd=REPO, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
