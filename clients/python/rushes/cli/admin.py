"""`rushes admin`: tenants, quotas and keys, straight in the database of the gateways."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from rushes.cli.columns import print_columns
from rushes.cli.refusal import CommandRefused
from rushes.cli.reports import wording
from rushes.cli.reports.json_lines import print_json
from services.chassis.errors import RushesError
from services.gateway.store.database import open_database
from services.gateway.store.jobs import JobStore
from services.gateway.store.tenants import SCOPES, Quota, TenantStore
from services.gateway.views import STORY

DAY_SECONDS = 86400.0


@asynccontextmanager
async def tenant_store(url: str) -> AsyncIterator[TenantStore]:
    """The tenants of a database. Raises `CommandRefused` for what the store refuses."""
    try:
        async with open_database(url) as database:
            jobs = JobStore(database, clock=time.time, story=STORY)
            yield TenantStore(database, secret=await jobs.secret("api-keys"), clock=time.time)
    except RushesError as refused:
        raise CommandRefused("", refused.message) from None


async def list_tenants(url: str, *, as_json: bool) -> None:
    """Print every tenant with its quota."""
    async with tenant_store(url) as store:
        tenants = await store.all()
    rows: list[tuple[str, ...]] = [("tenant", *Quota.__slots__)]
    for tenant in tenants:
        if as_json:
            print_json("tenant", name=tenant.name, **asdict(tenant.quota))
        limits = (getattr(tenant.quota, name) for name in Quota.__slots__)
        rows.append((tenant.name, *("-" if limit is None else f"{limit:g}" for limit in limits)))
    if not as_json:
        print_columns(rows)


async def set_quota(url: str, name: str, changes: Mapping[str, Any]) -> None:
    """Make a tenant, or change what is not None of its quota."""
    given = {field: value for field, value in changes.items() if value is not None}
    async with tenant_store(url) as store:
        known = await store.get(name)
        await store.put(name, replace(known.quota if known else Quota(), **given))


async def list_keys(url: str, tenant: str, *, as_json: bool) -> None:
    """Print what is known of a tenant's keys; the keys themselves are known to their owners only."""
    async with tenant_store(url) as store:
        keys = await store.keys(tenant)
    rows: list[tuple[str, ...]] = [("prefix", "made", "expires", "revoked", "scopes")]
    for key in keys:
        if as_json:
            print_json("key", **asdict(key))
        rows.append((key.prefix, _day(key.created), _day(key.expires), _day(key.revoked), " ".join(key.scopes)))
    if not as_json:
        print_columns(rows)


async def issue_key(url: str, tenant: str, scopes: Sequence[str], days: int | None, *, as_json: bool) -> None:
    """Make a key and print it: this once and never again."""
    expires = time.time() + days * DAY_SECONDS if days is not None else None
    async with tenant_store(url) as store:
        key, known = await store.issue(tenant, scopes=tuple(scopes) or SCOPES, expires=expires)
    if as_json:
        print_json("key", key=key, **asdict(known))
    else:
        print_columns([(key,)])


async def revoke_key(url: str, prefix: str) -> None:
    """Close a key for good."""
    async with tenant_store(url) as store:
        await store.revoke(prefix)


async def show_usage(url: str, tenant: str, days: int, *, as_json: bool) -> None:
    """Print what a tenant used, by the day."""
    end = (time.time() // DAY_SECONDS + 1) * DAY_SECONDS
    async with tenant_store(url) as store:
        sums = await store.usage(tenant, start=end - days * DAY_SECONDS, end=end, bucket=DAY_SECONDS)
    rows: list[tuple[str, ...]] = [("day", "clips", "encode", "denoise", "render", "frames", "bytes")]
    for one in sums:
        if as_json:
            print_json("usage", tenant=tenant, **asdict(one))
        spent = (one.encode_seconds, one.denoise_seconds, one.render_seconds)
        counts = (str(one.frames), wording.size(one.size_bytes))
        rows.append((_day(one.start), str(one.generations), *(wording.seconds(part) for part in spent), *counts))
    if not as_json:
        print_columns(rows)


def _day(instant: float | None) -> str:
    return "-" if instant is None else datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%d")
