"""`python -m infra.cluster.tls_front LISTEN TO --alpn h2`: TLS in front of a server that has none and listens on this pod's loopback only.

Spark Connect and our MLflow server speak plain text on 127.0.0.1. Spark's client gives its token to no name but localhost without TLS, and a password
has no business on a network. Bytes are passed on as they are. The certificate is read again when its file changes: cluster issuers renew it.
Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import ssl
from pathlib import Path

_CHUNK = 1 << 16
_LOOK_SECONDS = 60.0


class Front:
    """Accepts TLS on ``listen`` of all interfaces and connects each client to 127.0.0.1:``to``."""

    def __init__(self, *, listen: int, to: int, certificate: Path, key: Path, alpn: str) -> None:
        self.listen, self.to, self.certificate, self.key = listen, to, certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols([alpn])
        self._seen = 0.0
        self.look()

    def look(self) -> bool:
        """Load the certificate if its file is another than last time; connections that are open keep theirs."""
        changed = self.certificate.stat().st_mtime
        if changed == self._seen:
            return False
        self.context.load_cert_chain(self.certificate, self.key)
        self._seen = changed
        return True

    async def serve(self, *, host: str = "0.0.0.0", look_seconds: float = _LOOK_SECONDS) -> None:  # noqa: S104 - a pod's own address
        """Until cancelled."""
        async with await asyncio.start_server(self._client, host, self.listen, ssl=self.context):
            while True:
                await asyncio.sleep(look_seconds)
                with contextlib.suppress(OSError):  # caught while it is being replaced: next time
                    self.look()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:  # not up yet: the client sees a connection that ends, and tries again
            writer.close()
            return
        await asyncio.gather(_pass_on(reader, there_writer), _pass_on(there_reader, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until either side ends, then end the other."""
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _until_asked(front: Front) -> None:
    serving = asyncio.ensure_future(front.serve())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, serving.cancel)  # as process 1 of a container nothing would end it
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("listen", type=int)
    parser.add_argument("to", type=int)
    parser.add_argument("--alpn", choices=["h2", "http/1.1"], required=True)
    parser.add_argument("--folder", type=Path, default=Path("/etc/moeline/tls"), help="of tls.crt and tls.key")
    asked = parser.parse_args()
    front = Front(listen=asked.listen, to=asked.to, certificate=asked.folder / "tls.crt", key=asked.folder / "tls.key", alpn=asked.alpn)
    asyncio.run(_until_asked(front))


if __name__ == "__main__":
    main()
