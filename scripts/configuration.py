"""Write every service's variables, meanings and defaults into `docs/operating.md`; `--check` only compares."""

import sys
from pathlib import Path

from services.chassis.config import ServiceConfig
from services.chassis.flags import Flags
from services.denoiser.config import DenoiserConfig
from services.encoder.config import EncoderConfig
from services.gateway.config import GatewayConfig
from services.model.config import ModelServiceConfig
from services.postprocess.config import PostprocessConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operating.md"
BEGIN, END = "<!-- variables: written by scripts/configuration.py -->\n", "<!-- end of variables -->\n"
OWN_DEFAULTS = {"RUSHES_LISTEN"}
"""Variables that all services know, with another default in each."""


def tables() -> str:
    """A table of what all services know, one of what all stages know, and one a service of the rest."""
    known: set[str] = set()
    text = ""
    for title, config in (
        ("Every service", ServiceConfig),
        ("Every stage", ModelServiceConfig),
        ("`rushes serve gateway`", GatewayConfig),
        ("`rushes serve encoder`", EncoderConfig),
        ("`rushes serve denoiser`", DenoiserConfig),
        ("`rushes serve postprocess`", PostprocessConfig),
    ):
        rows = [row for row in Flags(config).rows() if row[0] not in known]
        known |= {variable for variable, *_ in rows} - OWN_DEFAULTS
        text += f"\n### {title}\n\n| variable | what it says | |\n|---|---|---|\n"
        text += "".join(
            f"| `{variable}` | {_cell(meaning)} | {_cell(default)} |\n" for variable, meaning, default in rows
        )
    return text + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def written(page: str) -> str:
    """The page with the tables as they are now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tables() + END + after


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv and page != written(page):
        raise SystemExit("docs/operating.md: the variables have changed; run scripts/configuration.py")
    PAGE.write_text(written(page), encoding="utf-8")
