"""Stores on each kind of database, and one server with one for all tests of a module.

What goes through the wire runs on SQLite by default, on PostgreSQL too where slow tests are asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from objects.live_objects import LiveObjects, live_objects, open_objects

from luthier.objects.store import EmbeddedObjectStore

_numbers = itertools.count()


@pytest.fixture(scope="session")
def shared_database(postgres_server: str) -> str:
    """One PostgreSQL database for all: a new one for each test would take most of their time."""
    server = sa.make_url(postgres_server)
    engine = sa.create_engine(server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("CREATE DATABASE objects"))
    engine.dispose()
    return server.set(database="objects").render_as_string()


def emptied(url: str) -> str:
    """The database, without what another test left in it."""
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'luthier.sqlite'}"
    return emptied(request.getfixturevalue("shared_database"))


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveObjects]:
    home = tmp_path_factory.mktemp("home")
    url = f"sqlite:///{home / 'luthier.sqlite'}"
    if request.param == "postgresql":
        url = emptied(request.getfixturevalue("shared_database"))
    with live_objects(url, home) as running:
        yield running


@pytest.fixture
def s3(live: LiveObjects) -> Iterator[Any]:
    client = live.client()
    yield client
    client.close()


@pytest.fixture
def bucket(s3: Any) -> str:
    """An empty bucket."""
    name = f"bucket-{next(_numbers)}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def objects(database_url: str, tmp_path: Path) -> Iterator[EmbeddedObjectStore]:
    """A store without a server, with the empty bucket `room`."""
    with open_objects(database_url, tmp_path) as opened:
        opened.create_bucket("room", "123456789012", "us-east-1")
        yield opened


@pytest.fixture
def blob_names(objects: EmbeddedObjectStore) -> Any:
    """The names of the files that the store holds at the moment."""

    def names() -> set[str]:
        return {path.name for path in objects.blobs.root.rglob("*") if path.is_file()}

    return names
