"""Options of what becomes of the frames, and of the files that they are delivered in."""

from pathlib import Path
from typing import Annotated

import typer

FINISH = "Finish"
DELIVERY = "Delivery"

Upscale = Annotated[int | None, typer.Option(help="Enlarge the pictures: 2 or 4.", rich_help_panel=FINISH)]
Upscaler = Annotated[
    str | None, typer.Option(help="Id of the upscaler; default: the server's.", rich_help_panel=FINISH)
]
TargetFps = Annotated[
    int | None,
    typer.Option(
        "--fps", min=1, help="Frames a second of the clip; in-between frames are made.", rich_help_panel=FINISH
    ),
]
Size = Annotated[str | None, typer.Option(help="Exact size, WIDTHxHEIGHT, even.", rich_help_panel=FINISH)]
FitName = Annotated[
    str | None, typer.Option("--fit", help="How it gets that size: crop, pad or stretch.", rich_help_panel=FINISH)
]
AspectName = Annotated[
    str | None,
    typer.Option("--aspect", help="Shape instead of a size: 16:9, 9:16, 1:1 or 4:5.", rich_help_panel=FINISH),
]
Brightness = Annotated[float | None, typer.Option(help="-1 to 1; 0 changes nothing.", rich_help_panel=FINISH)]
Contrast = Annotated[float | None, typer.Option(help="0 to 4; 1 changes nothing.", rich_help_panel=FINISH)]
Saturation = Annotated[float | None, typer.Option(help="0 to 4; 1 changes nothing.", rich_help_panel=FINISH)]
Gamma = Annotated[float | None, typer.Option(help="0.1 to 10; 1 changes nothing.", rich_help_panel=FINISH)]
Sharpness = Annotated[float | None, typer.Option(help="0 to 4; 0 changes nothing.", rich_help_panel=FINISH)]
Loop = Annotated[
    float | None,
    typer.Option(help="Seconds of cross-fade from the end into the beginning.", rich_help_panel=FINISH),
]
SubtitleUse = Annotated[
    str | None, typer.Option("--subtitles-as", help="burn, or track to be turned on.", rich_help_panel=FINISH)
]
SubtitleLanguage = Annotated[
    str | None, typer.Option("--subtitles-language", help="For example en or zh-Hans.", rich_help_panel=FINISH)
]
FadeIn = Annotated[float | None, typer.Option(help="Seconds of fade from black.", rich_help_panel=FINISH)]
FadeOut = Annotated[float | None, typer.Option(help="Seconds of fade to black.", rich_help_panel=FINISH)]
LabelText = Annotated[
    str | None,
    typer.Option("--label", help='A visible line of text; without a text "AI generated".', rich_help_panel=FINISH),
]
LabelCorner = Annotated[
    str | None, typer.Option(help="top-left (default), top-right, bottom-left or bottom-right.", rich_help_panel=FINISH)
]
LabelOpacity = Annotated[float | None, typer.Option(help="0 to 1.", rich_help_panel=FINISH)]
LogoFile = Annotated[
    Path | None, typer.Option("--logo", help="PNG, JPEG or WebP laid over every frame.", rich_help_panel=FINISH)
]
LogoCorner = Annotated[
    str | None, typer.Option(help="As --label-corner; top-right by default.", rich_help_panel=FINISH)
]
LogoOpacity = Annotated[float | None, typer.Option(help="0 to 1.", rich_help_panel=FINISH)]
LogoWidth = Annotated[float | None, typer.Option(help="Share of the clip's width, 0 to 1.", rich_help_panel=FINISH)]
SubtitleFile = Annotated[
    Path | None, typer.Option("--subtitles", help="SubRip or WebVTT file.", rich_help_panel=FINISH)
]
Watermark = Annotated[
    bool, typer.Option("--watermark", help="Mark every frame invisibly with an id.", rich_help_panel=FINISH)
]
WatermarkId = Annotated[
    str | None,
    typer.Option(help="The id: up to 16 hexadecimal digits; drawn if not given.", rich_help_panel=FINISH),
]

Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format", help="mp4, webm, hls, gif, webp or sprite; may be given more than once.", rich_help_panel=DELIVERY
    ),
]
CodecName = Annotated[str | None, typer.Option("--codec", help="h264, h265, av1 or vp9.", rich_help_panel=DELIVERY)]
Bitrate = Annotated[
    str | None, typer.Option(help="Bits a second instead of a rate factor: 800k, 4M.", rich_help_panel=DELIVERY)
]
Quality = Annotated[
    str | None, typer.Option(help="draft, standard, high or master; --crf and --bitrate win.", rich_help_panel=DELIVERY)
]
Crf = Annotated[int | None, typer.Option(help="Constant rate factor: lower is better.", rich_help_panel=DELIVERY)]
Effort = Annotated[str | None, typer.Option(help="fastest, fast or thorough.", rich_help_panel=DELIVERY)]
