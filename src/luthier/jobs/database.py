"""Opening the database: SQLite's settings, PostgreSQL's driver, and the migrations up to the present schema."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import ArgumentError, DBAPIError

from luthier.errors import SettingError, UserError

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30


class DatabaseError(UserError):
    """The database cannot be opened, or is of a newer Luthier."""

    wire_code = "InternalFailure"


def connect(url: str) -> sa.Engine:
    """An engine on the database at `url`, which is created, or upgraded, first."""
    engine = _engine(url)
    try:
        upgrade(engine)
    except DBAPIError as error:
        engine.dispose()
        raise DatabaseError(f"database {engine.url.render_as_string()}: {_first_line(error)}") from None
    except BaseException:
        engine.dispose()
        raise
    return engine


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise SettingError(f"--database {url!r}: expected sqlite:///FILE or postgresql://USER@HOST/NAME") from None
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    if parsed.get_backend_name() != "postgresql":
        raise SettingError(f"--database {parsed.get_backend_name()}: expected sqlite or postgresql")
    if importlib.util.find_spec("psycopg") is None:
        raise SettingError("--database postgresql: needs psycopg; install it with: pip install 'luthier[postgres]'")
    return sa.create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True, pool_size=20)


def _sqlite(url: sa.URL) -> sa.Engine:
    if not url.database or url.database == ":memory:":
        raise SettingError("--database sqlite: expected sqlite:///FILE: a database in memory would forget every job")
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Created here with its mode, so that nobody else can ever read the access keys in it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}, pool_size=20)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        # Otherwise the driver begins transactions itself, later than `begin_writing`.
        connection.isolation_level = None
        busy = f"busy_timeout={BUSY_SECONDS * 1000}"
        for pragma in (busy, "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def begin_writing(connection: sa.Connection) -> None:
    """Begin a transaction that writes; see Store.write."""
    connection.begin()
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that writes; rolled back when the block raises."""
    with engine.connect() as connection:
        begin_writing(connection)
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()


def upgrade(engine: sa.Engine, to: str = "head") -> None:
    """Run the migrations that this database lacks, up to `to`; DatabaseError when it is of a newer Luthier."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        begin_writing(connection)
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7108777)"))  # two servers may start at once
        present = MigrationContext.configure(connection).get_current_revision()
        if present not in (None, *(script.revision for script in scripts.walk_revisions())):
            raise DatabaseError(
                f"database {engine.url.render_as_string()}: its schema {present!r} is of a newer Luthier; "
                "upgrade Luthier"
            )
        if present != scripts.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, to)
        connection.commit()


def _first_line(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())
