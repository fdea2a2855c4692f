"""Buckets, objects, their contents, and multipart uploads"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _buckets_and_contents()
    _objects()
    _uploads()


def _buckets_and_contents() -> None:
    op.create_table(
        "buckets",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("account", sa.String(12), nullable=False),
        sa.Column("region", sa.String(32), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_buckets"),
    )
    op.create_table(
        "contents",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_contents"),
    )
    op.create_table(
        "segments",
        sa.Column("content", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("blob", sa.String(32), nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("checksum", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("content", "number", name="pk_segments"),
    )
    op.create_index("ix_segments_blob", "segments", ["blob"])


def _objects() -> None:
    op.create_table(
        "objects",
        sa.Column("bucket", sa.String(63), sa.ForeignKey("buckets.name"), nullable=False),
        sa.Column("key", sa.LargeBinary(1024), nullable=False),
        sa.Column("content", sa.String(32), sa.ForeignKey("contents.id"), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.String(48), nullable=False),
        sa.Column("modified", sa.Double, nullable=False),
        sa.Column("parts", sa.Integer, nullable=False),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("checksum", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "key", name="pk_objects"),
    )
    op.create_index("ix_objects_content", "objects", ["content"])


def _uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("bucket", sa.String(63), sa.ForeignKey("buckets.name"), nullable=False),
        sa.Column("key", sa.LargeBinary(1024), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("algorithm", sa.String(16), nullable=False),
        sa.Column("checksum_type", sa.String(16), nullable=False),
        sa.Column("etag", sa.String(48), nullable=False),
        sa.Column("checksum", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_listed", "uploads", ["bucket", "key", "id"])
    op.create_table(
        "parts",
        sa.Column("upload", sa.String(32), sa.ForeignKey("uploads.id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("blob", sa.String(32), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.String(48), nullable=False),
        sa.Column("checksum", sa.String(128), nullable=False),
        sa.Column("modified", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("upload", "number", name="pk_parts"),
    )
    op.create_index("ix_parts_blob", "parts", ["blob"])
