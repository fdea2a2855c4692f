"""The tables of the store, for SQLite and PostgreSQL alike. store.py and objects/ query them."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

# One row for each training job, AutoML job, model, endpoint config and endpoint. `key` is the name as compared for
# uniqueness; the other columns are those of resource.py. From `open` on, the table is the supervisor's queue.
resources = sa.Table(
    "resources",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("account", sa.String(12), nullable=False),
    sa.Column("region", sa.String(32), nullable=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("key", sa.String(63), nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("secondary", sa.String(40), nullable=False),
    sa.Column("spec", sa.JSON(none_as_null=True)),
    sa.Column("progress", sa.JSON(none_as_null=True)),
    sa.Column("parent", sa.String(32)),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("modified", sa.Double, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("open", sa.Boolean, nullable=False),
    sa.Column("stop_requested", sa.Double),
    sa.Column("owner", sa.String(64)),
    sa.Column("lease", sa.Double),
    sa.Column("creator", sa.String(32), nullable=False, server_default=""),
    sa.Column("claimed", sa.Double),
    sa.UniqueConstraint("kind", "account", "region", "key"),
    sa.Index("ix_resources_listed", "kind", "account", "region", "created", "id"),
    sa.Index("ix_resources_queue", "open", "kind", "created"),
    sa.Index("ix_resources_owner", "owner"),
    sa.Index("ix_resources_parent", "parent"),
    sa.Index("ix_resources_claimed", "creator", "claimed"),
)

tags = sa.Table(
    "tags",
    metadata,
    sa.Column("arn", sa.String(256), primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("value", sa.String(256), nullable=False),
)

# The secret is stored in clear text: checking a signature needs it. Only the owner may read the database file (0600).
access_keys = sa.Table(
    "access_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("secret", sa.String(64), nullable=False),
    sa.Column("account", sa.String(12), nullable=False),
    sa.Column("user", sa.String(64), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("disabled", sa.Double),
    sa.Column("rights", sa.JSON(none_as_null=True)),  # the words of --allow; NULL: everything
)
