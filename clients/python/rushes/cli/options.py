"""Options that more than one command has."""

from pathlib import Path
from typing import Annotated

import typer

CLIP = "The clip"
SAMPLING = "Sampling"
FILES = "Files"
SUITE = "Embedded suite"
GATEWAY = "Gateway"

Prompt = Annotated[
    str, typer.Argument(metavar="PROMPT", help="What the clip shows: subject, action, scene, camera, mood.")
]
OptionalPrompt = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="What the clip shows: subject, action, scene, camera, mood.")
]
GenerationId = Annotated[str, typer.Argument(metavar="ID", help="Id of the generation.")]

Negative = Annotated[
    str | None, typer.Option("--negative", help="What the clip should not show.", rich_help_panel=CLIP)
]
Width = Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.", rich_help_panel=CLIP)]
Height = Annotated[int | None, typer.Option(help="Pixels, a multiple of 16.", rich_help_panel=CLIP)]
Frames = Annotated[int | None, typer.Option(help="Frames, 4k + 1.", rich_help_panel=CLIP)]
SourceFps = Annotated[
    int | None, typer.Option(help="Frames a second at which the model's own frames play.", rich_help_panel=CLIP)
]
Seed = Annotated[int | None, typer.Option(help="Seed of the noise; drawn if not given.", rich_help_panel=CLIP)]

PresetName = Annotated[
    str | None,
    typer.Option("--preset", help="draft, standard, pro, or one of the model's own.", rich_help_panel=SAMPLING),
]
Steps = Annotated[int | None, typer.Option(help="Solver steps.", rich_help_panel=SAMPLING)]
SolverName = Annotated[str | None, typer.Option("--solver", help="unipc, euler or dpmpp_2m.", rich_help_panel=SAMPLING)]
SigmaRuleName = Annotated[str | None, typer.Option("--sigma-rule", help="wan or diffusers.", rich_help_panel=SAMPLING)]
Shift = Annotated[float | None, typer.Option(help="Flow shift of the noise levels.", rich_help_panel=SAMPLING)]
Boundary = Annotated[
    float | None,
    typer.Option(help="Share of the timesteps above which the high-noise expert works.", rich_help_panel=SAMPLING),
]
GuidanceHigh = Annotated[
    float | None, typer.Option(help="Guidance scale of the high-noise expert.", rich_help_panel=SAMPLING)
]
GuidanceLow = Annotated[
    float | None, typer.Option(help="Guidance scale of the low-noise expert.", rich_help_panel=SAMPLING)
]

GuidanceFrom = Annotated[
    float | None, typer.Option(help="Timestep, 0 to 1000, at which guidance begins.", rich_help_panel=SAMPLING)
]
GuidanceUntil = Annotated[
    float | None, typer.Option(help="Timestep, 0 to 1000, after which guidance ends.", rich_help_panel=SAMPLING)
]
StepCacheName = Annotated[
    str | None,
    typer.Option(
        "--step-cache", help="off, or first_block: answer alike steps from a cache.", rich_help_panel=SAMPLING
    ),
]
StepCacheThreshold = Annotated[
    float | None, typer.Option(help="Change, 0 to 1, below which a step is cached.", rich_help_panel=SAMPLING)
]
ReusePrefix = Annotated[
    bool,
    typer.Option(
        "--reuse-prefix", help="Begin where an earlier clip of equal text and seed left the high-noise expert."
    ),
]
DeclarePrompt = Annotated[
    bool,
    typer.Option("--declare-prompt", help="Write the prompt into the file's signed manifest.", rich_help_panel=FILES),
]

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Name of the MP4, or a folder. Default: made from prompt and seed.",
        rich_help_panel=FILES,
    ),
]
Previews = Annotated[
    Path | None, typer.Option(help="Folder for pictures of the clip while it forms.", rich_help_panel=FILES)
]
PreviewEvery = Annotated[int, typer.Option(help="Steps between previews.", min=1, rich_help_panel=FILES)]

BatchFile = Annotated[
    Path | None,
    typer.Option(
        "--batch",
        help="File of many prompts, one a line: a JSON string, or an object with `prompt` and settings.",
        exists=True,
        dir_okay=False,
        rich_help_panel=FILES,
    ),
]
UseCache = Annotated[
    bool, typer.Option("--cache", help="Take a clip of the same settings and seed that was made before.")
]

Model = Annotated[
    str | None,
    typer.Option(
        envvar="RUSHES_MODEL",
        help="Folder in diffusers layout, or a model's id. Default: the embedded model.",
        rich_help_panel=SUITE,
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda:N.", rich_help_panel=SUITE)]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=SUITE)]

Gateway = Annotated[
    str | None,
    typer.Option(
        envvar="RUSHES_GATEWAY",
        help="host:port or unix:/path.sock. Default: the one that runs on the state folder.",
        rich_help_panel=GATEWAY,
    ),
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="RUSHES_API_KEY", show_envvar=True, help="API key.", rich_help_panel=GATEWAY)
]
UseTls = Annotated[bool, typer.Option("--tls", help="Use TLS.", rich_help_panel=GATEWAY)]
Ca = Annotated[
    Path | None, typer.Option(help="PEM certificates to trust instead of the system's.", rich_help_panel=GATEWAY)
]
State = Annotated[
    Path | None,
    typer.Option(
        envvar="RUSHES_STATE",
        help="Folder of jobs, clips and logs. Default: the user's data folder.",
        rich_help_panel=GATEWAY,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines and nothing else.")]
