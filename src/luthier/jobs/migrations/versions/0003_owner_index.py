"""What an owner holds, without a look at the whole queue"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index("ix_resources_owner", "resources", ["owner"])
