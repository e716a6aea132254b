"""Kinds of hostile and broken landing files: what each holds, which texts are read from it, and the reason for each other record."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

LIMIT = 1_000_000  # max_document_bytes
ROW = b'{"text": "first"}\n'
LAST = b'{"text": "last"}\n'
BOTH = ("first", "last")


@dataclass(frozen=True)
class Kind:
    """``texts`` are read; ``reasons``: the beginning of each error, in order."""

    name: str
    content: bytes | Callable[[Path], None]
    texts: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        else:
            self.content(path)


def zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def parquet(table: pa.Table, **kwargs: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **kwargs)
    return sink.getvalue()


def between(line: bytes, reason: str) -> Kind:
    """A bad line among good ones is quarantined alone."""
    return Kind("a.jsonl", ROW + line + b"\n" + LAST, BOTH, (reason,))


def archive(kind: str) -> bytes:
    sink = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(sink, "w") as found:
            found.writestr("../../a.jsonl", ROW)
    else:
        with tarfile.open(fileobj=sink, mode="w:gz") as found:
            member = tarfile.TarInfo("../../a.jsonl")
            member.size = len(ROW)
            found.addfile(member, io.BytesIO(ROW))
    return sink.getvalue()


def pieces(total: int, *, line_bytes: int = 0) -> Iterator[bytes]:
    """``total`` bytes in which every ``line_bytes``-th is a line end."""
    block = b"x" * (1 << 20) if not line_bytes else (b"x" * (line_bytes - 1) + b"\n") * ((1 << 20) // line_bytes)
    for _ in range(total // len(block)):
        yield block


def bomb(compression: str, total: int) -> Callable[[Path], None]:
    """A good row, then one line of ``total`` bytes, then a good row."""

    def write(path: Path) -> None:
        packer = {"gz": lambda: zlib.compressobj(1, wbits=31), "zst": lambda: zstandard.ZstdCompressor(level=1).compressobj()}.get(compression)
        packed = packer() if packer else None
        with open(path, "wb") as handle:
            for piece in (ROW, *pieces(total), b"\n", LAST):
                handle.write(packed.compress(piece) if packed else piece)
            if packed:
                handle.write(packed.flush())

    return write


def flipped(content: bytes, at: float) -> bytes:
    damaged = bytearray(content)
    damaged[int(len(damaged) * at)] ^= 0xFF
    return bytes(damaged)


NOISE = b"".join(json.dumps({"text": zlib.crc32(struct.pack("<I", i)).to_bytes(4, "big").hex() * 8}).encode() + b"\n" for i in range(3000))
N_NOISE = tuple(json.loads(line)["text"] for line in NOISE.splitlines())
TABLE = pa.table({"text": ["one", "two"]})
INVALID = pa.array([b"\xff", b"two"], pa.binary()).view(pa.string())
DEEP = 100_000
TOO_LONG = f"is above max_document_bytes ({LIMIT})"

KINDS: dict[str, Kind] = {
    # JSON lines
    "not JSON": between(b"plain text", "invalid JSON"),
    "half an object": between(b'{"text": "a', "invalid JSON"),
    "two objects in a line": between(b'{"text": "a"} {"text": "b"}', "invalid JSON"),
    "single quotes": between(b"{'text': 'a'}", "invalid JSON"),
    "trailing comma": between(b'{"text": "a",}', "invalid JSON"),
    "control character in a string": between(b'{"text": "a\tb"}', "invalid JSON"),
    "an array": between(b'["text"]', "a JSON object was expected, found list"),
    "null": between(b"null", "a JSON object was expected, found NoneType"),
    "a string": between(b'"text"', "a JSON object was expected, found str"),
    "deep arrays": between(b"[" * DEEP, "invalid JSON"),
    "deep closed arrays": between(b'{"text": "a", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}", "invalid JSON"),
    "deep objects": between(b'{"a":' * DEEP + b"1" + b"}" * DEEP, "invalid JSON"),
    "a number of 10,000 digits": between(b'{"text": "a", "n": ' + b"9" * 10_000 + b"}", "invalid JSON"),
    "a number beyond every float": Kind("a.jsonl", b'{"text": "a", "n": 1e999999}\n', ("a",)),
    "NaN and Infinity": Kind("a.jsonl", b'{"text": "a", "n": NaN, "m": -Infinity}\n', ("a",)),
    "text is a number": between(b'{"text": 5}', "field 'text' must be text, it is of type int"),
    "text is a list": between(b'{"text": ["a"]}', "field 'text' must be text, it is of type list"),
    "text is an object": between(b'{"text": {"a": 1}}', "field 'text' must be text, it is of type dict"),
    "text is true": between(b'{"text": true}', "field 'text' must be text, it is of type bool"),
    "text is null": between(b'{"text": null}', "field 'text' must be text, it is missing or null"),
    "no text": between(b'{"body": "a"}', "field 'text' must be text, it is missing or null"),
    "other case of the key": between(b'{"Text": "a"}', "field 'text' must be text, it is missing or null"),
    "empty text": between(b'{"text": ""}', "field 'text' is empty"),
    "only white space": between(b'{"text": " \\n\\t\\u2003"}', "field 'text' is empty"),
    "text twice": between(b'{"text": "a", "text": "b"}', "field 'text' is there twice"),
    "text twice, once escaped": between(b'{"text": "a", "te\\u0078t": "b"}', "field 'text' is there twice"),
    "licence twice": between(b'{"text": "a", "licence": "MIT", "licence": "GPL-3.0"}', "field 'licence' is there twice"),
    "another key twice": Kind("a.jsonl", b'{"text": "a", "x": 1, "x": 2}\n', ("a",)),
    "40,000 other columns": Kind("a.jsonl", json.dumps({"text": "a", **{f"c{i}": i for i in range(40_000)}}).encode() + b"\n", ("a",)),
    "licence is a number": between(b'{"text": "a", "licence": 3}', "field 'licence' must be text, it is of type int"),
    "uri is an object": Kind("a.jsonl", b'{"text": "a", "uri": {"x": 1}}\n', ("a",)),
    "lone surrogate": between(b'{"text": "a\\ud800b"}', "lone surrogate at character 1"),
    "lone surrogate in the uri": between(b'{"text": "a", "uri": "\\udfff"}', "lone surrogate"),
    "surrogate pair": Kind("a.jsonl", b'{"text": "\\ud83d\\ude00"}\n', ("\U0001f600",)),
    "surrogates as bytes": between(b'{"text": "\xed\xa0\x80"}', "invalid UTF-8"),
    "invalid UTF-8": between(b'{"text": "\xff"}', "invalid UTF-8 at byte 10"),
    "overlong UTF-8": between(b'{"text": "\xc0\xaf"}', "invalid UTF-8"),
    "half a character": between(b'{"text": "\xe2\x82"}', "invalid UTF-8"),
    "NUL escaped": Kind("a.jsonl", b'{"text": "a\\u0000b"}\n', ("a\0b",)),
    "NUL bytes in a line": between(b"\0\0\0\0", "invalid JSON"),
    "Unicode line ends in a text": Kind("a.jsonl", '{"text": "a\u2028b\u0085c"}\n'.encode(), ("a\u2028b\u0085c",)),
    "carriage returns only": Kind("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', (), ("invalid JSON",)),
    "a byte order mark": Kind("a.jsonl", b"\xef\xbb\xbf" + ROW + LAST, BOTH),
    "a byte order mark in the middle": between(b"\xef\xbb\xbf" + b'{"text": "a"}', "invalid JSON"),
    "UTF-16": Kind("a.jsonl", ROW.decode().encode("utf-16"), (), ("binary data, not JSON lines",)),
    "UTF-16 without a mark": Kind("a.jsonl", ROW.decode().encode("utf-16-le"), (), ("binary data, not JSON lines",)),
    "UTF-32": Kind("a.jsonl", ROW.decode().encode("utf-32"), (), ("binary data, not JSON lines",)),
    "Latin-1": between('{"text": "café"}'.encode("latin-1"), "invalid UTF-8"),
    "a text that is too long by escapes": between(b'{"text": "' + b"\\u20ac" * (LIMIT // 6 - 20) + b'", "b": "' + b"y" * 200 + b'"}', "line of"),
    "100,000 empty lines": Kind("a.jsonl", ROW + b"\n" * 100_000 + LAST, BOTH),
    "a line of 100 MB": Kind("a.jsonl", bomb("", 100 << 20), BOTH, (f"line of {100 << 20} bytes {TOO_LONG}",)),
    # compressed
    "a gzip bomb": Kind("a.jsonl.gz", bomb("gz", 400 << 20), BOTH, (f"line of {400 << 20} bytes {TOO_LONG}",)),
    "a zstd bomb": Kind("a.jsonl.zst", bomb("zst", 1 << 30), BOTH, (f"line of {1 << 30} bytes {TOO_LONG}",)),
    "a text bomb": Kind("a.txt.gz", bomb("gz", 100 << 20), (), ("text above max_document_bytes",)),
    "gzip in gzip": Kind("a.jsonl.gz", gzip.compress(gzip.compress(NOISE)), (), ("binary data, not JSON lines",)),
    "gzip in gzip by name": Kind("a.jsonl.gz.gz", gzip.compress(gzip.compress(ROW)), (), ("unknown file type",)),
    "gzip in zstd": Kind("a.jsonl.zst", zst(gzip.compress(NOISE)), (), ("binary data, not JSON lines",)),
    "zip called gzip": Kind("a.jsonl.gz", archive("zip"), (), ("broken gzip",)),
    "tar in gzip": Kind("a.jsonl.gz", archive("tar"), (), ("binary data, not JSON lines",)),
    "bzip2 called gzip": Kind("a.jsonl.gz", bz2.compress(ROW), (), ("broken gzip",)),
    "xz called zstd": Kind("a.jsonl.zst", lzma.compress(ROW), (), ("broken zstd",)),
    "plain text called gzip": Kind("a.jsonl.gz", ROW, (), ("broken gzip",)),
    "gzip called plain": Kind("a.jsonl", gzip.compress(NOISE), (), ("binary data, not JSON lines",)),
    "gzip cut in its header": Kind("a.jsonl.gz", gzip.compress(ROW)[:5], (), ("truncated gzip",)),
    "gzip cut in its trailer": Kind("a.jsonl.gz", gzip.compress(ROW + LAST)[:-4], BOTH, ("truncated gzip",)),
    "gzip with a wrong checksum": Kind("a.jsonl.gz", flipped(gzip.compress(ROW + LAST), 0.92), (), ("broken gzip",)),
    "gzip parts": Kind("a.jsonl.gz", gzip.compress(ROW) + gzip.compress(b"") + gzip.compress(LAST), BOTH),
    "gzip with zeros behind": Kind("a.jsonl.gz", gzip.compress(ROW + LAST) + b"\0" * 4096, BOTH),
    "gzip with junk behind": Kind("a.jsonl.gz", gzip.compress(ROW + LAST) + b"junk", BOTH, ("broken gzip",)),
    "10,000 empty gzip members": Kind("a.jsonl.gz", gzip.compress(b"") * 10_000 + gzip.compress(ROW + LAST), BOTH),
    "zstd with a skippable frame": Kind("a.jsonl.zst", b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zst(ROW + LAST), BOTH),
    "zstd cut in its header": Kind("a.jsonl.zst", zst(ROW)[:6], (), ("truncated zstd",)),
    "zstd with a wrong checksum": Kind("a.jsonl.zst", flipped(zst(ROW + LAST), 0.98), (), ("broken zstd",)),
    "zstd that asks for a window of gigabytes": Kind("a.jsonl.zst", b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x01\0\0", (), ("broken zstd",)),
    # text
    "an empty file": Kind("a.jsonl", b"", (), ("empty file",)),
    "an empty text": Kind("a.md", b"", (), ("empty file",)),
    "an empty gzip": Kind("a.txt.gz", gzip.compress(b""), (), ("empty file",)),
    "blank lines only": Kind("a.jsonl", b"\n \r\n\n", (), ("empty file",)),
    "blanks only": Kind("a.txt", b" \n\t\n", (), ("field 'text' is empty",)),
    "NUL in a text": Kind("a.txt", b"some\0text", (), ("binary data, not text",)),
    "a text in UTF-16": Kind("a.txt", "some text".encode("utf-16"), (), ("binary data, not text",)),
    "a text in Latin-1": Kind("a.txt", "café".encode("latin-1"), (), ("invalid UTF-8 at byte 3",)),
    "a text with a mark": Kind("a.md", b"\xef\xbb\xbf# Title", ("# Title",)),
    "a picture called text": Kind("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", (), ("binary data, not text",)),
    # Parquet
    "Parquet without its end": Kind("a.parquet", parquet(TABLE)[:-8], (), ("broken Parquet",)),
    "Parquet that is only its mark": Kind("a.parquet", b"PAR1PAR1", (), ("broken Parquet",)),
    "Parquet with a footer of 4 GB": Kind("a.parquet", parquet(TABLE)[:-8] + b"\xff\xff\xff\x7fPAR1", (), ("broken Parquet",)),
    "Parquet with a damaged footer": Kind("a.parquet", flipped(parquet(TABLE), 0.97), (), ("broken Parquet",)),
    "Parquet of numbers": Kind("a.parquet", parquet(pa.table({"text": [1, 2]})), (), ("column 'text' must be text, it is int64",)),
    "Parquet with nested text": Kind("a.parquet", parquet(pa.table({"text": [{"a": "b"}]})), (), ("column 'text' must be text, it is struct",)),
    "Parquet without the column": Kind("a.parquet", parquet(pa.table({"body": ["a"]})), (), ("no column 'text', found body",)),
    "Parquet with two such columns": Kind("a.parquet", parquet(pa.table([["a"], ["b"]], names=["text", "text"])), (), ("no column 'text'",)),
    "Parquet of no rows": Kind("a.parquet", parquet(TABLE.slice(0, 0)), (), ("empty file",)),
    "Parquet with nulls": Kind("a.parquet", parquet(pa.table({"text": ["one", None]})), ("one",), ("field 'text' must be text",)),
    "Parquet with invalid UTF-8": Kind("a.parquet", parquet(pa.table({"text": INVALID})), ("two",), ("invalid UTF-8",)),
    "Parquet with a row of 30 MB": Kind("a.parquet", parquet(pa.table({"text": ["one", "x" * (30 << 20)]}), compression="zstd"), ("one",), ("text of",)),
    "Parquet called JSON": Kind("a.jsonl", parquet(TABLE), (), ("binary data, not JSON lines",)),
    "JSON called Parquet": Kind("a.parquet", ROW, (), ("broken Parquet",)),
    # names
    "no suffix": Kind("README", b"text", (), ("unknown file type",)),
    "an unknown suffix": Kind("a.docx", b"PK\3\4", (), ("unknown file type",)),
    "two suffixes": Kind("a.jsonl.exe", ROW, (), ("unknown file type",)),
    "capitals": Kind("A.JSONL.GZ", gzip.compress(ROW), ("first",)),
    "a name of 250 bytes": Kind("a" * 244 + ".jsonl", ROW, ("first",)),
    "a name with a line end": Kind("a\nb.jsonl", ROW, ("first",)),
    "a name with quotes and a command": Kind("a'\"; $(touch x) `x` && .jsonl", ROW, ("first",)),
    "a name like an option": Kind("--help.jsonl", ROW, ("first",)),
    "a name like a URL": Kind("s3:%2F%2Fbucket#a?b.jsonl", ROW, ("first",)),
    "a name with a glob": Kind("*[a]{b}?.parquet", parquet(TABLE), ("one", "two")),
    "a name that turns round": Kind("a\u202egnp.jsonl", ROW, ("first",)),
    "dots": Kind("...jsonl", ROW, ("first",)),
}  # fmt: skip
