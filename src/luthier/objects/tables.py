"""The object store's tables, in the service's database, for SQLite and PostgreSQL.

    bucket ──< object >── content ──< segment (one file)          upload ──< part (one file)

A content is an object's bytes: one file, or one per part of a multipart upload. It never changes; copies share it.
Keys are stored as UTF-8 bytes, which both databases sort as S3 does.
"""

from __future__ import annotations

import sqlalchemy as sa

from luthier.jobs.schema import metadata

buckets = sa.Table(
    "buckets",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("account", sa.String(12), nullable=False),
    sa.Column("region", sa.String(32), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)

contents = sa.Table(
    "contents",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created", sa.Double, nullable=False),
)

segments = sa.Table(
    "segments",
    metadata,
    sa.Column("content", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("blob", sa.String(32), nullable=False),
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("checksum", sa.String(128), nullable=False),
    sa.Index("ix_segments_blob", "blob"),
)

# `attributes` are the members of PutObject that GetObject returns (ContentType, ...); `checksum` is empty, or
# [algorithm, value, FULL_OBJECT or COMPOSITE].
objects = sa.Table(
    "objects",
    metadata,
    sa.Column("bucket", sa.ForeignKey("buckets.name"), primary_key=True),
    sa.Column("key", sa.LargeBinary(1024), primary_key=True),
    sa.Column("content", sa.ForeignKey("contents.id"), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("etag", sa.String(48), nullable=False),
    sa.Column("modified", sa.Double, nullable=False),
    sa.Column("parts", sa.Integer, nullable=False),
    sa.Column("attributes", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("checksum", sa.JSON, nullable=False),
    sa.Index("ix_objects_content", "content"),
)

# `etag` is empty until the upload is completed; then the row serves repeated completions.
uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("bucket", sa.ForeignKey("buckets.name"), nullable=False),
    sa.Column("key", sa.LargeBinary(1024), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("attributes", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("algorithm", sa.String(16), nullable=False),
    sa.Column("checksum_type", sa.String(16), nullable=False),
    sa.Column("etag", sa.String(48), nullable=False),
    sa.Column("checksum", sa.JSON, nullable=False),
    sa.Index("ix_uploads_listed", "bucket", "key", "id"),
)

parts = sa.Table(
    "parts",
    metadata,
    sa.Column("upload", sa.ForeignKey("uploads.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("blob", sa.String(32), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("etag", sa.String(48), nullable=False),
    sa.Column("checksum", sa.String(128), nullable=False),
    sa.Column("modified", sa.Double, nullable=False),
    sa.Index("ix_parts_blob", "blob"),
)
