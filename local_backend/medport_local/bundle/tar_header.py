"""The headers of a bundle's tar: what they must be, byte for byte, and what is wrong with one that is not that.

A header follows from a member's path and size alone (regular file, mode 0644, owner 0, time 0), so a reader does
not interpret headers: it compares them. Only to name what is wrong are they parsed, by ``tarfile``.

Source: POSIX.1-2017, ``pax``, "ustar Interchange Format" and "pax Extended Header".
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping

from medport_local.bundle import paths

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
"""What stands after the last member."""
EXPLAIN_BYTES = 8 * BLOCK_BYTES
"""How much of a wrong header ``explain`` looks at."""

_OCTAL_LIMIT = 8**11
_NAME_BYTES = 100
_TYPES = {
    tarfile.SYMTYPE: "is a symbolic link",
    tarfile.LNKTYPE: "is a hard link",
    tarfile.CHRTYPE: "is a device",
    tarfile.BLKTYPE: "is a device",
    tarfile.FIFOTYPE: "is a pipe",
    tarfile.DIRTYPE: "is a folder",
    tarfile.CONTTYPE: "is not a regular file",
    tarfile.GNUTYPE_SPARSE: "is a sparse file",
    tarfile.GNUTYPE_LONGNAME: "has a GNU name",
    tarfile.GNUTYPE_LONGLINK: "has a GNU link",
    tarfile.XGLTYPE: "has a global pax header",
    tarfile.SOLARIS_XHDTYPE: "has a Solaris header",
}
_MAGIC = (
    (b"PK", "is a zip file"),
    (b"\x1f\x8b", "is compressed (gzip)"),
    (b"\xfd7zXZ", "is compressed (xz)"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd)"),
    (b"BZh", "is compressed (bzip2)"),
)


def header(path: str, size_bytes: int) -> bytes:
    """The one header that a member may have; a multiple of 512 bytes.

    Paths that are not ASCII or longer than 100 bytes, and sizes from 8 GiB on, stand in a pax header before it.
    """
    records: dict[str, str] = {}
    if not path.isascii() or len(path) > _NAME_BYTES:
        records["path"] = path
    if size_bytes >= _OCTAL_LIMIT:
        records["size"] = str(size_bytes)
    block = _block(path, 0 if "size" in records else size_bytes, tarfile.REGTYPE)
    if not records:
        return block
    extended = b"".join(_record(key, value) for key, value in records.items())
    return _block("././@PaxHeader", len(extended), tarfile.XHDTYPE) + extended + padding(len(extended)) + block


def padding(size_bytes: int) -> bytes:
    """The zeros between a member's last byte and the next header."""
    return bytes(-size_bytes % BLOCK_BYTES)


def size_of(block: bytes, path: str) -> int | None:
    """The size that a header of a given path states; ``None`` if it is not the header of that path."""
    try:
        size = int(block[124:135], 8)
    except ValueError:
        return None
    return size if size >= 0 and block == header(path, size) else None


def not_a_bundle(start: bytes) -> str:
    """What a file is, by its first bytes, that does not begin as a bundle does."""
    return next((said for magic, said in _MAGIC if start.startswith(magic)), "is not a bundle")


def explain(found: bytes, *, path: str, size_bytes: int, listed: Mapping[str, int]) -> tuple[str, str]:
    """Say what is wrong with a header.

    Args:
        found: up to ``EXPLAIN_BYTES`` from where the header should be.
        path: of the member that should be there; empty after the last one.
        size_bytes: of that member.
        listed: the place of every path in the bundle, from 0 on.

    Returns:
        The member to blame, and the fault.
    """
    block = found[:BLOCK_BYTES]
    if not block.strip(b"\0"):
        return (path, "is listed, and is not there") if path else ("bundle", "has bytes after its end")
    if not path and block[257:262] != b"ustar":
        return "bundle", "has bytes after its end"
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return path or "bundle", "has a header that is damaged"
    name, records = member.name, dict[str, str]()
    if member.type == tarfile.XHDTYPE:
        name, records = _extended(found, member.size)
        if fault := _records_fault(records, path, size_bytes):
            return name or path, fault
    if member.type in _TYPES:
        return name, _TYPES[member.type]
    if fault := paths.fault_of(name):
        return name, fault
    if name not in listed:
        return name, "is not in the manifest"
    if listed[name] < listed.get(path, len(listed)):
        return name, "is there a second time"
    if name != path:
        return path, f"is listed, and {paths.shown(name)} is in its place"
    if not records and member.size != size_bytes:
        return name, "does not have the size that the manifest lists"
    return name, "has a header that differs from the one that medport writes"


def _block(path: str, size_bytes: int, kind: bytes) -> bytes:
    name = path.encode("ascii", "replace")[:_NAME_BYTES]
    fields = (
        name.ljust(_NAME_BYTES, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        b"%011o\0" % size_bytes,
        b"00000000000\0",
        b" " * 8,
        kind,
        bytes(100),
        b"ustar\x0000",
        bytes(64),
        b"0000000\0" * 2,
        bytes(155 + 12),
    )
    block = b"".join(fields)
    assert len(block) == BLOCK_BYTES
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: str, value: str) -> bytes:
    """One record of a pax header: its own length in decimal, a blank, ``key=value`` and a line feed."""
    rest = f" {key}={value}\n".encode()
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _extended(found: bytes, size_bytes: int) -> tuple[str, dict[str, str]]:
    """The path and the records of a pax header, as far as they can be read."""
    data, records = found[BLOCK_BYTES : BLOCK_BYTES + size_bytes], dict[str, str]()
    while data:
        digits, blank, _ = data.partition(b" ")
        length = int(digits) if blank and digits.isdigit() and len(digits) < 8 else 0
        key, _, value = data[len(digits) + 1 : max(0, length - 1)].decode("utf-8", "replace").partition("=")
        if not key or length > len(data):
            break
        records[key] = value
        data = data[length:]
    return records.get("path", ""), records


def _records_fault(records: dict[str, str], path: str, size_bytes: int) -> str | None:
    if any(key.startswith("GNU.sparse") for key in records):
        return "is a sparse file"
    if "linkpath" in records:
        return "has a pax header that makes it a link"
    if other := records.keys() - {"path", "size"}:
        return f"has a pax header with {paths.shown(min(other))}"
    if not records:
        return "has a pax header that cannot be read"
    if fault := paths.fault_of(records["path"]) if "path" in records else None:
        return fault
    if records.get("path", path) != path:
        return f"has a pax header that names another path than {paths.shown(path)}"
    if records.get("size", str(size_bytes)) != str(size_bytes):
        return "has a pax header with another size than the manifest lists"
    return None
