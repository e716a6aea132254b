"""Byte streams of landing files: decompression that bounds memory and notices truncation, and lines of bounded length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jobs.services.landing import opened

_READ_BYTES = 1 << 20
_OUTPUT_BYTES = 1 << 20
# zstd can turn 4 bytes into 128 KiB, and its streaming call returns all that a piece of input gives: 1 KiB gives 32 MiB at worst.
_ZSTD_INPUT_BYTES = 1 << 10
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class StreamBroken(Exception):
    """A stream that ends early or cannot be decompressed. ``offset``: decompressed bytes before the unfinished record."""

    def __init__(self, message: str, offset: int = 0, pending: bytes = b""):
        super().__init__(message)
        self.offset = offset
        self.pending = pending


class Line(NamedTuple):
    """One line without its end. ``data`` is None when it was longer than allowed; ``head`` are its first bytes."""

    number: int
    offset: int
    length: int
    data: bytes | None
    head: bytes


def chunks(path: str, compression: str | None) -> Iterator[bytes]:
    """Decompressed content in pieces of bounded size. Raises StreamBroken after the last good piece, OSError if it cannot open."""
    with opened(path) as handle:
        if compression == "gzip":
            yield from _gunzip(handle)
        elif compression == "zstd":
            yield from _unzstd(handle)
        else:
            while piece := handle.read(_READ_BYTES):
                yield piece


def _gunzip(handle) -> Iterator[bytes]:
    import zlib

    data, member, finished = b"", None, False
    while data := data or handle.read(_READ_BYTES):
        if member is None:
            if finished and not data.strip(b"\0"):  # tapes pad with zeros
                data = b""
                continue
            member, finished = zlib.decompressobj(wbits=31), False
        try:
            piece = member.decompress(data, _OUTPUT_BYTES)
        except zlib.error as error:
            raise StreamBroken(f"broken gzip: {error}") from None
        if piece:
            yield piece
        data = member.unconsumed_tail
        if member.eof:
            data, member, finished = member.unused_data, None, True
    if member is not None:
        raise StreamBroken("truncated gzip: the file ends inside the compressed data")


def _unzstd(handle) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    frame = None
    block, at = b"", 0
    while True:
        if at >= len(block):
            block, at = handle.read(_READ_BYTES), 0
            if not block:
                break
        data = block[at : at + _ZSTD_INPUT_BYTES]
        at += len(data)
        frame = frame or decompressor.decompressobj()
        try:
            piece = frame.decompress(data)
        except zstandard.ZstdError as error:
            raise StreamBroken(f"broken zstd: {str(error).removeprefix('zstd decompressor error: ')}") from None
        if piece:
            yield piece
        if frame.eof:
            at -= len(frame.unused_data)
            frame = None
    if frame is not None:
        raise StreamBroken("truncated zstd: the file ends inside the compressed data")


def lines(pieces: Iterable[bytes], max_bytes: int, keep: int) -> Iterator[Line]:
    """Split a stream at ``\\n``. Lines above ``max_bytes`` are skipped to their end and only their first ``keep`` bytes are held.

    Raises StreamBroken, with the offset and first bytes of the unfinished line, when the stream does.
    """
    pending = bytearray()
    number, start, length = 1, 0, 0  # of the line being read

    def finish() -> Line:
        data = bytes(pending) if length <= max_bytes else None
        return Line(number, start, length, data, bytes(pending[:keep]))

    try:
        for piece in pieces:
            begin = 0
            while begin < len(piece):
                end = piece.find(b"\n", begin)
                stop = len(piece) if end < 0 else end
                if length <= max_bytes:
                    pending += memoryview(piece)[begin : min(stop, begin + max_bytes + 1 - length)]
                length += stop - begin
                if length > max_bytes:
                    del pending[keep:]
                begin = stop + 1
                if end >= 0:
                    yield finish()
                    pending.clear()
                    number, start, length = number + 1, start + length + 1, 0
    except StreamBroken as broken:
        raise StreamBroken(f"{broken} (after {start + length} decompressed bytes)", start, bytes(pending[:keep])) from None
    if length:
        yield finish()
