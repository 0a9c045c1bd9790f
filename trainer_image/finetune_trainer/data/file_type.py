"""What a file is, by its first bytes: people and programs give files names that do not fit.

Contents that show beyond doubt what they are, are read as such, whatever the name says. Everything
else that is not what the name says is refused with what it is and what to do.
"""

import json
import logging
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.data.example import bad_data
from finetune_trainer.data.source_file import kind_of, unknown_kind

_log = logging.getLogger(__name__)
_HEAD = 1 << 16  # bytes that are looked at
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COLUMNAR = {".parquet": "a Parquet file", ".arrow": "an Arrow file"}
_TITLES = {**_COLUMNAR, ".jsonl": "JSON Lines", ".json": "a JSON list", ".csv": "CSV"}
# Text that begins with the letters of a signature goes on with a printable character.
_BINARY = rb"[\x00-\x08\x0e-\x1f\x7f-\xff]"
_READABLE = (
    (re.compile(rb"PAR1" + _BINARY), ".parquet"),
    (re.compile(rb"ARROW1\0\0"), ".arrow"),
    (re.compile(rb"\xff\xff\xff\xff.{3}\0", re.DOTALL), ".arrow"),  # a stream
)
_WRITE = "write it as .jsonl"
_REFUSED = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), found, remedy)
    for pattern, found, remedy in (
        (rb"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it, or use gzip"),
        (rb"BZh[1-9]1AY&SY", "compressed with bzip2", "decompress it, or use gzip"),
        (rb"\xfd7zXZ\0", "compressed with xz", "decompress it, or use gzip"),
        (rb"\x04\x22\x4d\x18", "compressed with lz4", "decompress it, or use gzip"),
        (rb"\xff\x06\0\0sNaPpY", "compressed with snappy", "decompress it, or use gzip"),
        (rb"PK\x03\x04", "a zip archive", "unpack it (an .xlsx file: save it as .csv)"),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
        (rb".{257}ustar", "a tar archive", "unpack it"),
        (rb"\xd0\xcf\x11\xe0", "an old Office document", "save it as .csv in UTF-8"),
        (rb"\x80[\x02-\x05]", "a Python pickle", _WRITE),
        (rb"\x93NUMPY", "a NumPy file", _WRITE),
        (rb"\x89HDF", "an HDF5 file", _WRITE),
        (rb"SQLite format 3\0", "an SQLite database", _WRITE),
        (rb"ORC" + _BINARY, "an ORC file", "write it as .parquet"),
        (rb"Obj\x01", "an Avro file", "write it as .parquet"),
        (rb"FEA1" + _BINARY, "a Feather file of version 1", "write it as .arrow or .parquet"),
        (rb"PARE" + _BINARY, "an encrypted Parquet file", "decrypt it"),
        (rb"%PDF-", "a PDF document", "write its text as .jsonl"),
        (rb"\{\\rtf", "a rich text document", "save it as plain text in UTF-8"),
        (
            rb"version https://git-lfs",
            "a pointer of Git LFS, not the file itself",
            "fetch it with git lfs pull",
        ),
        (rb"/annex/objects/", "a pointer of git-annex, not the file itself", "fetch it"),
        (rb"\s*<(!doctype html|html)", "a web page (HTML)", "download the file itself"),
        (rb"\s*<\?xml", "an XML document", _WRITE),
        (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32 text", "save it as UTF-8"),
        (rb"\xff\xfe|\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    )
)


@dataclass(frozen=True)
class FileType:
    """How a file is read: one of `source_file.KINDS`, and whether it is compressed with gzip."""

    kind: str
    compressed: bool


def file_type(path: Path, name: str) -> FileType:
    """Return how a file is read; `name` is its name in messages.

    Raises TrainerError (65) if it is none of the files that can be read.
    """
    named = kind_of(path)
    if not named:
        raise unknown_kind(path, name)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    named_gzip = path.suffix.lower() == ".gz"
    if not head:
        if named_gzip or named in _COLUMNAR:
            raise bad_data(name, "empty (0 bytes)", "copy the file again")
        return FileType(named, compressed=False)
    compressed = head.startswith(_GZIP)
    if compressed:
        head = _decompressed(head)
        if head.startswith(_GZIP):
            raise bad_data(name, "compressed with gzip twice", "decompress it once")
    found = _kind(head, named, name)
    if compressed and found in _COLUMNAR:
        raise bad_data(name, f"{_TITLES[found]} compressed with gzip", "decompress it")
    if named_gzip and not compressed and found not in _COLUMNAR:
        problem = "the name ends in .gz, but the file is not compressed with gzip"
        raise bad_data(name, problem, "rename it without .gz, or copy the file again")
    if found != named and {found, named} != {".json", ".jsonl"}:
        _log.warning("%s: the name says %s; read as %s", name, _TITLES[named], _TITLES[found])
    elif compressed and not named_gzip:
        _log.warning("%s: the name does not end in .gz; read as a gzip file", name)
    return FileType(found, compressed)


def _decompressed(head: bytes) -> bytes:
    """Return the beginning of the contents; nothing if it is damaged, which its reader reports."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, _HEAD)
    except zlib.error:
        return b""


def _kind(head: bytes, named: str, name: str) -> str:
    """Return the kind of file that begins with `head`; TrainerError (65) if it cannot be read."""
    for pattern, kind in _READABLE:
        if pattern.match(head):
            return kind
    for pattern, problem, remedy in _REFUSED:
        if pattern.match(head):
            raise bad_data(name, problem, remedy)
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if named in _COLUMNAR:
        if text.isascii() and b"\0" not in text:
            problem = f"not {_TITLES[named]} (it begins with {_beginning(text)!r})"
            raise bad_data(name, problem, "copy the file again, or rename it")
        return named
    if b"\0" in head:
        problem = "not UTF-8 text (it has NUL bytes, as UTF-16 has)"
        raise bad_data(name, problem, "save it as UTF-8")
    first, _, rest = text.partition(b"\n")
    if text.startswith(b"[") and text[1:].lstrip()[:1] in (b"{", b""):
        # In JSON Lines each line may be a list. Such a line is refused, but it is not the file.
        return ".jsonl" if named != ".json" and rest.strip() and _is_json(first) else ".json"
    if not text and named == ".json":
        return ".jsonl"  # a file of blank lines has no row
    if text.startswith(b"{") and (named != ".csv" or _is_json(first)):
        return ".jsonl"
    return named


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _beginning(text: bytes) -> str:
    return text[:14].decode("ascii").partition("\n")[0]
