"""`rushes verify`: what a clip says of its origin."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rushes.cli.exits import BROKEN, OK, UNDECLARED
from rushes.cli.refusal import CommandRefused
from rushes.cli.reports.json_lines import print_json

if TYPE_CHECKING:
    from services.postprocess.verification import Verification

VERDICTS = {OK: "in order", BROKEN: "not in order", UNDECLARED: "says nothing of its origin"}


def verify_file(file: Path, trust: Path | None, *, as_json: bool) -> int:
    """Print what the file says; the exit code. Raises `CommandRefused` for a file that is none or no video."""
    try:
        from services.postprocess.verification import NotAVideo, verify  # noqa: PLC0415 - the light client does without
    except ModuleNotFoundError as missing:
        raise CommandRefused("verify", f"needs {missing.name}: pip install 'rushes[verify]'") from None
    anchors = _anchors(trust)
    try:
        found = verify(file, anchors)
    except NotAVideo as refused:
        raise CommandRefused("FILE", f"{file} {refused}") from None
    except OSError as failed:
        raise CommandRefused("FILE", f"{file} cannot be read: {failed.strerror or failed}") from None
    except ValueError as refused:
        raise CommandRefused("--trust", str(refused)) from None
    code = BROKEN if found.problems else OK if found.found else UNDECLARED
    if as_json:
        print_json("verification", file=str(file), verdict=VERDICTS[code].replace(" ", "_"), **_facts(found))
        return code
    console = Console(highlight=False, soft_wrap=True)
    for name, text in [*_lines(found), ("verdict", VERDICTS[code])]:
        # What a file says may hold anything, sequences that steer a terminal too.
        plain = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
        console.print(f"{name:<10} {plain}", markup=False)
    return code


def _anchors(trust: Path | None) -> str:
    if trust is None:
        return ""
    try:
        text = trust.read_text(encoding="ascii")
    except OSError as failed:
        raise CommandRefused("--trust", f"{trust} cannot be read: {failed.strerror or failed}") from None
    except UnicodeDecodeError:
        text = ""
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise CommandRefused("--trust", f"{trust} must be PEM certificates")
    return text


def _facts(found: "Verification") -> dict[str, object]:
    """The same for machines."""
    manifest, declared = found.manifest, found.declarations
    return {
        "watermark": _mark(found),
        "watermark_certainty": round(found.mark.certainty, 2),
        "manifest": None
        if manifest is None
        else asdict(manifest) | {"trust": manifest.trust.value, "development": manifest.development},
        "metadata": {"source_type": declared.source_type, "aigc": declared.aigc},
        "problems": found.problems,
        "notes": found.notes,
    }


def _mark(found: "Verification") -> str | None:
    return None if found.mark.mark_id is None else f"{found.mark.mark_id:016x}"


def _lines(found: "Verification") -> Iterator[tuple[str, str]]:
    manifest, declared = found.manifest, found.declarations
    mark = _mark(found)
    yield "watermark", f"{mark} (certainty {found.mark.certainty:.1f})" if mark else "none that can be read"
    if manifest is None:
        yield "manifest", "none"
    else:
        yield "manifest", "damaged" if manifest.problems else "whole: not changed since it was signed"
    if manifest is not None and manifest.signer:
        trusted = "trusted" if manifest.trust.value == "trusted" else "trust not known"
        yield "signer", f"{manifest.signer}, {manifest.organisation} ({manifest.algorithm}, {trusted})"
        yield (
            "says",
            f"{manifest.source_type.rpartition('/')[2] or 'no source'}, by {manifest.software or 'no software'}",
        )
        for name, value in manifest.made.items():
            yield "", f"{name.replace('_', ' ')}: {value}"
    yield "XMP", declared.source_type.rpartition("/")[2] or "no source type"
    aigc = declared.aigc
    yield "AIGC", "none" if aigc is None else ", ".join(f"{name} {value}" for name, value in aigc.items() if value)
    for problem in found.problems:
        yield "problem", problem
    for note in found.notes:
        yield "note", note
