"""A server of S3's protocol (moto) in a process of its own, for tests."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import s3fs
from ray_trainings import free_port

from jobs.environment import REPO, Environment


class Store:
    """One server with one bucket; keys and address as fsspec takes them from the environment (``variables``) and in Python (``settings``)."""

    def __init__(self, folder: Path, bucket: str) -> None:
        self.port, self.bucket = free_port(), bucket
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=(folder / "moto.log").open("w"), stderr=subprocess.STDOUT)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                assert self.process.poll() is None, (folder / "moto.log").read_text()
                time.sleep(0.2)
        self.variables = {"FSSPEC_S3_KEY": "key", "FSSPEC_S3_SECRET": "not-a-secret", "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}
        self.settings = {name.removeprefix("FSSPEC_S3_").lower(): value for name, value in self.variables.items()}
        self.files = s3fs.S3FileSystem(**self.settings, use_listings_cache=False)
        self.files.mkdir(bucket)

    def environment(self, root: Path, tables: str, *settings: tuple[str, str]) -> Environment:
        """An environment under ``root`` with its tables at that URL, and other ``settings`` (a line of local.toml, what it becomes)."""
        text = (REPO / "infra/env/local.toml").read_text()
        for old, new in (("[paths]", f'[paths]\ntables = "{tables}"'), *settings):
            assert old in text
            text = text.replace(old, new, 1)
        (root / "store.toml").write_text(text)
        return Environment.load(str(root / "store.toml"), root / "home")

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
