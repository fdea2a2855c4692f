"""Alembic's entry: the connection is database.py's, which also holds the transaction."""

from __future__ import annotations

from alembic import context

from luthier.jobs.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
