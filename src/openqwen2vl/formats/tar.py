"""Plain tar files by offset: list what lies where without reading it, and write headers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

BLOCK = 512
END = bytes(2 * BLOCK)
"""What ends an archive."""

_REGULAR = b"\x000"
_PAX_FIELD = re.compile(rb"\d+ (path|size)=([^\n]*)\n")


@dataclass(frozen=True)
class Member:
    """A file within a tar: its name, and its bytes ``[offset, offset + size)``."""

    name: str
    offset: int
    size: int


class TruncatedTarError(ValueError):
    """A tar that breaks off or is damaged; ``member`` is the name of the cut file, if known."""

    def __init__(self, message: str, member: str | None = None) -> None:
        super().__init__(message)
        self.member = member


def padded(size: int) -> int:
    """Round a size up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def members(data: mmap | bytes) -> Iterator[Member]:
    """List the regular files of a tar in order: ustar, GNU long names and pax headers.

    Args:
        data: the whole tar; only headers are touched.

    Raises:
        TruncatedTarError: after the last whole file, when the archive breaks off or a header is
            damaged.
    """
    at, end = 0, len(data)
    long_name: str | None = None
    long_size: int | None = None
    while at < end:
        header = data[at : at + BLOCK]
        if header == END[:BLOCK]:
            return
        name, size, kind = _parse(header, at)
        name, size = long_name or name, size if long_size is None else long_size
        start, at = at + BLOCK, at + BLOCK + padded(size)
        if start + size > end:
            raise TruncatedTarError(f"ends at byte {end} within {name} of {size} bytes", name)
        if kind == b"L":
            long_name = data[start : start + size].rstrip(b"\0").decode(errors="replace")
        elif kind == b"x":
            fields = dict(_PAX_FIELD.findall(data[start : start + size]))
            long_name = fields[b"path"].decode(errors="replace") if b"path" in fields else None
            long_size = int(fields[b"size"]) if b"size" in fields else None
        else:
            if kind in _REGULAR:
                yield Member(name, start, size)
            long_name = long_size = None
    raise TruncatedTarError(f"ends at byte {end} without the mark of an archive's end")


def _parse(header: bytes, at: int) -> tuple[str, int, bytes]:
    """Read name, size and type of a header block at byte ``at``."""
    if len(header) < BLOCK:
        raise TruncatedTarError(f"ends within a header at byte {at}")
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        raw_size = header[124:136]
        large = raw_size[0] & 0x80
        size = int.from_bytes(raw_size[1:]) if large else int(raw_size.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise TruncatedTarError(f"has a damaged header at byte {at}") from error
    if size < 0 or checksum != sum(header) - sum(header[148:156]) + 8 * 32:
        raise TruncatedTarError(f"has a damaged header at byte {at}")
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    path = prefix + b"/" + name if prefix else name
    return path.decode(errors="replace"), size, header[156:157]


def header(name: str, size: int) -> bytes:
    """Give the 512-byte ustar header of a regular file; owner, mode and time are fixed.

    Raises:
        ValueError: a name of more than 100 bytes or a size of 8 GiB and more.
    """
    encoded = name.encode()
    if len(encoded) > 100 or size >= 8**11:
        raise ValueError(f"{name} of {size} bytes does not fit a plain tar header")
    block = bytearray(BLOCK)
    block[: len(encoded)] = encoded
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = b"0"
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
