"""The SQL store: resources and their status transitions, tags, and the supervisor's queue.

SQLite (WAL, full fsync) and PostgreSQL run the same statements. Every method is one transaction, durable when it
returns. The store also updates an AutoML job when its training job or endpoint changes (automl.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from luthier.errors import LuthierError
from luthier.jobs import automl, database
from luthier.jobs.progress import Progress, progress_from_json, progress_to_json
from luthier.jobs.resource import Owner, Resource, new_resource
from luthier.jobs.schema import access_keys, resources, tags
from luthier.jobs.states import AUTOML_JOB, TRAINING_JOB, check_move
from luthier.jobspec import JobSpec
from luthier.rights import Rights


class NameInUseError(LuthierError):
    """A resource of this kind and name exists."""

    wire_code = "ResourceInUse"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name}: the name is in use")
        self.kind = kind


class GoneError(LuthierError):
    """The resource was deleted, or changed by somebody else, since it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The filters and the order of a list; `after` is the cursor of the page before."""

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


@dataclass(frozen=True, slots=True)
class ResourcePage:
    """Resources of one page and the cursor of the next page; None on the last."""

    items: list[Resource] = field(default_factory=list)
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
        """One write transaction; SQLite locks at its start, so that no reader is upgraded to a writer."""
        with database.writing(self.engine) as connection:
            yield connection

    # Resources

    def create(
        self, kind: str, owner: Owner, name: str, request: Mapping[str, Any], *, secondary: str = "",
        spec: JobSpec | None = None, progress: Progress | None = None, labels: Mapping[str, str] | None = None,
    ) -> Resource:  # fmt: skip
        """Store a new resource of `owner` with its tags; NameInUseError when its name is in use."""
        resource = new_resource(kind, owner, name, request, secondary=secondary, spec=spec, progress=progress)
        self.insert(resource, labels=labels)
        return resource

    def insert(self, *new: Resource, labels: Mapping[str, str] | None = None) -> None:
        """Store new resources, all or none of them, the first one with tags; NameInUseError when a name is in use."""
        try:
            with self.write() as connection:
                connection.execute(resources.insert(), [_row(resource) for resource in new])
                _put_tags(connection, new[0].arn, labels or {})
        except IntegrityError:
            for resource in new:
                if self.find(resource.kind, (resource.account, resource.region), resource.name) is not None:
                    raise NameInUseError(resource.kind, resource.name) from None
            raise

    def find(self, kind: str, owner: Owner, name: str) -> Resource | None:
        """The resource of that name, or None."""
        with self.engine.connect() as connection:
            return _find(connection, kind, owner, name)

    def get(self, resource_id: str) -> Resource | None:
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(resources).where(resources.c.id == resource_id)).one_or_none()
        return _resource(row) if row else None

    def training_job_of(self, automl_job: Resource) -> Resource | None:
        """The training job of an AutoML job."""
        query = sa.select(resources).where(resources.c.parent == automl_job.id, resources.c.kind == TRAINING_JOB)
        with self.engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return _resource(row) if row else None

    def of_arn(self, arn: str) -> Resource | None:
        """The resource with this ARN, ignoring the case of its name; None if there is none."""
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
        progress: Mapping[str, Any] | None = None, request: Mapping[str, Any] | None = None,
        owner: str | None = None, stop_requested: float | None = None,
    ) -> Resource:  # fmt: skip
        """Change a resource, and the AutoML job that it belongs to, if any. `progress` holds only fields that change.

        IllegalMoveError when the status does not follow from the present one; GoneError when the resource was deleted,
        or `owner` lost its lease.
        """
        with self.write() as connection:
            before = _locked(connection, resource_id)
            if before is None or (owner is not None and before.owner != owner):
                raise GoneError(f"{resource_id}: deleted or taken over by another supervisor")
            changed = replace(
                before,
                status=before.status if status is None else status,
                secondary=before.secondary if secondary is None else secondary,
                progress=replace(before.progress, **progress) if before.progress and progress else before.progress,
                request=before.request if request is None else request,
                stop_requested=before.stop_requested or stop_requested,
                modified=time.time(),
            )
            after = _write(connection, before, changed)
            if after.parent is not None:
                _update_parent(connection, after)
            return after

    def delete(self, resource_id: str) -> bool:
        """Remove a resource and its tags; False if it does not exist."""
        with self.write() as connection:
            removed = resources.delete().where(resources.c.id == resource_id).returning(resources)
            row = connection.execute(removed).one_or_none()
            if row is None:
                return False
            connection.execute(tags.delete().where(tags.c.arn == _resource(row).arn))
            return True

    def list(self, listing: Listing) -> ResourcePage:
        """One page of resources; the cursor stays valid while resources are created and deleted."""
        column: Any = resources.c[listing.sort]
        query = sa.select(resources).where(*_conditions(listing))
        if listing.after is not None:
            cursor = sa.tuple_(*(sa.literal(value) for value in listing.after))
            position = sa.tuple_(column, resources.c.id)
            query = query.where(position < cursor if listing.descending else position > cursor)
        order = (column.desc(), resources.c.id.desc()) if listing.descending else (column, resources.c.id)
        with self.engine.connect() as connection:
            rows = connection.execute(query.order_by(*order).limit(listing.limit + 1)).all()
        page = [_resource(row) for row in rows[: listing.limit]]
        has_next = len(rows) > listing.limit
        return ResourcePage(page, (getattr(page[-1], listing.sort), page[-1].id) if has_next else None)

    def rights_of(self, creator: str) -> Rights:
        """The rights of the access key `creator`; everything if there is none."""
        query = sa.select(access_keys.c.rights).where(access_keys.c.id == creator)
        with self.engine.connect() as connection:
            return Rights.parse(connection.execute(query).scalar_one_or_none() or ())

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
        self, owner: str, kinds: Sequence[str], lease: float, exclude: Sequence[str] = (),
        only: Sequence[str] | None = None,
    ) -> Resource | None:  # fmt: skip
        """Lease an open resource that nobody holds to `owner` until the time `lease`; None if there is none.

        The queue is fair by key: it is the oldest resource of the creator whose last claim is the longest ago, so one
        key's many jobs take turns with those of the others. A released resource is no turn. Ids in `exclude` are
        skipped; with `only`, all ids that are not in it.
        """
        ids = [resources.c.id.not_in(list(exclude))] + ([] if only is None else [resources.c.id.in_(list(only))])
        oldest = (
            sa.select(resources.c.id)
            .where(*_claimable(kinds), *ids)
            .order_by(_last_claim(), resources.c.created, resources.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        values = {"owner": owner, "lease": lease, "claimed": time.time()}
        claimed = resources.update().where(resources.c.id == oldest).values(values).returning(resources)
        with self.write() as connection:
            row = connection.execute(claimed).one_or_none()
        return _resource(row) if row else None

    def waiting(self, kinds: Sequence[str], to_stop: bool = False, limit: int = 1000) -> Sequence[str]:
        """The ids of open resources that nobody holds, the oldest first, at most `limit`.

        With `to_stop`, only those whose stop was requested.
        """
        query = sa.select(resources.c.id).where(*_claimable(kinds))
        if to_stop:
            query = query.where(resources.c.stop_requested.is_not(None))
        with self.engine.connect() as connection:
            ordered = query.order_by(resources.c.created, resources.c.id).limit(limit)
            return list(connection.execute(ordered).scalars())

    def known(self, ids: Sequence[str]) -> set[str]:
        """The `ids` that exist as resources."""
        known: set[str] = set()
        with self.engine.connect() as connection:
            for start in range(0, len(ids), 500):
                some = sa.select(resources.c.id).where(resources.c.id.in_(ids[start : start + 500]))
                known.update(connection.execute(some).scalars())
        return known

    def held(self, owner: str, among: Sequence[str] | None = None) -> Sequence[Resource]:
        """The resources that `owner` holds now, of the ids `among` if not None."""
        mine = sa.select(resources).where(resources.c.owner == owner)
        if among is not None:  # by primary key, instead of a scan
            mine = mine.where(resources.c.id.in_(list(among)))
        with self.engine.connect() as connection:
            rows = connection.execute(mine).all()
        return [_resource(row) for row in rows]

    def held_by_others(self, owner: str) -> Sequence[Resource]:
        """The resources that other owners hold."""
        others = sa.select(resources).where(resources.c.owner.is_not(None), resources.c.owner != owner)
        with self.engine.connect() as connection:
            return [_resource(row) for row in connection.execute(others)]

    def beat(self, owner: str, lease: float) -> None:
        """Extend the leases of `owner` until the time `lease`."""
        with self.write() as connection:
            connection.execute(resources.update().where(resources.c.owner == owner).values(lease=lease))

    def release(self, resource_id: str, owner: str) -> None:
        """Put a resource back into the queue."""
        mine = resources.update().where(resources.c.id == resource_id, resources.c.owner == owner)
        with self.write() as connection:
            connection.execute(mine.values(owner=None, lease=None, claimed=None))

    def release_others(self, owner: str) -> int:
        """Release the resources of all other owners; called when the store's only supervisor starts."""
        others = resources.update().where(resources.c.owner.is_not(None), resources.c.owner != owner)
        with self.write() as connection:
            return connection.execute(others.values(owner=None, lease=None, claimed=None)).rowcount

    def request_stop(self, resource_id: str) -> Resource:
        """Move a job to Stopping; its supervisor ends it. GoneError and IllegalMoveError as in `update`."""
        return self.update(resource_id, "Stopping", secondary="Stopping", stop_requested=time.time())

    def position(self, resource: Resource, limit: int = 500) -> int:
        """The number of older open resources of its kind and creator that nobody holds; counted up to `limit`."""
        earlier = sa.select(resources.c.id).where(
            resources.c.open, resources.c.owner.is_(None), resources.c.kind == resource.kind,
            resources.c.created < resource.created, resources.c.creator == resource.creator,
        )  # fmt: skip
        query = sa.select(sa.func.count()).select_from(earlier.limit(limit).subquery())
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())


def database_file(url: str) -> Path | None:
    """The file of an SQLite URL; None for another database."""
    parsed = sa.make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def _key(kind: str, name: str) -> str:
    """AutoML job names are unique whatever their case (CreateAutoMLJobV2), the others as written."""
    return name.lower() if kind == AUTOML_JOB else name


def _claimable(kinds: Sequence[str]) -> tuple[Any, ...]:
    """The conditions of an open resource of these kinds that nobody holds."""
    is_unheld = sa.or_(resources.c.lease.is_(None), resources.c.lease < time.time())
    return (resources.c.open, resources.c.kind.in_(list(kinds)), is_unheld)


def _last_claim() -> Any:
    """When the creator of a resource had its last turn; 0 if it had none."""
    others = resources.alias()
    last = sa.select(sa.func.max(others.c.claimed)).where(others.c.creator == resources.c.creator).scalar_subquery()
    return sa.func.coalesce(last, 0.0)


def _resource(row: Any) -> Resource:
    fields = {name: getattr(row, name) for name in Resource.__slots__}
    fields["spec"] = JobSpec.from_json(row.spec) if row.spec is not None else None
    fields["progress"] = progress_from_json(row.kind, row.progress)
    return Resource(**fields)


def _row(resource: Resource) -> dict[str, Any]:
    return {name: getattr(resource, name) for name in Resource.__slots__} | {
        "key": _key(resource.kind, resource.name),
        "spec": resource.spec.to_json() if resource.spec is not None else None,
        "progress": progress_to_json(resource.progress),
    }


def _find(connection: sa.Connection, kind: str, owner: Owner, name: str) -> Resource | None:
    query = sa.select(resources).where(
        resources.c.kind == kind, resources.c.account == owner[0], resources.c.region == owner[1],
        resources.c.key == _key(kind, name),
    )  # fmt: skip
    row = connection.execute(query).one_or_none()
    return _resource(row) if row else None


def _locked(connection: sa.Connection, resource_id: str) -> Resource | None:
    row = connection.execute(sa.select(resources).where(resources.c.id == resource_id).with_for_update()).one_or_none()
    return _resource(row) if row else None


def _write(connection: sa.Connection, before: Resource, after: Resource) -> Resource:
    """Write what changed of a resource, checking that its status may follow."""
    check_move(before.kind, before.name, before.status, after.status)
    values: dict[str, Any] = {
        "status": after.status,
        "secondary": after.secondary,
        "progress": progress_to_json(after.progress),
        "request": dict(after.request),
        "stop_requested": after.stop_requested,
        "modified": after.modified,
        "revision": before.revision + 1,
    }
    if after.ended:
        values |= {"open": False, "owner": None, "lease": None}
    if after.status == "Deleting":  # an endpoint that failed has no supervisor any more, and needs one again
        values["open"] = True
    statement = resources.update().where(resources.c.id == before.id).values(values).returning(resources)
    return _resource(connection.execute(statement).one())


def _update_parent(connection: sa.Connection, member: Resource) -> None:
    """Bring the AutoML job of `member` to the status that follows; create what it deploys when training is done."""
    parent = _locked(connection, str(member.parent))
    if parent is None:
        return
    after = automl.update_parent(parent, member, time.time())
    if member.kind == TRAINING_JOB and after.secondary == automl.DEPLOYING:
        after = _deploy(connection, after, member)
    if after != parent:
        _write(connection, parent, after)


def _deploy(connection: sa.Connection, parent: Resource, training_job: Resource) -> Resource:
    """Create the model, endpoint config and endpoint of an AutoML job; return it as it is then."""
    owner, missing = (parent.account, parent.region), []
    for resource in automl.deployment(parent, training_job):
        present = _find(connection, resource.kind, owner, resource.name)
        if present is None:
            missing.append(_row(resource))
        elif present.parent != parent.id:
            error = NameInUseError(resource.kind, resource.name)
            return automl.fail_deployment(parent, str(error), time.time())
        else:
            parent = automl.update_parent(parent, present, time.time())
    if missing:
        connection.execute(resources.insert(), missing)
    return parent


def _put_tags(connection: sa.Connection, arn: str, labels: Mapping[str, str]) -> None:
    if labels:
        connection.execute(tags.delete().where(tags.c.arn == arn, tags.c.key.in_(list(labels))))
        connection.execute(tags.insert(), [{"arn": arn, "key": key, "value": value} for key, value in labels.items()])


def _conditions(listing: Listing) -> Iterator[Any]:
    yield resources.c.kind == listing.kind
    yield resources.c.account == listing.account
    yield resources.c.region == listing.region
    if listing.name_contains:
        yield resources.c.key.contains(_key(listing.kind, listing.name_contains), autoescape=True)
    if listing.statuses:
        yield resources.c.status.in_(listing.statuses)
    for column, (after, before) in ((resources.c.created, listing.created), (resources.c.modified, listing.modified)):
        if after is not None:
            yield column >= after
        if before is not None:
            yield column <= before
