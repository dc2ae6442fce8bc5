"""Generations, their events, leases and fair queue; tenants, keys and usage."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "flows",
        sa.Column("tier", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("finish_tag", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tier", "tenant"),
    )
    op.create_table(
        "generations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("tier", sa.Integer(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("request_digest", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("cost", sa.Float(), nullable=False),
        sa.Column("start_tag", sa.Float(), nullable=False),
        sa.Column("rank", sa.Float(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("started", sa.Float(), nullable=True),
        sa.Column("ended", sa.Float(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=64), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("steps_run", sa.Integer(), nullable=False),
        sa.Column("checkpoint", sa.String(length=128), nullable=True),
        sa.Column("conditioning", sa.String(length=128), nullable=True),
        sa.Column("checkpoint_step", sa.Integer(), nullable=False),
        sa.Column("clip", sa.String(length=128), nullable=True),
        sa.Column("cached_from", sa.String(length=64), nullable=True),
        sa.Column("follows", sa.String(length=64), nullable=True),
        sa.Column("failure", sa.LargeBinary(), nullable=True),
        sa.Column("video", sa.LargeBinary(), nullable=True),
        sa.Column("latency", sa.LargeBinary(), nullable=True),
        sa.Column("traceparent", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("generations_ended", "generations", ["ended"], unique=False)
    op.create_index("generations_fingerprint", "generations", ["fingerprint"], unique=False)
    op.create_index(
        "generations_follows",
        "generations",
        ["follows"],
        unique=False,
        postgresql_where=sa.text("follows IS NOT NULL"),
        sqlite_where=sa.text("follows IS NOT NULL"),
    )
    op.create_index(
        "generations_queued",
        "generations",
        ["tier", "rank", "id", "cost"],
        unique=False,
        postgresql_where=sa.text("state = 1"),
        sqlite_where=sa.text("state = 1"),
    )
    op.create_index("generations_request", "generations", ["tenant", "request_id"], unique=True)
    op.create_index(
        "generations_running",
        "generations",
        ["tenant", "lease_until"],
        unique=False,
        postgresql_where=sa.text("state = 2"),
        sqlite_where=sa.text("state = 2"),
    )
    op.create_index("generations_tenant", "generations", ["tenant", "id"], unique=False)
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("max_running", sa.Integer(), nullable=True),
        sa.Column("max_queued", sa.Integer(), nullable=True),
        sa.Column("requests_per_minute", sa.Float(), nullable=True),
        sa.Column("device_seconds_per_month", sa.Float(), nullable=True),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "tier_clocks",
        sa.Column("tier", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("start_tag", sa.Float(), nullable=False),
        sa.Column("virtual_time", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tier"),
    )
    op.create_table(
        "usage",
        sa.Column("generation_id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("tier", sa.Integer(), nullable=False),
        sa.Column("ended", sa.Float(), nullable=False),
        sa.Column("encode_seconds", sa.Float(), nullable=False),
        sa.Column("denoise_seconds", sa.Float(), nullable=False),
        sa.Column("render_seconds", sa.Float(), nullable=False),
        sa.Column("pixels", sa.BigInteger(), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("generation_id"),
    )
    op.create_index("usage_tenant", "usage", ["tenant", "ended"], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.String(length=256), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=True),
        sa.Column("revoked", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant"],
            ["tenants.name"],
        ),
        sa.PrimaryKeyConstraint("prefix"),
    )
    op.create_table(
        "events",
        sa.Column("generation_id", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["generation_id"], ["generations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("generation_id", "sequence"),
    )
    op.create_table(
        "previews",
        sa.Column("generation_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["generation_id"], ["generations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("generation_id"),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("previews")
    op.drop_table("events")
    op.drop_table("api_keys")
    op.drop_index("usage_tenant", table_name="usage")
    op.drop_table("usage")
    op.drop_table("tier_clocks")
    op.drop_table("tenants")
    op.drop_table("secrets")
    op.drop_index("generations_tenant", table_name="generations")
    op.drop_index(
        "generations_running",
        table_name="generations",
        postgresql_where=sa.text("state = 2"),
        sqlite_where=sa.text("state = 2"),
    )
    op.drop_index("generations_request", table_name="generations")
    op.drop_index(
        "generations_queued",
        table_name="generations",
        postgresql_where=sa.text("state = 1"),
        sqlite_where=sa.text("state = 1"),
    )
    op.drop_index(
        "generations_follows",
        table_name="generations",
        postgresql_where=sa.text("follows IS NOT NULL"),
        sqlite_where=sa.text("follows IS NOT NULL"),
    )
    op.drop_index("generations_fingerprint", table_name="generations")
    op.drop_index("generations_ended", table_name="generations")
    op.drop_table("generations")
    op.drop_table("flows")
