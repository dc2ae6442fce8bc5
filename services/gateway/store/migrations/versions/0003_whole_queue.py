"""The row that claims lock, there from the start: two first claims that both made it could wait for each other."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the clock of the whole queue."""
    op.execute(
        "INSERT INTO tier_clocks (tier, start_tag, virtual_time) SELECT 0, 0.0, 0.0 "
        "WHERE NOT EXISTS (SELECT 1 FROM tier_clocks WHERE tier = 0)"
    )


def downgrade() -> None:
    """The row is as old as the table's first claim: leave it."""
