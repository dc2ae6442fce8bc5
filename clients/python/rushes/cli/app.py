"""All commands as one."""

import typer

from rushes.cli.commands import admin, making, reading, running, verifying

app = typer.Typer(
    name="rushes",
    help="Text to video with Wan2.2-T2V-A14B: one prompt, four services, one clip.\n\n"
    "Exit codes: 0 done, 2 bad input, 3 not available (try again), 4 failed, 5 verified and not in order, 6 nothing to "
    "verify, 130 cancelled.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

for part in (making.app, reading.app, running.app, verifying.app):
    app.add_typer(part)
app.add_typer(admin.app, name="admin")
