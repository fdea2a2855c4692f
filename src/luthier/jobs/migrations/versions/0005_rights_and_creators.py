"""The rights of access keys, who created each resource, and when a job was last taken from the queue"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("access_keys", sa.Column("rights", sa.JSON(none_as_null=True)))
    op.add_column("resources", sa.Column("creator", sa.String(32), nullable=False, server_default=""))
    op.add_column("resources", sa.Column("claimed", sa.Double))
    op.create_index("ix_resources_claimed", "resources", ["creator", "claimed"])
