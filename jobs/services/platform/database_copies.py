"""Copies of the embedded PostgreSQL's databases: dumped while the platform runs or rests, and put back into a new cluster.

A dump is a program of SQL, and it may come from anybody. It is run as a role that may nothing but own its database, and refused when it leaves anything
behind that could run later with more rights than that (functions, triggers, views, unknown calls in a default).
Change here: how a database is copied. Not here: which databases there are (postgres.py), when they are copied (jobs/backup.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jobs.contract import MoelineError
from jobs.environment import REPO, Environment
from jobs.services.platform import postgres
from jobs.services.platform.record import is_same_process, locked, read_record
from jobs.services.platform.service import probe
from jobs.services.platform.services import runtime_folder

_START_SECONDS = 120.0  # a cluster that was not stopped in order is repaired first
_STOP_SECONDS = 30.0
_SOCKET_PATH = 107  # bytes, by the kernel
_ROLE = "restoring"
_FIRST_OWN_OID = 16384  # PostgreSQL's own objects have smaller ones
_MADE_BY_NOBODY = (  # neither Airflow nor MLflow has any of these, and each can run code or change what a statement means
    "pg_event_trigger", "pg_rewrite", "pg_policy", "pg_operator", "pg_opclass", "pg_opfamily", "pg_cast", "pg_conversion", "pg_extension",
    "pg_language", "pg_foreign_data_wrapper", "pg_foreign_server", "pg_publication", "pg_subscription", "pg_statistic_ext", "pg_transform",
)  # fmt: skip
_OF_MLFLOW = (  # the one function there is, of its migration 1bd49d398cd23; any other body of that name is refused
    "BEGIN IF OLD.secret_id != NEW.secret_id OR OLD.secret_name != NEW.secret_name THEN RAISE EXCEPTION 'secret_id and secret_name are immutable (used as "
    "AAD in encryption)'; END IF; RETURN NEW; END;"
)
_KNOWN_FUNCTION = (
    "btrim(regexp_replace(prosrc, '\\s+', ' ', 'g')) = %s AND NOT prosecdef AND pronargs = 0 AND proconfig IS NULL AND prolang = "
    "(SELECT oid FROM pg_language WHERE lanname = 'plpgsql')"
)
_RUNNING = (  # what runs by itself, or changes what a name means
    f"SELECT 'function ' || proname FROM pg_proc WHERE oid >= {_FIRST_OWN_OID} AND NOT ({_KNOWN_FUNCTION})",
    "SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal AND "
    f"tgfoid NOT IN (SELECT oid FROM pg_proc WHERE oid >= {_FIRST_OWN_OID} AND {_KNOWN_FUNCTION})",
    "SELECT 'setting ' || array_to_string(setconfig, ', ') FROM pg_db_role_setting",
)
_EXPRESSIONS = (
    "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef",
    f"SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype IN ('c', 'x') AND oid >= {_FIRST_OWN_OID}",
    f"SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE (indexprs IS NOT NULL OR indpred IS NOT NULL) AND indexrelid >= {_FIRST_OWN_OID}",
    f"SELECT coalesce(typdefault, '') FROM pg_type WHERE typtype = 'd' AND oid >= {_FIRST_OWN_OID}",
)
_CALL = re.compile(r"([A-Za-z_][\w$\"]*)\s*\(")
_HARMLESS = {"nextval", "now", "lower", "upper", "coalesce", "length", "timezone"}
_WORDS = {  # before a bracket, and no call
    "check", "and", "or", "not", "any", "all", "in", "array", "where", "btree", "hash", "gin", "varying", "character", "varchar", "numeric", "timestamp",
    "time", "using", "on", "include", "exclude", "with",
}  # fmt: skip


@contextlib.contextmanager
def reachable(env: Environment) -> Iterator[Path | None]:
    """Folder of the socket where the home's PostgreSQL answers; it is started for as long as this lasts where the platform rests. None: no databases yet.

    Raises MoelineError when the platform is starting and PostgreSQL does not answer in time.
    """
    folder = env.home / "postgres"
    if not postgres.is_initialised(folder):
        yield None
        return
    sockets, supervisor = runtime_folder(env.home) / "postgres", read_record(env.home).get("supervisor")
    # Who answers on the home's own socket is its server, whatever else is known of the platform (a clock that was set makes processes hard to tell apart).
    if _answers(sockets) or is_same_process(supervisor):
        _wait(sockets, "PostgreSQL of the running platform")
        yield sockets
        return
    with locked(env.home / "up.lock", timeout_seconds=600.0):  # a platform that starts meanwhile waits: two servers would spoil the data
        if is_same_process(read_record(env.home).get("supervisor")):
            raise MoelineError("The platform was started just now. Run the same command again.")
        with at_rest(env.home) as sockets:
            yield sockets


@contextlib.contextmanager
def at_rest(home: Path) -> Iterator[Path | None]:
    """As ``reachable``, for a caller that holds ``up.lock`` and knows that the platform rests."""
    if not postgres.is_initialised(home / "postgres"):
        yield None
        return
    with _server(home / "postgres") as sockets:
        yield sockets


def dump(sockets: Path, database: str, to: Path) -> None:
    """Write ``database`` as of one moment to ``to`` (0600). Raises MoelineError when PostgreSQL cannot be read."""
    to.parent.mkdir(parents=True, exist_ok=True)
    run_program(["pg_dump", *_at(sockets), "--format=custom", "--no-owner", "--no-privileges", "--file", str(to), database], f"copy the database {database}")


def put_back(folder: Path, dumps: Mapping[str, Path]) -> None:
    """Create a cluster in ``folder`` with the databases of ``dumps``. Raises MoelineError for a dump that fails, or holds what no dump of ours does."""
    folder.mkdir(mode=0o700)
    with _sockets() as unused:
        postgres.prepare_folders(folder, unused)
    command = [sys.executable, "-m", "jobs.services.platform.postgres", str(folder)]
    done = subprocess.run(command, env={**_environment(), "PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MoelineError(f"A new PostgreSQL cluster was asked for in {folder}: {_last(done.stderr)}")
    with _server(folder) as sockets:
        _execute(sockets, "postgres", f"CREATE ROLE {_ROLE} LOGIN")
        for database, file in dumps.items():
            _execute(sockets, "postgres", f'ALTER DATABASE "{database}" OWNER TO {_ROLE}')
            command = ["pg_restore", *_at(sockets, _ROLE), "--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
            run_program([*command, "--dbname", database, str(file)], f"put back the database {database}")
            if strange := _strange(sockets, database):
                raise MoelineError(f"The dump of {database} holds what no dump of this platform holds: {', '.join(strange[:5])}. Take another backup.")
            _execute(sockets, database, f"REASSIGN OWNED BY {_ROLE} TO postgres")
        _execute(sockets, "postgres", f"DROP ROLE {_ROLE}")


def _strange(sockets: Path, database: str) -> list[str]:
    """What in a database could run later with the rights of whoever uses it."""
    found = []
    for catalog in _MADE_BY_NOBODY:
        found += [f"{catalog} {oid}" for (oid,) in _execute(sockets, database, f"SELECT oid FROM {catalog} WHERE oid >= {_FIRST_OWN_OID}")]
    for statement in _RUNNING:
        found += [name for (name,) in _execute(sockets, database, statement, *[_OF_MLFLOW] * statement.count("%s"))]
    for statement in _EXPRESSIONS:
        found += [f"a call of {name}" for (text,) in _execute(sockets, database, statement) for name in unknown_calls(text or "")]
    return found


def unknown_calls(expression: str) -> list[str]:
    """Names an expression of PostgreSQL's catalog calls that no table of ours does."""
    code = re.sub(r"'(?:[^']|'')*'", "''", expression)
    code = re.sub(r"^CREATE (?:UNIQUE )?INDEX .*? USING ", "USING ", code)  # an index names its table, which is no call
    return [name for name in (match.strip('"').lower() for match in _CALL.findall(code)) if name not in _HARMLESS | _WORDS]


# -- a server for the time of a copy ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[Path]:
    """PostgreSQL on a cluster nobody uses, on a socket nobody else can reach; stopped in order at the end."""
    with _sockets() as sockets:
        postgres.prepare_folders(folder, sockets)
        log = sockets.parent / "log"
        with log.open("wb") as output:
            command = postgres.server_command(folder / "data", sockets)
            process = subprocess.Popen(
                command, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            _wait(sockets, "PostgreSQL", process, log)
            yield sockets
        finally:
            process.send_signal(signal.SIGINT)  # fast shutdown: open sessions are ended, all is written
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _sockets() -> Iterator[Path]:
    """A private folder with a path short enough for a Unix socket, removed afterwards."""
    short = [at for at in (tempfile.gettempdir(), "/tmp") if len(at) + 40 < _SOCKET_PATH]  # noqa: S108 - mkdtemp makes a private folder there
    with tempfile.TemporaryDirectory(prefix="moeline-", dir=short[0]) as private:
        sockets = Path(private) / "postgres"
        sockets.mkdir()
        yield sockets


def _wait(sockets: Path, what: str, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(sockets):
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            said = _last(log.read_text(errors="replace")) if log else ""
            raise MoelineError(f"{what} was asked for its databases and {'ended' if ended else 'does not answer'}. {said} See `moeline status`.")
        time.sleep(0.1)


def _answers(sockets: Path) -> bool:
    return probe({"postgres": str(sockets / postgres.SOCKET_NAME)}, 0.0) is True


def _at(sockets: Path, user: str = "postgres") -> list[str]:
    return ["--host", str(sockets), "--username", user, "--no-password"]


def _environment() -> dict[str, str]:
    """This process's, without a person's own settings of other servers."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}


def run_program(argv: Sequence[str], what: str, variables: Mapping[str, str] = MappingProxyType({})) -> None:
    """Run one of PostgreSQL's own programs; ``what`` it is asked to do is told in the MoelineError where it fails. ``variables``: of libpq, as a password."""
    command, environment = [str(postgres.binaries() / argv[0]), *argv[1:]], {**_environment(), **variables}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, umask=0o077)
    if done.returncode:
        raise MoelineError(f"PostgreSQL was asked to {what}: {_last(done.stderr)} Is there room on the disk, is the platform being stopped? Run it again.")


def _execute(sockets: Path, database: str, statement: str, *values: str) -> list[Any]:
    import psycopg2

    with contextlib.closing(psycopg2.connect(host=str(sockets), user="postgres", dbname=database)) as connection:
        connection.autocommit = True  # CREATE ROLE and its like may not stand in a transaction of several
        with connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []


def _last(text: str) -> str:
    return " ".join(text.strip().splitlines()[-3:])[-600:]
