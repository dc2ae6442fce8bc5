"""Why a generation that was begun waits again."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("generations", sa.Column("requeued", sa.String(32), nullable=True))


def downgrade() -> None:
    """Drop it again."""
    op.drop_column("generations", "requeued")
