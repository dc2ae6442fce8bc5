"""`rushes admin`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from rushes.cli import options as o

app = typer.Typer(
    name="admin",
    help="Tenants, quotas and API keys, straight in the gateways' database.",
    no_args_is_help=True,
)

Database = Annotated[
    str | None,
    typer.Option(
        envvar="RUSHES_DATABASE_URL", help="sqlite:///path or postgresql://. Default: the one in the state folder."
    ),
]
Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant.")]
Days = Annotated[int, typer.Option(min=1, help="So many days back from now.")]


@app.command()
def tenants(*, database: Database = None, state: o.State = None, as_json: o.Json = False) -> None:
    """List tenants and their quotas."""
    from rushes.cli import admin

    asyncio.run(admin.list_tenants(_url(database, state), as_json=as_json))


@app.command()
def quota(
    tenant: Tenant,
    *,
    weight: Annotated[float | None, typer.Option(min=0.001, help="Share among the tenants of a tier.")] = None,
    max_running: Annotated[int | None, typer.Option(min=0, help="Generations at once.")] = None,
    max_queued: Annotated[int | None, typer.Option(min=0, help="Generations that may wait.")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(min=0, help="Creations a minute.")] = None,
    device_seconds_per_month: Annotated[float | None, typer.Option(min=0, help="Device time a month.")] = None,
    database: Database = None,
    state: o.State = None,
) -> None:
    """Make a tenant, or change its quota; what is not given stays as it is."""
    from rushes.cli import admin

    changes = {
        "weight": weight,
        "max_running": max_running,
        "max_queued": max_queued,
        "requests_per_minute": requests_per_minute,
        "device_seconds_per_month": device_seconds_per_month,
    }
    asyncio.run(admin.set_quota(_url(database, state), tenant, changes))


@app.command()
def keys(tenant: Tenant, *, database: Database = None, state: o.State = None, as_json: o.Json = False) -> None:
    """List the keys of a tenant by their prefixes."""
    from rushes.cli import admin

    asyncio.run(admin.list_keys(_url(database, state), tenant, as_json=as_json))


@app.command()
def issue(
    tenant: Tenant,
    *,
    scope: Annotated[list[str] | None, typer.Option(help="generate, read or usage; all if not given.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires; never if not given.")] = None,
    database: Database = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Make a key and print it, this once."""
    from rushes.cli import admin

    asyncio.run(admin.issue_key(_url(database, state), tenant, scope or (), days, as_json=as_json))


@app.command()
def revoke(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="Prefix of the key, as `keys` shows it.")],
    *,
    database: Database = None,
    state: o.State = None,
) -> None:
    """Close a key for good."""
    from rushes.cli import admin

    asyncio.run(admin.revoke_key(_url(database, state), prefix))


@app.command()
def usage(
    tenant: Tenant, *, days: Days = 30, database: Database = None, state: o.State = None, as_json: o.Json = False
) -> None:
    """Show what a tenant used, by the day."""
    from rushes.cli import admin

    asyncio.run(admin.show_usage(_url(database, state), tenant, days, as_json=as_json))


def _url(database: str | None, state: Path | None) -> str:
    from rushes.cli.state import StateFolder, default_folder

    return database or StateFolder(state or default_folder()).database_url
