"""The store on SQLite and on PostgreSQL: one meaning, nothing claimed twice, nothing lost."""

from __future__ import annotations

import multiprocessing
import stat
import time
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from luthier.errors import SettingError
from luthier.jobs import database
from luthier.jobs.database import DatabaseError
from luthier.jobs.progress import TrainingProgress
from luthier.jobs.resource import Resource, new_resource
from luthier.jobs.schema import metadata
from luthier.jobs.states import IllegalMoveError
from luthier.jobs.store import GoneError, Listing, NameInUseError, Store, database_file
from luthier.jobspec import JobSpec
from luthier.objects import tables

OWNER = ("123456789012", "us-east-1")
JOB = "training-job"
SOON = 60.0


def job(store: Store, name: str) -> Resource:
    return store.create(JOB, OWNER, name, {"TrainingJobName": name}, secondary="Starting")


def listing(**more: object) -> Listing:
    return Listing(kind=JOB, account=OWNER[0], region=OWNER[1], **more)  # type: ignore[arg-type]


def test_what_was_created_is_found_again_by_another_process(store: Store, database_url: str) -> None:
    spec = JobSpec(model="m", channels={"training": "s3://b/r"}, command=("CreateTrainingJob", "a"), eula={"by": "me"})
    progress = TrainingProgress(started=1.5, metrics=({"MetricName": "x", "Value": 1.0},)).with_transition(
        "Starting", 1
    )
    made = store.create(
        JOB, OWNER, "a", {"X": ["ü", 1.5]}, secondary="Starting", spec=spec, progress=progress, labels={"k": "v"}
    )
    other = Store.open(database_url)
    assert other.find(JOB, OWNER, "a") == made
    assert other.get(made.id) == made
    assert other.tags(made.arn) == {"k": "v"}
    assert made.arn == "arn:aws:sagemaker:us-east-1:123456789012:training-job/a"
    assert (made.status, made.open) == ("InProgress", True)
    assert other.find(JOB, ("123456789012", "eu-west-1"), "a") is None
    other.close()


def test_a_name_is_taken_once(store: Store) -> None:
    job(store, "a")
    with pytest.raises(NameInUseError, match="training-job a: the name is in use"):
        job(store, "a")
    job(store, "A")
    store.create("automl-job", OWNER, "Auto", {})
    with pytest.raises(NameInUseError):
        store.create("automl-job", OWNER, "aUTO", {})


def test_a_deleted_name_is_free_and_its_tags_are_gone(store: Store) -> None:
    made = store.create("model", OWNER, "m", {}, labels={"k": "v"})
    assert store.delete(made.id)
    assert not store.delete(made.id)
    assert store.tags(made.arn) == {}
    store.create("model", OWNER, "m", {})
    with pytest.raises(GoneError):
        store.update(made.id, "")


def test_progress_adds_up_and_moves_follow_the_table(store: Store) -> None:
    made = job(store, "a")
    store.update(made.id, progress={"started": 1.0}, secondary="Training")
    moved = store.update(made.id, "Completed", progress={"ended": 2.0})
    assert moved.progress == TrainingProgress(started=1.0, ended=2.0)
    assert (moved.secondary, moved.revision, moved.open) == ("Training", 2, False)
    with pytest.raises(TypeError):
        store.update(made.id, progress={"unknown": 1})
    with pytest.raises(IllegalMoveError, match="Stopping does not follow from Completed"):
        store.request_stop(made.id)
    assert store.get(made.id) == moved


def test_lists_narrow_sort_and_page(store: Store) -> None:
    made = [job(store, f"job-{number}") for number in range(7)]
    store.update(made[3].id, "Failed")
    first = store.list(listing(limit=3))
    rest = store.list(listing(limit=3, after=first.after))
    last = store.list(listing(limit=3, after=rest.after))
    names = [found.name for page in (first, rest, last) for found in page.items]
    assert names == [f"job-{number}" for number in range(6, -1, -1)]
    assert last.after is None
    by_name = store.list(listing(sort="name", descending=False, limit=2))
    assert [found.name for found in by_name.items] == ["job-0", "job-1"]
    assert by_name.after == ("job-1", made[1].id)
    assert [found.name for found in store.list(listing(statuses=("Failed",))).items] == ["job-3"]
    assert [found.name for found in store.list(listing(name_contains="b-5")).items] == ["job-5"]
    assert store.list(listing(name_contains="_")).items == []
    assert [found.name for found in store.list(listing(created=(made[5].created, None))).items] == ["job-6", "job-5"]
    assert [found.name for found in store.list(listing(modified=(None, made[0].created))).items] == ["job-0"]


def test_several_are_stored_all_or_none(store: Store) -> None:
    job(store, "b")
    one, two = (new_resource(JOB, OWNER, name, {}) for name in ("a", "b"))
    with pytest.raises(NameInUseError, match="training-job b: the name is in use"):
        store.insert(one, two)
    assert store.get(one.id) is None


def test_tags_are_replaced_added_and_removed(store: Store) -> None:
    store.add_tags("arn:x", {"a": "1", "b": "2"})
    store.add_tags("arn:x", {"b": "3"})
    store.delete_tags("arn:x", ["a", "none"])
    assert store.tags("arn:x") == {"b": "3"}


def test_the_queue_gives_by_age_and_only_what_is_free(store: Store) -> None:
    made = [job(store, name) for name in ("c", "a", "b", "d")]
    assert [store.position(store.get(each.id) or each) for each in made] == [0, 1, 2, 3]
    lease = time.time() + SOON
    first = store.claim("me", [JOB], lease)
    assert first is not None
    assert (first.name, first.owner) == ("c", "me")
    second = store.claim("you", [JOB], lease, exclude=[made[1].id])
    assert second is not None
    assert second.name == "b"
    assert store.claim("me", ["endpoint"], lease) is None
    assert [found.name for found in store.held("you")] == ["b"]
    store.release(second.id, "me")
    assert [found.name for found in store.held("you")] == ["b"]
    store.release(second.id, "you")
    third = store.claim("me", [JOB], lease)
    assert third is not None
    assert third.name == "a"


def test_a_lease_that_ran_out_is_taken_over_and_its_owner_cannot_write(store: Store) -> None:
    made = job(store, "a")
    store.claim("old", [JOB], time.time() - 1)
    assert store.claim("new", [JOB], time.time() + SOON) is not None
    with pytest.raises(GoneError, match="taken over"):
        store.update(made.id, "Completed", owner="old")
    store.beat("old", time.time() + SOON)
    assert [found.id for found in store.held("new")] == [made.id]
    done = store.update(made.id, "Completed", owner="new")
    assert (done.owner, done.lease) == (None, None)
    assert store.claim("new", [JOB], time.time() + SOON) is None


def test_a_stop_is_asked_for_once(store: Store) -> None:
    made = job(store, "a")
    asked = store.request_stop(made.id)
    assert (asked.status, asked.secondary) == ("Stopping", "Stopping")
    assert asked.stop_requested is not None
    assert store.request_stop(made.id).stop_requested == asked.stop_requested


def claim_all(url: str, owner: str) -> list[str]:
    store = Store.open(url)
    found = []
    while taken := store.claim(owner, [JOB], time.time() + SOON):
        found.append(taken.name)
    store.close()
    return found


def test_many_claim_at_once_and_each_job_goes_to_one(store: Store, database_url: str) -> None:
    names = [f"j{number}" for number in range(60)]
    for name in names:
        job(store, name)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(claim_all, [(database_url, f"s{number}") for number in range(3)])
    assert Counter(name for each in found for name in each) == Counter(names)


def test_the_queue_is_fair_by_key(store: Store) -> None:
    for creator, count in (("ann", 5), ("bob", 2), ("", 1)):
        for number in range(count):
            name = f"{creator or 'unsigned'}-{number}"
            store.create(JOB, (*OWNER, creator), name, {"TrainingJobName": name}, secondary="Starting")
    turns = []
    for _ in range(8):
        claimed = store.claim("one", [JOB], time.time() + SOON)
        assert claimed is not None
        turns.append(claimed.name)
    assert turns == ["ann-0", "bob-0", "unsigned-0", "ann-1", "bob-1", "ann-2", "ann-3", "ann-4"]
    late = store.create(JOB, (*OWNER, "ann"), "ann-5", {"TrainingJobName": "ann-5"}, secondary="Starting")
    other = store.create(JOB, (*OWNER, "bob"), "bob-2", {"TrainingJobName": "bob-2"}, secondary="Starting")
    assert (store.position(late), store.position(other)) == (0, 0)
    last = store.find(JOB, OWNER, "ann-4")
    assert last is not None
    store.release(last.id, "one")
    order = [store.claim("one", [JOB], time.time() + SOON) for _ in range(3)]
    assert [one.name for one in order if one] == ["bob-2", "ann-4", "ann-5"]


def test_the_supervisor_that_starts_frees_what_a_dead_one_held(store: Store) -> None:
    job(store, "a")
    store.claim("dead", [JOB], time.time() + SOON)
    assert store.release_others("new") == 1
    assert store.claim("new", [JOB], time.time() + SOON) is not None
    assert store.release_others("new") == 0


# Opening


def test_migrations_give_the_schema_that_the_code_means(store: Store) -> None:
    assert tables.objects.metadata is metadata
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


@pytest.mark.parametrize("version", ["0001", "0002"])
def test_an_older_database_is_upgraded_and_keeps_what_it_holds(database_url: str, version: str) -> None:
    engine = database.connect(database_url)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE alembic_version"))
    database.upgrade(engine, version)
    row = {
        "id": "x" * 32, "kind": JOB, "account": OWNER[0], "region": OWNER[1], "name": "old", "key": "old",
        "request": {"TrainingJobName": "old", "OutputDataConfig": {"S3OutputPath": "s3://b/o"}},
        "status": "InProgress", "secondary": "Training", "facts": {},
        "created": 1.0, "modified": 2.0, "revision": 3, "open": True, "priority": 0, "attempt": 1, "owner": "dead",
        "lease": 4.0,
    }  # fmt: skip
    table = sa.Table("resources", sa.MetaData(), autoload_with=engine)
    with engine.begin() as connection:
        connection.execute(table.insert().values(row))
    engine.dispose()
    store = Store.open(database_url)
    try:
        with store.engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        (held,) = store.held("dead")
        assert (held.id, held.name, held.secondary) == ("x" * 32, "old", "Training")
        assert store.release_others("new") == 1
    finally:
        store.close()


def test_what_an_owner_holds_is_found_by_an_index(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'x.sqlite'}")
    mine = sa.text("EXPLAIN QUERY PLAN SELECT * FROM resources WHERE owner = 'me'")
    with store.engine.connect() as connection:
        assert "ix_resources_owner" in str(connection.execute(mine).all())
    store.close()


def test_a_database_of_a_newer_luthier_is_refused(store: Store, database_url: str) -> None:
    with store.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="its schema '9999' is of a newer Luthier; upgrade Luthier"):
        Store.open(database_url)


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'x.sqlite'}"
    Store.open(url).close()
    file = database_file(url)
    assert file is not None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert database_file("postgresql://u@h/n") is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "expected sqlite:///FILE or postgresql://"),
        ("mysql://h/n", "--database mysql: expected sqlite or postgresql"),
        ("sqlite://", "a database in memory would forget every job"),
    ],
)
def test_other_databases_are_refused_in_one_line(url: str, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        Store.open(url)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError) as caught:
        Store.open(f"postgresql://u:secret@/n?host={tmp_path}")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
