"""Options of the quality gate, and what they say as a message."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from rushes.cli.refusal import CommandRefused

GATE = "Quality gate"

Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--gate",
        metavar="CHECK=ACTION[:THRESHOLD]",
        help="What a finding does: note, warn, fail or retry (with another seed); may be given more than once. "
        "Checks: black, frozen, flicker, underexposed, overexposed, blur, blocking, face, not_finite.",
        rich_help_panel=GATE,
    ),
]
Retakes = Annotated[
    int | None, typer.Option(help="Takes after the first that a retry may ask for, 1 to 8.", rich_help_panel=GATE)
]
RetakeWithin = Annotated[
    float | None,
    typer.Option(help="Seconds within which a further take must be expected to end.", rich_help_panel=GATE),
]

_RULE = re.compile(r"([a-z_]+)=([a-z]+)(?::(-?\d+(?:\.\d+)?))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateOptions:
    """What the options of the quality gate say, as they were given."""

    rules: Sequence[str] = ()
    retakes: int | None = None
    retake_within: float | None = None

    def settings(self) -> dict[str, object]:
        """The keyword of `generation_spec` that says the same; none where nothing is said.

        Raises `CommandRefused` naming the option.
        """
        from rushes.client.gate import ACTIONS, CHECKS, GateRule, inspection_policy  # noqa: PLC0415 - it imports grpc

        rules: list[GateRule] = []
        for text in self.rules:
            found = _RULE.fullmatch(text)
            if not found:
                raise CommandRefused("--gate", f"must be CHECK=ACTION or CHECK=ACTION:THRESHOLD, not {text}")
            check, action, threshold = found.groups()
            for word, known, name in ((check, CHECKS, "check"), (action, ACTIONS, "action")):
                if word not in known:
                    raise CommandRefused("--gate", f"{name} must be one of {', '.join(known)}, not {word}")
            if check in {rule.check for rule in rules}:
                raise CommandRefused("--gate", f"has two rules for {check}")
            rules.append(
                GateRule(
                    check=check,
                    action=action,
                    threshold=None if threshold is None else float(threshold),
                    retakes=self.retakes if action == "retry" else None,
                )
            )
        for option, given in (("--retakes", self.retakes), ("--retake-within", self.retake_within)):
            if given is not None and "retry" not in {rule.action for rule in rules}:
                raise CommandRefused(option, "needs a --gate rule that says retry")
        return {"inspection": inspection_policy(rules, retake_within_seconds=self.retake_within)} if rules else {}
