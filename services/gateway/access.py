"""Who calls, and what they may: keys, scopes, rates and quotas. Checked in the method's handler; denied by default."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from services.chassis.errors import Exhausted, PermissionDenied, QuotaViolation, Unauthenticated
from services.chassis.incoming import Context
from services.gateway.fair_queue import TokenBucket
from services.gateway.store.jobs import JobStore
from services.gateway.store.tenants import Quota, Tenant, TenantStore

Scope: TypeAlias = Literal["generate", "read", "usage"]
LOCAL = "local"
"""The tenant of a gateway that asks for no keys."""
BEARER = "bearer "


class Access:
    """The tenants that may call this gateway."""

    def __init__(self, tenants: TenantStore, jobs: JobStore, *, keys: bool, clock: Callable[[], float]) -> None:
        """`keys`: whether every caller has to show one."""
        self._tenants = tenants
        self._jobs = jobs
        self._keys = keys
        self._clock = clock
        self._buckets: dict[str, TokenBucket] = {}

    async def tenant(self, context: Context, scope: Scope) -> Tenant:
        """The tenant that calls. Raises `Unauthenticated`, and `PermissionDenied` for a key without the scope."""
        if not self._keys:
            return Tenant(name=LOCAL, quota=Quota())
        shown = _shown(context)
        if shown is None:
            raise Unauthenticated("The call carries no API key.", reason="API_KEY_MISSING")
        key = await self._tenants.find(shown)
        tenant = await self._tenants.get(key.tenant) if key is not None else None
        if key is None or tenant is None or key.revoked is not None:
            raise Unauthenticated("The API key is not valid.", reason="API_KEY_INVALID")
        if key.expires is not None and key.expires <= self._clock():
            raise Unauthenticated("The API key has expired.", reason="API_KEY_EXPIRED")
        if scope not in key.scopes:
            raise PermissionDenied(f"The API key has no scope {scope}.", reason="SCOPE_MISSING")
        return tenant

    async def admit(self, tenant: Tenant, count: int = 1) -> None:
        """Check rate and quotas before `count` generations are made. Raises `Exhausted`, saying which."""
        quota, subject = tenant.quota, f"tenant:{tenant.name}"
        if quota.max_queued is not None:
            waiting = await self._jobs.queued_count(tenant.name)
            if waiting + count > quota.max_queued:
                description = f"at most {quota.max_queued} generations may wait"
                raise Exhausted(
                    f"The tenant's queue is full: {description}.",
                    reason="TENANT_QUEUE_FULL",
                    retry_after_seconds=10.0,
                    quota=QuotaViolation(subject=subject, description=description),
                )
        if quota.device_seconds_per_month is not None:
            now = datetime.fromtimestamp(self._clock(), UTC)
            month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            used = await self._tenants.device_seconds(tenant.name, since=month.timestamp())
            if used >= quota.device_seconds_per_month:
                following = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
                description = f"{quota.device_seconds_per_month:g} device-seconds a month"
                raise Exhausted(
                    f"The tenant's quota is used up: {description}.",
                    reason="QUOTA_EXHAUSTED",
                    retry_after_seconds=(following - now).total_seconds(),
                    quota=QuotaViolation(subject=subject, description=description),
                )
        self._limit_rate(tenant, count)

    def _limit_rate(self, tenant: Tenant, count: int) -> None:
        per_minute = tenant.quota.requests_per_minute
        if per_minute is None:
            return
        now, capacity = self._clock(), max(1.0, per_minute)
        bucket = self._buckets.get(tenant.name)
        if bucket is None or bucket.capacity != capacity:
            bucket = TokenBucket(rate=per_minute / 60.0, capacity=capacity, level=capacity, updated=now)
        self._buckets[tenant.name], wait = bucket.take(now, min(float(count), capacity))
        if wait > 0.0:
            raise Exhausted(
                "The tenant asks too often.",
                reason="RATE_LIMITED",
                retry_after_seconds=math.ceil(wait * 10) / 10,
                quota=QuotaViolation(
                    subject=f"tenant:{tenant.name}", description=f"{per_minute:g} generations a minute"
                ),
            )


def _shown(context: Context) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and isinstance(value, str) and value[: len(BEARER)].lower() == BEARER:
            return value[len(BEARER) :].strip()
    return None
