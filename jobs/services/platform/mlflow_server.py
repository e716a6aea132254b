"""`python -m jobs.services.platform.mlflow_server PORT STAMP PASSWORD_FILE`: the MLflow tracking server in one process, behind a password.

`mlflow server` would keep a second Python with all of MLflow in memory only to wait for this one. The database is in
MLFLOW_BACKEND_STORE_URI, the artifact folder in MLFLOW_ARTIFACTS_DESTINATION; clients reach artifacts through the server.

MLflow's own basic-auth app keeps users and permissions in a second database; here one person owns the server, and what must be kept out is every other
user of the machine. So all that is asked is HTTP's Basic authentication, in front of everything but the health check.
"""

from __future__ import annotations

import base64
import hmac
import os
import sys
from pathlib import Path
from typing import Any

USER = "moeline"
_OPEN = ("/health",)  # says OK and nothing else; the supervisor asks it


def migrate(database_url: str) -> None:
    """Bring the schema to this MLflow's version. Processes that do this at once break the database, so only this one does."""
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine_with_retry(database_url)
    if utils._is_empty_database(engine):
        utils._initialize_tables(engine)  # the migrations start from tables that only this creates
    else:
        utils._upgrade_db(engine)


def guarded(app: Any, password: str) -> Any:
    """An ASGI application that lets requests with the user's name and ``password`` through to ``app``, and answers all others with 401."""
    expected = b"Basic " + base64.b64encode(f"{USER}:{password}".encode())

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        given = next((value for name, value in scope.get("headers", ()) if name == b"authorization"), b"")
        if scope["type"] == "lifespan" or scope["path"] in _OPEN or hmac.compare_digest(given, expected):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"www-authenticate", b'Basic realm="MLflow of moeline"'), (b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"Sign in with the user and password that `moeline status` names.\n"})
        else:
            await send({"type": "websocket.close", "code": 1008})

    return answer


def main(port: int, stamp: Path, password_file: Path) -> None:
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
    from mlflow.server.fastapi_app import app  # it reads the variables above while it is imported

    uvicorn.run(guarded(app, password_file.read_text().strip()), host="127.0.0.1", port=port, workers=1, access_log=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
