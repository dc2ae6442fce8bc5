"""The codecs string of a clip (RFC 6381), read from its initialisation segment, as browsers' media sources want it."""

from collections.abc import Iterator

_CONTAINERS = {b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"stsd": 8}
_SAMPLE_ENTRY = 78


def codecs_string(initialisation: bytes) -> str:
    """For example `avc1.64000a`, `hvc1.1.6.L60.90`, `av01.0.00M.08`, `vp09.00.10.08`.

    Raises `ValueError` for a segment without a video that is known.
    """
    for kind, body in _boxes(initialisation):
        if kind == b"avcC":
            return f"avc1.{body[1:4].hex()}"
        if kind == b"hvcC":
            return f"hvc1.{_hevc(body)}"
        if kind == b"av1C":
            profile, level = body[1] >> 5, body[1] & 31
            tier, deep = "H" if body[2] >> 7 else "M", body[2] >> 6 & 1
            return f"av01.{profile}.{level:02d}{tier}.{10 if deep else 8:02d}"
        if kind == b"vpcC":
            return f"vp09.{body[4]:02d}.{body[5]:02d}.{body[6] >> 4:02d}"
    raise ValueError("the initialisation segment has no video that is known")


def _hevc(record: bytes) -> str:
    """Profile, compatibility, tier, level and constraints (ISO/IEC 14496-15, annex E)."""
    space = ("", "A", "B", "C")[record[1] >> 6]
    compatibility = int(f"{int.from_bytes(record[2:6], 'big'):032b}"[::-1], 2)
    constraints = record[6:12].rstrip(b"\0")
    tier = "H" if record[1] >> 5 & 1 else "L"
    return ".".join(
        [f"{space}{record[1] & 31}", f"{compatibility:x}", f"{tier}{record[12]}", *(f"{one:x}" for one in constraints)]
    )


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every box on the way down to the sample entries' own, in order, with its body."""
    offset = 0
    while offset + 8 <= len(data):
        size, kind = int.from_bytes(data[offset : offset + 4], "big"), data[offset + 4 : offset + 8]
        body = data[offset + 8 : offset + max(size, 8)]
        yield kind, body
        if kind in _CONTAINERS:
            yield from _boxes(body[_CONTAINERS[kind] :])
        elif kind in (b"avc1", b"hvc1", b"hev1", b"av01", b"vp09"):
            yield from _boxes(body[_SAMPLE_ENTRY:])
        offset += max(size, 8)
