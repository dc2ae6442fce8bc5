"""The keys of the files that are made from a clip."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("generations", sa.Column("outputs", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop it again."""
    op.drop_column("generations", "outputs")
