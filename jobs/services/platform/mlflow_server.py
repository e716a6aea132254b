"""`python -m jobs.services.platform.mlflow_server PORT STAMP`: the MLflow tracking server in one process.

`mlflow server` would keep a second Python with all of MLflow in memory only to wait for this one. The database is in
MLFLOW_BACKEND_STORE_URI, the artifact folder in MLFLOW_ARTIFACTS_DESTINATION; clients reach artifacts through the server.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def migrate(database_url: str) -> None:
    """Bring the schema to this MLflow's version. Processes that do this at once break the database, so only this one does."""
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine_with_retry(database_url)
    if utils._is_empty_database(engine):
        utils._initialize_tables(engine)  # the migrations start from tables that only this creates
    else:
        utils._upgrade_db(engine)


def main(port: int, stamp: Path) -> None:
    """Serve on loopback until told to stop; ``stamp`` marks that this version's schema is in place."""
    import uvicorn
    from mlflow.server import constants

    if not stamp.exists():
        migrate(os.environ["MLFLOW_BACKEND_STORE_URI"])
        stamp.touch()
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = os.environ["MLFLOW_BACKEND_STORE_URI"]
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = os.environ["MLFLOW_ARTIFACTS_DESTINATION"]
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
    uvicorn.run("mlflow.server.fastapi_app:app", host="127.0.0.1", port=port, workers=1, access_log=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
