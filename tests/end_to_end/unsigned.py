"""A signed MP4 as it was before it was signed: without its manifest, and the offsets of its samples as they were."""

from collections.abc import Iterator

C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
NESTED = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def unsigned(data: bytes) -> bytes:
    """The file without the box of the manifest, byte for byte what the signer was given."""
    start, size = next(
        (start, size)
        for start, size, kind in boxes(data)
        if kind == b"uuid" and data[start + 8 : start + 24] == C2PA_UUID
    )
    rest = bytearray(data[:start] + data[start + size :])
    for place in offset_tables(bytes(rest)):
        count = int.from_bytes(rest[place + 12 : place + 16], "big")
        for entry in range(place + 16, place + 16 + 4 * count, 4):
            rest[entry : entry + 4] = (int.from_bytes(rest[entry : entry + 4], "big") - size).to_bytes(4, "big")
    return bytes(rest)


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """Start, size and kind of each box between two places."""
    while start < (len(data) if end is None else end):
        size = int.from_bytes(data[start : start + 4], "big")
        yield start, size, data[start + 4 : start + 8]
        start += size


def offset_tables(data: bytes, start: int = 0, end: int | None = None) -> Iterator[int]:
    """Where the tables of chunk offsets (`stco`) begin."""
    for at, size, kind in boxes(data, start, end):
        if kind == b"stco":
            yield at
        elif kind in NESTED:
            yield from offset_tables(data, at + 8, at + size)
