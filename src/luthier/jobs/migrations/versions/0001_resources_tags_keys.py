"""Resources, tags and access keys"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "resources",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("account", sa.String(12), nullable=False),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("key", sa.String(63), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("secondary", sa.String(40), nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("modified", sa.Double, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("stop_asked", sa.Double),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("lease", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_resources"),
        sa.UniqueConstraint("kind", "account", "region", "key", name="uq_resources_kind"),
    )
    op.create_index("ix_resources_listed", "resources", ["kind", "account", "region", "created", "id"])
    op.create_index("ix_resources_queue", "resources", ["open", "kind", "priority", "created"])
    op.create_table(
        "tags",
        sa.Column("arn", sa.String(256), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("value", sa.String(256), nullable=False),
        sa.PrimaryKeyConstraint("arn", "key", name="pk_tags"),
    )
    op.create_table(
        "access_keys",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("account", sa.String(12), nullable=False),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("disabled", sa.Double),
        sa.PrimaryKeyConstraint("id", name="pk_access_keys"),
    )
