"""Tenants, their keys and quotas, and what they used."""

import hashlib
import hmac
import secrets as entropy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Integer, Row, cast, func, insert, select, update

from services.chassis.errors import FailedPrecondition, NotFound, Resource
from services.gateway.store.database import Database
from services.gateway.store.tables import api_keys, tenants, usage

KEY_START = "rsh"
SCOPES = ("generate", "read", "usage")
"""What a key may do: make and end generations, read them, read what was used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """A tenant's share and limits; None does not limit."""

    weight: float = 1.0
    max_running: int | None = None
    max_queued: int | None = None
    requests_per_minute: float | None = None
    device_seconds_per_month: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """Who may ask, and for how much."""

    name: str
    quota: Quota


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """What is known of a key: not the key."""

    prefix: str
    tenant: str
    scopes: tuple[str, ...]
    created: float
    expires: float | None
    revoked: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageSum:
    """What was used by the generations that ended in one bucket, which begins at `start`."""

    start: float
    generations: int
    encode_seconds: float
    denoise_seconds: float
    render_seconds: float
    pixels: int
    frames: int
    size_bytes: int


class TenantStore:
    """Tenants and keys. A key's digest is keyed with a secret of the database: a stolen table opens nothing."""

    def __init__(self, database: Database, *, secret: bytes, clock: Callable[[], float]) -> None:
        self._database = database
        self._secret = secret
        self._clock = clock

    async def put(self, name: str, quota: Quota) -> Tenant:
        """Make a tenant, or change its quota."""
        values = asdict(quota)
        async with self._database.write() as connection:
            await connection.execute(
                self._database.upsert(tenants)
                .values(name=name, created=self._clock(), **values)
                .on_conflict_do_update(index_elements=["name"], set_=values)
            )
        return Tenant(name=name, quota=quota)

    async def get(self, name: str) -> Tenant | None:
        """The tenant of this name."""
        return next(iter(await self._tenants(name)), None)

    async def all(self) -> Sequence[Tenant]:
        """Every tenant, by name."""
        return await self._tenants(None)

    async def _tenants(self, name: str | None) -> list[Tenant]:
        query = select(tenants).order_by(tenants.c.name)
        if name is not None:
            query = query.where(tenants.c.name == name)
        async with self._database.read() as connection:
            return [
                Tenant(name=row.name, quota=Quota(**{field: getattr(row, field) for field in Quota.__slots__}))
                for row in await connection.execute(query)
            ]

    async def issue(
        self, tenant: str, *, scopes: Sequence[str] = SCOPES, expires: float | None = None
    ) -> tuple[str, ApiKey]:
        """A new key, told once, and what stays known of it. Raises `NotFound` for an unknown tenant."""
        unknown = set(scopes) - set(SCOPES)
        if unknown:
            raise FailedPrecondition(f"There is no scope {min(unknown)}; there are {', '.join(SCOPES)}.")
        if await self.get(tenant) is None:
            raise NotFound("There is no such tenant.", resource=Resource(kind="tenant", name=tenant))
        prefix = entropy.token_hex(4)
        key = f"{KEY_START}_{prefix}_{entropy.token_urlsafe(32)}"
        known = ApiKey(
            prefix=prefix, tenant=tenant, scopes=tuple(scopes), created=self._clock(), expires=expires, revoked=None
        )
        async with self._database.write() as connection:
            values = {**asdict(known), "scopes": " ".join(scopes), "digest": self._digest(key)}
            await connection.execute(insert(api_keys).values(values))
        return key, known

    async def revoke(self, prefix: str) -> None:
        """Revoke a key. Raises `NotFound`."""
        statement = update(api_keys).where(api_keys.c.prefix == prefix).values(revoked=self._clock())
        async with self._database.write() as connection:
            if (await connection.execute(statement)).rowcount == 0:
                raise NotFound("There is no such key.", resource=Resource(kind="key", name=prefix))

    async def keys(self, tenant: str) -> Sequence[ApiKey]:
        """Every key of a tenant, the newest first."""
        query = select(api_keys).where(api_keys.c.tenant == tenant).order_by(api_keys.c.created.desc())
        async with self._database.read() as connection:
            return [_key(row) for row in await connection.execute(query)]

    async def find(self, key: str) -> ApiKey | None:
        """What is known of a key that a caller shows; None if it is none of ours."""
        start, _, rest = key.partition("_")
        prefix, _, _ = rest.partition("_")
        if start != KEY_START:
            return None
        query = select(api_keys).where(api_keys.c.prefix == prefix[:16])
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None or not hmac.compare_digest(row.digest, self._digest(key)):
            return None
        return _key(row)

    def _digest(self, key: str) -> str:
        return hmac.digest(self._secret, key.encode(), hashlib.sha256).hex()

    async def device_seconds(self, tenant: str, *, since: float) -> float:
        """Device-seconds of all stages that a tenant's generations used."""
        used = func.sum(usage.c.encode_seconds + usage.c.denoise_seconds + usage.c.render_seconds)
        query = select(used).where(usage.c.tenant == tenant, usage.c.ended >= since)
        async with self._database.read() as connection:
            return float((await connection.execute(query)).scalar_one() or 0.0)

    async def usage(self, tenant: str, *, start: float, end: float, bucket: float) -> list[UsageSum]:
        """What a tenant used from `start` to `end`, in buckets of so many seconds, without the empty ones."""
        place = (usage.c.ended - start) / bucket
        number = func.floor(place) if self._database.postgres else cast(place, Integer)
        columns = [
            func.sum(column).label(column.name)
            for column in (
                usage.c.encode_seconds,
                usage.c.denoise_seconds,
                usage.c.render_seconds,
                usage.c.pixels,
                usage.c.frames,
                usage.c.size_bytes,
            )
        ]
        query = (
            select(number.label("number"), func.count().label("generations"), *columns)
            .where(usage.c.tenant == tenant, usage.c.ended >= start, usage.c.ended < end)
            .group_by(number)
            .order_by(number)
        )
        async with self._database.read() as connection:
            return [
                UsageSum(
                    start=start + int(row.number) * bucket,
                    generations=row.generations,
                    encode_seconds=row.encode_seconds,
                    denoise_seconds=row.denoise_seconds,
                    render_seconds=row.render_seconds,
                    pixels=int(row.pixels),
                    frames=int(row.frames),
                    size_bytes=int(row.size_bytes),
                )
                for row in await connection.execute(query)
            ]


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        prefix=row.prefix,
        tenant=row.tenant,
        scopes=tuple(row.scopes.split()),
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
    )
