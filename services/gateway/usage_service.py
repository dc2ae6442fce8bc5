"""UsageService: what was used."""

from collections.abc import Callable

from rushes.v1 import usage_pb2, usage_pb2_grpc
from services.chassis.errors import InvalidRequest
from services.chassis.incoming import Context
from services.gateway.access import Access
from services.gateway.outage import answers_outages
from services.gateway.store.tenants import TenantStore
from services.gateway.views import timestamp

DAY_SECONDS = 86_400.0
DEFAULT_RANGE_SECONDS = 30 * DAY_SECONDS
MAX_BUCKETS = 10_000


@answers_outages
class UsageService(usage_pb2_grpc.UsageServiceServicer):
    """See `usage.proto`."""

    def __init__(self, tenants: TenantStore, access: Access, *, clock: Callable[[], float]) -> None:
        self._tenants = tenants
        self._access = access
        self._clock = clock

    async def GetUsage(  # noqa: N802 - the name in the proto
        self, request: usage_pb2.GetUsageRequest, context: Context
    ) -> usage_pb2.GetUsageResponse:
        """Sum what the caller's generations used."""
        tenant = await self._access.tenant(context, "usage")
        end = request.end_time.ToMicroseconds() / 1e6 if request.HasField("end_time") else self._clock()
        start = end - DEFAULT_RANGE_SECONDS
        if request.HasField("start_time"):
            start = request.start_time.ToMicroseconds() / 1e6
        bucket = request.bucket.ToMicroseconds() / 1e6 if request.HasField("bucket") else DAY_SECONDS
        if start >= end:
            raise InvalidRequest.of("start_time", "must be before end_time")
        if (end - start) / bucket > MAX_BUCKETS:
            raise InvalidRequest.of("bucket", f"must cut the range into at most {MAX_BUCKETS} buckets")
        found = await self._tenants.usage(tenant.name, start=start, end=end, bucket=bucket)
        return usage_pb2.GetUsageResponse(
            buckets=[
                usage_pb2.UsageBucket(
                    start_time=timestamp(one.start),
                    generations=one.generations,
                    encode_seconds=one.encode_seconds,
                    denoise_seconds=one.denoise_seconds,
                    render_seconds=one.render_seconds,
                    pixels=one.pixels,
                    frames=one.frames,
                    size_bytes=one.size_bytes,
                )
                for one in found
            ]
        )
