"""TLS in front of a loopback port, for real: Spark's own client with its token, HTTP with a password, a renewed certificate, a server that is not there."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.cluster.tls_front import Front

REPO = Path(__file__).resolve().parents[2]
METHOD = "/spark.connect.SparkConnectService/Config"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def certificate(folder: Path, name: str = "localhost") -> Path:
    """A certificate that vouches for itself, in the files of a Secret of type tls; returns tls.crt."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder().subject_name(who).issuer_name(who).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "tls.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return folder / "tls.crt"


@contextlib.contextmanager
def fronting(folder: Path, to: int, alpn: str, look_seconds: float = 60.0):
    """A front on a free port, in a thread."""
    front = Front(listen=free_port(), to=to, certificate=folder / "tls.crt", key=folder / "tls.key", alpn=alpn)
    loop = asyncio.new_event_loop()
    serving = loop.create_task(front.serve(host="127.0.0.1", look_seconds=look_seconds))

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", front.listen), 1).close()
            break
        time.sleep(0.02)
    try:
        yield front
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join(10)
        assert not thread.is_alive()
        loop.close()


@pytest.fixture
def web():
    """A plain HTTP server on loopback that says what it was asked."""

    class Echo(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.headers['Host']} {self.headers.get('Authorization')}".encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()


_CLIENT = """
import sys
from pyspark.sql.connect.client import DefaultChannelBuilder
builder = DefaultChannelBuilder(sys.argv[1])
call = builder.toChannel().unary_unary(sys.argv[2])
print(call(b"x" * 300_000, timeout=20).decode())
"""


def sparks_client(address: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK_", "GRPC_"))}
    command = [sys.executable, "-c", _CLIENT, address, METHOD]
    return subprocess.run(command, env={**environment, **variables}, cwd=REPO, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def grpc_server():
    """A plain gRPC server on loopback, as Spark Connect is: answers how much came and with which token."""

    class Any(grpc.GenericRpcHandler):
        def service(self, details):
            token = dict(details.invocation_metadata).get("authorization")
            return grpc.unary_unary_rpc_method_handler(lambda request, _: f"{len(request)} {token}".encode())

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Any()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0)


def test_sparks_client_gives_its_token_through_tls_and_the_address_holds_none(grpc_server, tmp_path):
    trusted = str(certificate(tmp_path / "tls"))
    with fronting(tmp_path / "tls", grpc_server, "h2") as front:
        address = f"sc://localhost:{front.listen}/;use_ssl=true"
        done = sparks_client(address, SPARK_CONNECT_AUTHENTICATE_TOKEN="abc", GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=trusted)  # noqa: S106 - a test's
        assert done.stdout.strip() == "300000 Bearer abc", done.stderr[-1000:]
        strange = str(certificate(tmp_path / "other"))
        done = sparks_client(address, SPARK_CONNECT_AUTHENTICATE_TOKEN="abc", GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=strange)  # noqa: S106
        assert done.returncode and "UNAVAILABLE" in done.stderr, "a server that nobody vouches for gets no token"


def test_a_request_passes_as_it_is(web, tmp_path):
    trust = ssl.create_default_context(cafile=str(certificate(tmp_path / "tls")))
    with fronting(tmp_path / "tls", web, "http/1.1") as front, httpx.Client(verify=trust) as client:
        found = client.get(f"https://localhost:{front.listen}/", auth=("moeline", "p"), headers={"Host": "moeline-mlflow:5000"})
        assert found.text == "moeline-mlflow:5000 Basic bW9lbGluZTpw"


def test_plain_text_gets_no_answer(web, tmp_path):
    certificate(tmp_path / "tls")
    with fronting(tmp_path / "tls", web, "http/1.1") as front, pytest.raises(httpx.TransportError):
        httpx.get(f"http://localhost:{front.listen}/", timeout=5)


def test_a_renewed_certificate_is_used(web, tmp_path):
    file = certificate(tmp_path / "tls")
    os.utime(file, (1, 1))
    with fronting(tmp_path / "tls", web, "http/1.1", look_seconds=0.05) as front:
        renewed = ssl.create_default_context(cafile=str(certificate(tmp_path / "tls")))
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(httpx.ConnectError), httpx.Client(verify=renewed) as client:
                assert client.get(f"https://localhost:{front.listen}/").status_code == 200
                return
            assert time.monotonic() < deadline, "the old one is still shown"
            time.sleep(0.1)


def test_a_server_that_is_not_there_ends_the_connection_and_not_the_front(tmp_path):
    trust = ssl.create_default_context(cafile=str(certificate(tmp_path / "tls")))
    with fronting(tmp_path / "tls", free_port(), "http/1.1") as front, httpx.Client(verify=trust, timeout=5) as client:
        for _ in range(2):
            with pytest.raises(httpx.TransportError):
                client.get(f"https://localhost:{front.listen}/")


def test_the_program_ends_when_it_is_asked_to(tmp_path):
    certificate(tmp_path / "tls")
    port = free_port()
    command = [sys.executable, "-m", "infra.cluster.tls_front", str(port), "1", "--alpn", "h2", "--folder", str(tmp_path / "tls")]
    process = subprocess.Popen(command, cwd=REPO)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.1)
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
