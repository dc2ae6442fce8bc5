"""The tables. Times are seconds since the Unix epoch; messages are serialised protobuf of `rushes.v1`."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from services.gateway.store.transitions import State

metadata = MetaData()

generations = Table(
    "generations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("tier", Integer, nullable=False),
    Column("state", Integer, nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("request_digest", String(64), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("cost", Float, nullable=False),
    Column("start_tag", Float, nullable=False),
    Column("rank", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("not_before", Float, nullable=False, default=0.0),
    Column("started", Float),
    Column("ended", Float),
    Column("attempt", Integer, nullable=False, default=0),
    Column("losses", Integer, nullable=False, default=0),
    Column("requeued", String(32)),
    Column("lease_owner", String(64)),
    Column("lease_epoch", BigInteger, nullable=False, default=0),
    Column("lease_until", Float),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("last_sequence", BigInteger, nullable=False, default=0),
    Column("progress", Float, nullable=False, default=0.0),
    Column("steps_run", Integer, nullable=False, default=0),
    Column("checkpoint", String(128)),
    Column("conditioning", String(128)),
    Column("checkpoint_step", Integer, nullable=False, default=0),
    Column("clip", String(128)),
    Column("outputs", Text),
    Column("cached_from", String(64)),
    Column("follows", String(64)),
    Column("failure", LargeBinary),
    Column("video", LargeBinary),
    Column("latency", LargeBinary),
    Column("traceparent", String(64), nullable=False),
    Index("generations_request", "tenant", "request_id", unique=True),
    Index("generations_tenant", "tenant", "id"),
    Index(
        "generations_queued",
        "tier",
        "rank",
        "id",
        "cost",
        postgresql_where=text(f"state = {State.QUEUED:d}"),
        sqlite_where=text(f"state = {State.QUEUED:d}"),
    ),
    Index(
        "generations_running",
        "tenant",
        "lease_until",
        postgresql_where=text(f"state = {State.RUNNING:d}"),
        sqlite_where=text(f"state = {State.RUNNING:d}"),
    ),
    Index("generations_ended", "ended"),
    Index(
        "generations_follows",
        "follows",
        postgresql_where=text("follows IS NOT NULL"),
        sqlite_where=text("follows IS NOT NULL"),
    ),
    Index("generations_fingerprint", "fingerprint"),
)
"""One row a generation; the partial indexes hold only the live ones, so that history costs a claim nothing.

`requeued` is why work that was begun waits again.
`outputs` are the keys of the files made from the clip, with spaces between them. `follows` names the generation in
flight whose clip a queued one waits for, `cached_from` the one whose clip it got.
"""

events = Table(
    "events",
    metadata,
    Column("generation_id", String(64), ForeignKey("generations.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("owner", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)
"""The history of a generation, its resumable cursor and its audit trail; `epoch` and `owner` are its writer's."""

previews = Table(
    "previews",
    metadata,
    Column("generation_id", String(64), ForeignKey("generations.id", ondelete="CASCADE"), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)
"""The latest preview of a running generation, for watchers of other gateways."""

tier_clocks = Table(
    "tier_clocks",
    metadata,
    Column("tier", Integer, primary_key=True, autoincrement=False),
    Column("start_tag", Float, nullable=False),
    Column("virtual_time", Float, nullable=False),
)
"""Start-time fair queueing: the tag of each tier, and the virtual time among its tenants. Tier 0 is the whole queue."""

flows = Table(
    "flows",
    metadata,
    Column("tier", Integer, primary_key=True, autoincrement=False),
    Column("tenant", String(64), primary_key=True),
    Column("finish_tag", Float, nullable=False),
)
"""Start-time fair queueing: the finish tag of each tenant's latest generation in a tier."""

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("weight", Float, nullable=False, default=1.0),
    Column("max_running", Integer),
    Column("max_queued", Integer),
    Column("requests_per_minute", Float),
    Column("device_seconds_per_month", Float),
    Column("created", Float, nullable=False),
)
"""Who may ask, and for how much; a limit that is NULL does not limit."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("prefix", String(16), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("tenant", String(64), ForeignKey("tenants.name"), nullable=False),
    Column("scopes", String(256), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
)
"""API keys, of which only a keyed digest is stored."""

usage = Table(
    "usage",
    metadata,
    Column("generation_id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("tier", Integer, nullable=False),
    Column("ended", Float, nullable=False),
    Column("encode_seconds", Float, nullable=False),
    Column("denoise_seconds", Float, nullable=False),
    Column("render_seconds", Float, nullable=False),
    Column("pixels", BigInteger, nullable=False),
    Column("frames", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Index("usage_tenant", "tenant", "ended"),
)
"""One charge a generation, written in the transaction that ends it."""

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
"""Keys that all gateways of one database share: for page tokens and for API keys' digests."""
