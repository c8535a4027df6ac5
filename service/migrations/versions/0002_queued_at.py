"""When a job began to wait: until now that had to be guessed from its submission or its last change."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the time, as it was guessed so far."""
    op.add_column("jobs", sa.Column("queued_at", sa.Float(), server_default="0", nullable=False))
    op.execute("UPDATE jobs SET queued_at = CASE WHEN attempt = 1 THEN created_at ELSE updated_at END")


def downgrade() -> None:
    """Drop it."""
    op.drop_column("jobs", "queued_at")
