"""The SQL store: resources and their moves, tags, and the queue of what needs a supervisor.

SQLite (WAL, full fsync) and PostgreSQL run the same statements. Every method is one transaction: when it returns, what
it did survives a kill. The store knows what may follow what (states.py), nothing of what the operations mean.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from luthier.errors import LuthierError
from luthier.jobs import database
from luthier.jobs.schema import resources, tags
from luthier.jobs.states import ENDED, FIRST, check_move


class TakenError(LuthierError):
    """A resource of this kind and name exists."""

    wire_code = "ResourceInUse"


class GoneError(LuthierError):
    """The resource was deleted, or changed by somebody else, since it was read."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One row of `resources`; times in seconds since 1970. `facts` is what became of the request, as JSON."""

    id: str
    kind: str
    account: str
    region: str
    name: str
    request: Mapping[str, Any]
    status: str
    secondary: str
    facts: Mapping[str, Any]
    created: float
    modified: float
    revision: int = 0
    open: bool = False
    priority: int = 0
    stop_asked: float | None = None
    attempt: int = 0
    owner: str | None = None
    lease: float | None = None

    @property
    def arn(self) -> str:
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{self.kind}/{self.name.lower()}"

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list is narrowed to and how it is sorted; `after` is the cursor of the page before."""

    kind: str
    account: str
    region: str
    name_contains: str = ""
    statuses: tuple[str, ...] = ()
    created: tuple[float | None, float | None] = (None, None)
    modified: tuple[float | None, float | None] = (None, None)
    sort: str = "created"  # created, modified, name or status
    descending: bool = True
    limit: int = 100
    after: tuple[Any, str] | None = None
    suffix: str = ""  # that stands behind each name, where names are looked for and sorted by
    begun: bool = False  # only jobs that somebody worked on


@dataclass(frozen=True, slots=True)
class ResourcePage:
    """Resources of one page and the cursor of the next; None where this was the last."""

    found: list[Resource] = field(default_factory=list)
    after: tuple[Any, str] | None = None


class Store:
    """All resources of all accounts, behind one SQLAlchemy engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, url: str) -> Store:
        """Open the database at `url`, created or brought to the present schema first."""
        return cls(database.connect(url))

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that writes; SQLite takes its lock at once, so that no reader has to become a writer."""
        with database.writing(self.engine) as connection:
            yield connection

    # Resources

    def create(
        self, kind: str, owner: tuple[str, str], name: str, request: Mapping[str, Any], *,
        secondary: str = "", facts: Mapping[str, Any] | None = None, labels: Mapping[str, str] | None = None,
    ) -> Resource:  # fmt: skip
        """Store a new resource of `owner` (account, region) with its tags; TakenError when its name is in use."""
        account, region = owner
        now = time.time()
        status = FIRST.get(kind, "")
        made = Resource(
            uuid.uuid4().hex, kind, account, region, name, request, status, secondary, facts or {}, now, now,
            open=bool(status), priority=0,
        )  # fmt: skip
        row = {name_: getattr(made, name_) for name_ in Resource.__slots__} | {"key": _key(kind, name)}
        try:
            with self.write() as connection:
                connection.execute(resources.insert().values(row))
                _put_tags(connection, made.arn, labels or {})
        except IntegrityError:
            if self.find(kind, owner, name) is None:
                raise
            raise TakenError(f"{kind} {name}: the name is in use") from None
        return made

    def find(self, kind: str, owner: tuple[str, str], name: str) -> Resource | None:
        """The resource of that name, or None."""
        query = sa.select(resources).where(
            resources.c.kind == kind, resources.c.account == owner[0], resources.c.region == owner[1],
            resources.c.key == _key(kind, name),
        )  # fmt: skip
        with self.engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return _resource(row) if row else None

    def get(self, resource_id: str) -> Resource | None:
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(resources).where(resources.c.id == resource_id)).one_or_none()
        return _resource(row) if row else None

    def of_arn(self, arn: str) -> Resource | None:
        """The resource of that ARN, in which its name is in lower case; None where there is none."""
        _, _, _, region, account, path = arn.split(":", 5)
        kind, _, name = path.partition("/")
        query = sa.select(resources).where(
            resources.c.kind == kind, resources.c.account == account, resources.c.region == region,
            sa.func.lower(resources.c.name) == name.lower(),
        )  # fmt: skip
        with self.engine.connect() as connection:
            row = connection.execute(query.order_by(resources.c.created).limit(1)).one_or_none()
        return _resource(row) if row else None

    def update(
        self, resource_id: str, status: str | None = None, *, secondary: str | None = None,
        facts: Mapping[str, Any] | None = None, request: Mapping[str, Any] | None = None, owner: str | None = None,
    ) -> Resource:  # fmt: skip
        """Move a resource on and add `facts` to what is known of it; None leaves a side as it is.

        IllegalMoveError where the status does not follow; GoneError when it is no more, or `owner` lost its lease.
        """
        with self.write() as connection:
            found = sa.select(resources).where(resources.c.id == resource_id).with_for_update()
            row = connection.execute(found).one_or_none()
            if row is None or (owner is not None and row.owner != owner):
                raise GoneError(f"{resource_id}: deleted or taken over by another supervisor")
            before = _resource(row)
            status = before.status if status is None else status
            check_move(before.kind, before.name, before.status, status)
            values: dict[str, Any] = {
                "status": status,
                "secondary": before.secondary if secondary is None else secondary,
                "facts": {**before.facts, **(facts or {})},
                "modified": time.time(),
                "revision": before.revision + 1,
                "request": dict(before.request if request is None else request),
            }
            if status in ENDED:
                values |= {"open": False, "owner": None, "lease": None}
            if status == "Deleting":  # an endpoint that failed is nobody's: a supervisor has to see to it again
                values["open"] = True
            changed = resources.update().where(resources.c.id == resource_id).values(values).returning(resources)
            return _resource(connection.execute(changed).one())

    def delete(self, resource_id: str) -> bool:
        """Remove a resource and its tags; False when it was gone before."""
        with self.write() as connection:
            removed = resources.delete().where(resources.c.id == resource_id).returning(resources)
            row = connection.execute(removed).one_or_none()
            if row is None:
                return False
            connection.execute(tags.delete().where(tags.c.arn == _resource(row).arn))
            return True

    def list(self, *listings: Listing) -> ResourcePage:
        """One page of resources, by a cursor that stays right while others come and go.

        Several listings, of different kinds in the same order, are one list.
        """
        first = listings[0]
        whole = sa.union_all(*(sa.select(_page(listing).subquery()) for listing in listings)).subquery()
        order = (whole.c.place.desc(), whole.c.id.desc()) if first.descending else (whole.c.place, whole.c.id)
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(whole).order_by(*order).limit(first.limit + 1)).all()
        found = [_resource(row) for row in rows[: first.limit]]
        more = len(rows) > first.limit
        return ResourcePage(found, (rows[first.limit - 1].place, found[-1].id) if more else None)

    # Tags

    def tags(self, arn: str) -> dict[str, str]:
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(tags).where(tags.c.arn == arn).order_by(tags.c.key)).all()
        return {row.key: row.value for row in rows}

    def add_tags(self, arn: str, labels: Mapping[str, str]) -> None:
        with self.write() as connection:
            _put_tags(connection, arn, labels)

    def delete_tags(self, arn: str, keys: Sequence[str]) -> None:
        with self.write() as connection:
            connection.execute(tags.delete().where(tags.c.arn == arn, tags.c.key.in_(list(keys))))

    # The queue

    def claim(
        self, owner: str, kinds: Sequence[str], lease: float, but: Sequence[str] = (), only: Sequence[str] | None = None
    ) -> Resource | None:
        """Give `owner` the next open resource that nobody holds, until the time `lease`; None when there is none.

        The highest priority first, then the oldest. `but` names resources that are not wanted now; `only`, where it is
        given, those that are.
        """
        wanted = [resources.c.id.not_in(list(but))] + ([] if only is None else [resources.c.id.in_(list(only))])
        chosen = (
            sa.select(resources.c.id)
            .where(*_free(kinds), *wanted)
            .order_by(resources.c.priority.desc(), resources.c.created, resources.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        taken = (
            resources.update()
            .where(resources.c.id == chosen)
            .values(owner=owner, lease=lease, attempt=resources.c.attempt + 1)
            .returning(resources)
        )
        with self.write() as connection:
            row = connection.execute(taken).one_or_none()
        return _resource(row) if row else None

    def waiting(self, kinds: Sequence[str], to_stop: bool = False, limit: int = 1000) -> Sequence[str]:
        """The ids of open resources that nobody holds, first those that `claim` would give first, at most `limit`.

        Only those that were asked `to_stop`, if wanted.
        """
        query = sa.select(resources.c.id).where(*_free(kinds))
        if to_stop:
            query = query.where(resources.c.stop_asked.is_not(None))
        order = (resources.c.priority.desc(), resources.c.created, resources.c.id)
        with self.engine.connect() as connection:
            return list(connection.execute(query.order_by(*order).limit(limit)).scalars())

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` that are resources'."""
        found: set[str] = set()
        with self.engine.connect() as connection:
            for start in range(0, len(ids), 500):
                some = sa.select(resources.c.id).where(resources.c.id.in_(ids[start : start + 500]))
                found.update(connection.execute(some).scalars())
        return found

    def held(self, owner: str, among: Sequence[str] | None = None) -> Sequence[Resource]:
        """What `owner` holds (of the ids `among`), as it stands now: a deleted one is missing."""
        mine = sa.select(resources).where(resources.c.owner == owner)
        if among is not None:  # found by their ids, without a look at the whole queue
            mine = mine.where(resources.c.id.in_(list(among)))
        with self.engine.connect() as connection:
            rows = connection.execute(mine).all()
        return [_resource(row) for row in rows]

    def held_by_others(self, owner: str) -> Sequence[Resource]:
        """What anybody but `owner` holds."""
        others = sa.select(resources).where(resources.c.owner.is_not(None), resources.c.owner != owner)
        with self.engine.connect() as connection:
            return [_resource(row) for row in connection.execute(others)]

    def beat(self, owner: str, lease: float) -> None:
        """Keep everything that `owner` holds until the time `lease`."""
        with self.write() as connection:
            connection.execute(resources.update().where(resources.c.owner == owner).values(lease=lease))

    def release(self, resource_id: str, owner: str) -> None:
        """Put a resource back into the queue."""
        mine = resources.update().where(resources.c.id == resource_id, resources.c.owner == owner)
        with self.write() as connection:
            connection.execute(mine.values(owner=None, lease=None))

    def release_others(self, owner: str) -> int:
        """Free what any other owner holds; only for the one supervisor of this store, when it starts."""
        others = resources.update().where(resources.c.owner.is_not(None), resources.c.owner != owner)
        with self.write() as connection:
            return connection.execute(others.values(owner=None, lease=None)).rowcount

    def ask_stop(self, resource_id: str) -> Resource:
        """Move a job to Stopping; its supervisor sees to the rest. GoneError, IllegalMoveError as in `update`."""
        moved = self.update(resource_id, "Stopping", secondary="Stopping")
        mine = resources.update().where(resources.c.id == resource_id, resources.c.stop_asked.is_(None))
        with self.write() as connection:
            connection.execute(mine.values(stop_asked=time.time()))
        return self.get(resource_id) or moved

    def position(self, resource: Resource, most: int = 500) -> int:
        """How many open resources of its kind nobody holds come before this one; counted up to `most`."""
        earlier = sa.or_(
            resources.c.priority > resource.priority,
            sa.and_(resources.c.priority == resource.priority, resources.c.created < resource.created),
        )
        found = sa.select(resources.c.id).where(
            resources.c.open, resources.c.owner.is_(None), resources.c.kind == resource.kind, earlier
        )
        query = sa.select(sa.func.count()).select_from(found.limit(most).subquery())
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())


def database_file(url: str) -> Path | None:
    """The file of an SQLite URL; None for another database."""
    parsed = sa.make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def _key(kind: str, name: str) -> str:
    """AutoML job names are unique whatever their case (CreateAutoMLJobV2), the others as written."""
    return name.lower() if kind == "automl-job" else name


def _free(kinds: Sequence[str]) -> tuple[Any, ...]:
    """The conditions of an open resource of these kinds that nobody holds."""
    unheld = sa.or_(resources.c.lease.is_(None), resources.c.lease < time.time())
    return (resources.c.open, resources.c.kind.in_(list(kinds)), unheld)


def _resource(row: Any) -> Resource:
    return Resource(**{name: getattr(row, name) for name in Resource.__slots__})


def _put_tags(connection: sa.Connection, arn: str, labels: Mapping[str, str]) -> None:
    if labels:
        connection.execute(tags.delete().where(tags.c.arn == arn, tags.c.key.in_(list(labels))))
        connection.execute(tags.insert(), [{"arn": arn, "key": key, "value": value} for key, value in labels.items()])


def _page(listing: Listing) -> sa.Select[Any]:
    """The rows of a listing's page, and one more where there is one; `place` is what they are sorted by."""
    column: Any = resources.c[listing.sort]
    if listing.suffix and listing.sort == "name":
        column = column + listing.suffix
    query = sa.select(resources, column.label("place")).where(*_narrowed(listing))
    if listing.after is not None:
        place = sa.tuple_(column, resources.c.id)
        cursor = sa.tuple_(sa.literal(listing.after[0]), sa.literal(listing.after[1]))
        query = query.where(place < cursor if listing.descending else place > cursor)
    order = (column.desc(), resources.c.id.desc()) if listing.descending else (column, resources.c.id)
    return query.order_by(*order).limit(listing.limit + 1)


def _narrowed(listing: Listing) -> Iterator[Any]:
    yield resources.c.kind == listing.kind
    yield resources.c.account == listing.account
    yield resources.c.region == listing.region
    if listing.begun:
        yield resources.c.facts["started"].as_float().is_not(None)
    if listing.name_contains and listing.suffix:
        yield (resources.c.name + listing.suffix).contains(listing.name_contains, autoescape=True)
    elif listing.name_contains:
        yield resources.c.key.contains(listing.name_contains.lower() if listing.kind == "automl-job"
                                       else listing.name_contains, autoescape=True)  # fmt: skip
    if listing.statuses:
        yield resources.c.status.in_(listing.statuses)
    for column, (after, before) in ((resources.c.created, listing.created), (resources.c.modified, listing.modified)):
        if after is not None:
            yield column >= after
        if before is not None:
            yield column <= before
