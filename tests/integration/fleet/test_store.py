"""The store on real databases: migrations, one commit for many, what a failure leaves behind."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes.fleet_server import Repository, fleet_server
from fakes.fleet_store import add_release
from fakes.postgres import NEEDED, Postgres, available
from sqlalchemy import Connection, Inspector, create_engine, func, insert, inspect, select, text

from agent.errors import ConfigError, StorageError, TransientError
from ota.store import action_ids, actions, audit, devices, feedback, reported, settings, tables, users
from ota.store.devices import Seen
from ota.store.errors import ConflictError, LimitError, MissingError
from ota.store.migrate import Migration, migrate, migrations
from ota.store.polls import Polls, look
from ota.store.rows import Action, ActionState, Entry, Report, Role, UpdateStatus
from ota.store.store import Store, open_store

NOW = 1_800_000_000_000


def entry(what: str = "device.create") -> Entry:
    return Entry(NOW, "ann", "admin", "10.0.0.1", what, "box-1", {"a": [1, None]})


# --- migrations -------------------------------------------------------------------------------------------------------


async def test_migrations_make_the_tables_that_the_code_knows(store: Store) -> None:
    def shape(connection: Connection) -> dict[str, Any]:
        found: Inspector = inspect(connection)
        return {
            name: (
                {column["name"]: bool(column["nullable"]) for column in found.get_columns(name)},
                sorted(found.get_pk_constraint(name)["constrained_columns"]),
                sorted(
                    (tuple(key["constrained_columns"]), key["referred_table"]) for key in found.get_foreign_keys(name)
                ),
                sorted(tuple(one["column_names"]) for one in found.get_unique_constraints(name)),
                sorted(
                    index["name"] or "" for index in found.get_indexes(name) if not index.get("duplicates_constraint")
                ),
            )
            for name in found.get_table_names()
        }

    made = await store.read(shape)
    assert set(made.pop("migrations")[0]) == {"number", "name"}
    assert set(made) == set(tables.metadata.tables)
    engine = create_engine("sqlite://")
    try:
        tables.metadata.create_all(engine)
        with engine.connect() as connection:
            assert made == shape(connection)
    finally:
        engine.dispose()


async def test_opening_again_changes_nothing(database: str) -> None:
    async with open_store(database) as store:
        await store.write(audit.add, entry())
    async with open_store(database) as store:
        found, total = await store.read(audit.page, limit=10, offset=0)
        assert total == 1
        assert (found[0].who, found[0].detail) == ("ann", {"a": [1, None]})
        numbers = await store.read(lambda c: list(c.execute(text("SELECT number FROM migrations")).scalars()))
        assert numbers == [migration.number for migration in migrations()]


async def test_half_a_migration_leaves_nothing(store: Store) -> None:
    newest = migrations()[-1].number
    bad = Migration(newest + 1, "bad", "CREATE TABLE extra (id $identity);\nINSERT INTO nowhere VALUES (1);\n")
    with pytest.raises(StorageError, match="nowhere"):
        await store.write(migrate, [*migrations(), bad])
    assert "extra" not in await store.read(lambda c: inspect(c).get_table_names())
    good = Migration(newest + 1, "good", "-- a comment; with a semicolon\nCREATE TABLE extra (id $identity, x TEXT);\n")
    assert await store.write(migrate, [*migrations(), good]) == newest + 1
    assert await store.write(migrate, [*migrations(), good]) == 0


async def test_database_of_a_newer_version_is_refused(database: str) -> None:
    async with open_store(database) as store:
        await store.write(lambda c: c.execute(text("INSERT INTO migrations VALUES (9999, 'future')")))
    with pytest.raises(StorageError, match="newer version"):
        async with open_store(database):
            pass


@pytest.mark.parametrize("url", ["mysql://x@y/z", "fleet.db", "oracle://", ""])
async def test_other_databases_are_refused_with_what_would_do(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///file or postgresql://"):
        async with open_store(url):
            pass


async def test_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be opened"):
        async with open_store(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}"):
            pass


# --- writes -----------------------------------------------------------------------------------------------------------


async def test_writes_that_wait_share_a_commit(store: Store) -> None:
    await asyncio.gather(*(store.write(audit.add, entry(f"n.{n}")) for n in range(200)))
    assert store.writes == 200
    assert store.commits < 20
    _, total = await store.read(audit.page, limit=1, offset=0)
    assert total == 200


async def test_one_that_fails_takes_nobody_with_it(store: Store) -> None:
    def bad(connection: Connection, n: int) -> None:
        audit.add(connection, entry(f"bad.{n}"))
        raise ConflictError(f"no {n}")

    def broken(connection: Connection) -> None:
        connection.execute(insert(tables.settings).values(key="x", value=None))
        connection.execute(text("SELECT * FROM nowhere"))

    good = [store.write(audit.add, entry(f"good.{n}")) for n in range(10)]
    results = await asyncio.gather(
        *good, store.write(bad, 1), store.write(broken), store.write(bad, 2), return_exceptions=True
    )
    assert results[:10] == [None] * 10
    assert [type(result) for result in results[10:]] == [ConflictError, StorageError, ConflictError]
    assert "no 2" in str(results[12])
    found, _ = await store.read(audit.page, limit=100, offset=0)
    assert {row.what for row in found} == {f"good.{n}" for n in range(10)}


async def test_one_that_fails_alone_leaves_nothing(store: Store) -> None:
    def bad(connection: Connection) -> None:
        audit.add(connection, entry())
        raise MissingError("gone")

    with pytest.raises(MissingError, match="gone"):
        await store.write(bad)
    assert await store.read(audit.page, limit=1, offset=0) == ([], 0)


async def test_bug_in_the_commit_reaches_its_callers_and_stops_nobody_else(store: Store) -> None:
    backend = store._backend
    works = backend.write

    async def fails(_: Any) -> Any:
        backend.write = works  # type: ignore[method-assign]
        raise ValueError("a bug")

    backend.write = fails  # type: ignore[method-assign]
    lost = [store.write(audit.add, entry(f"lost.{n}")) for n in range(2)]
    async with asyncio.timeout(10):
        assert [str(error) for error in await asyncio.gather(*lost, return_exceptions=True)] == ["a bug"] * 2
        await store.write(audit.add, entry("kept"))
    found, _ = await store.read(audit.page, limit=10, offset=0)
    assert [row.what for row in found] == ["kept"]


async def test_caller_that_leaves_stops_nobody(store: Store) -> None:
    leaving = asyncio.create_task(store.write(audit.add, entry("left")))
    staying = asyncio.create_task(store.write(audit.add, entry("stayed")))
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    found, _ = await store.read(audit.page, limit=10, offset=0)
    assert "stayed" in {row.what for row in found}


async def test_surveys_go_one_at_a_time_beside_reads_and_requests(store: Store) -> None:
    may_end, running = threading.Event(), 0

    def survey(connection: Connection) -> int:
        nonlocal running
        running += 1
        assert running == 1
        found = connection.execute(text("SELECT 7")).scalar_one()
        may_end.wait(30)
        running -= 1
        return int(found)

    surveys = [asyncio.create_task(store.survey(survey)) for _ in range(4)]
    try:
        while not running:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            await asyncio.gather(*(store.read(settings.get, "x") for _ in range(20)))
        assert not any(task.done() for task in surveys)
    finally:
        may_end.set()
    assert await asyncio.gather(*surveys) == [7] * 4
    with pytest.raises(StorageError, match="does not answer"):
        await store.survey(lambda connection: connection.execute(text("SELECT * FROM nowhere")))


async def test_what_waits_at_the_end_is_written(database: str) -> None:
    async with open_store(database) as store:
        waiting = [asyncio.create_task(store.write(audit.add, entry(str(n)))) for n in range(50)]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    async with open_store(database) as store:
        assert (await store.read(audit.page, limit=1, offset=0))[1] == 50


@pytest.mark.skipif(not available(), reason=NEEDED)
async def test_postgresql_that_dies_is_an_error_and_no_end(postgres: Postgres) -> None:
    async with open_store(postgres.url("postgres")) as store:
        await store.write(settings.put, "x", 1)
        postgres.stop()
        try:
            with pytest.raises(StorageError):
                await store.write(settings.put, "x", 2)
            with pytest.raises(StorageError):
                await store.read(settings.get, "x")
        finally:
            postgres.start()
        await store.write(settings.put, "x", 3)
        assert await store.read(settings.get, "x") == 3


REFUSAL = ((b"E", b"SFATAL\0C57P03\0Mthe database system is starting up\0\0"),)
NONSENSE = ((b"R", bytes(4)), (b"S", b"server_version\0\xff\0"), (b"Z", b"I"))


@pytest.mark.skipif(not available(), reason=NEEDED)
@pytest.mark.parametrize("answer", [REFUSAL, NONSENSE], ids=["refusal", "nonsense"])
async def test_postgresql_that_lets_nobody_in_is_an_error_and_no_end(
    postgres: Postgres, answer: tuple[tuple[bytes, bytes], ...]
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"".join(kind + (4 + len(body)).to_bytes(4, "big") + body for kind, body in answer))
        await reader.read()
        writer.close()

    async with open_store(postgres.url("postgres")) as store:
        await store.write(settings.put, "x", 1)
        postgres.stop()
        place = postgres.folder / ".s.PGSQL.5432"
        try:
            place.unlink(missing_ok=True)
            async with await asyncio.start_unix_server(refuse, place), asyncio.timeout(10):
                with pytest.raises(StorageError):
                    await store.write(settings.put, "x", 2)
                with pytest.raises(StorageError):
                    await store.read(settings.get, "x")
        finally:
            place.unlink(missing_ok=True)
            postgres.start()
        await store.write(settings.put, "x", 3)
        assert await store.read(settings.get, "x") == 3


async def test_two_servers_that_start_at_once_migrate_once(database: str) -> None:
    if database.startswith("sqlite"):
        pytest.skip("one SQLite file belongs to one server")
    async with open_store(database) as one, open_store(database) as two:
        assert await one.read(settings.get, "x") is None
        assert await two.read(settings.get, "x") is None


# --- repository functions ---------------------------------------------------------------------------------------------


async def new_device(store: Store, name: str = "box-1", **values: Any) -> int:
    return (await store.write(devices.create, name, now_ms=NOW, **values)).id


async def test_devices(store: Store) -> None:
    box = await new_device(store, token_hash="h")
    with pytest.raises(ConflictError):
        await new_device(store)
    await new_device(store, "Box_2", seen=True)
    found, total = await store.read(devices.page, limit=1, offset=0, search="box")
    assert (len(found), total) == (1, 2)
    assert [device.controller_id for device in await store.read(devices.all_of)] == ["box-1", "Box_2"]
    assert (await store.read(devices.page, limit=9, offset=0, search="_"))[1] == 1  # a letter, no wild card
    assert (await store.read(devices.page, limit=9, offset=0, status="registered"))[1] == 1
    await store.write(devices.saw, [Seen(box, NOW + 5, "10.0.0.7")])
    device = await store.read(devices.get, "box-1")
    assert (device.last_seen_ms, device.address, device.update_status) == (NOW + 5, "10.0.0.7", UpdateStatus.UNKNOWN)
    counts = await store.read(devices.by_update_status)
    assert (counts["unknown"], counts["registered"], counts["error"]) == (1, 1, 0)
    assert await store.read(devices.by_presence, NOW + 1) == {"online": 1, "offline": 1, "never": 0}
    with pytest.raises(LimitError):
        await store.write(devices.set_attributes, box, "merge", {str(n): "" for n in range(101)})


async def test_deleted_device_leaves_only_the_audit_log(store: Store) -> None:
    box = await new_device(store)
    release = await store.write(add_release, 1)
    action = await store.write(actions.assign, box, release.id, by="ann", now_ms=NOW)
    await store.write(feedback.add, box, action.id, Report("deployment", "closed", "success"), now_ms=NOW)
    await store.write(audit.add, entry())
    await store.write(devices.remove, box)

    def rows(connection: Connection) -> dict[str, int]:
        return {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in tables.metadata.tables.items()
        }

    assert {name for name, number in (await store.read(rows)).items() if number} == {"releases", "audit"}


async def test_an_id_of_an_action_is_not_given_again_by_a_database_that_was_begun_anew_or_restored(
    store: Store,
) -> None:
    box, release = await new_device(store), await store.write(add_release, 1)

    async def start_and_assign(now_ms: int, count: int = 1) -> list[int]:
        await store.write(action_ids.skip_those_given, now_ms)
        made = [await store.write(actions.assign, box, release.id, by="ann", now_ms=now_ms) for _ in range(count)]
        return [action.id for action in made]

    (first,) = await start_and_assign(NOW)
    assert 1_000_000 < first < 2**31
    assert await start_and_assign(NOW + 10_000) == [first + 10]
    assert await start_and_assign(NOW + 10_000, 3) == [first + 11, first + 12, first + 13]
    assert await start_and_assign(NOW - 3_600_000) == [first + 14]  # a clock that was set back
    assert await start_and_assign(0) == [first + 15]


async def test_ids_of_a_database_that_was_there_before_go_on_from_the_clock(store: Store) -> None:
    box, release = await new_device(store), await store.write(add_release, 1)
    old = await store.write(actions.assign, box, release.id, by="ann", now_ms=NOW)
    await store.write(action_ids.skip_those_given, NOW)
    new = await store.write(actions.assign, box, release.id, by="ann", now_ms=NOW)
    assert (old.id, new.id > 1_000_000) == (1, True)
    assert (await store.read(actions.get, old.id)).release_id == release.id


async def test_assigning_to_many_at_once(store: Store) -> None:
    ids = [await new_device(store, f"box-{n}") for n in range(30)]
    first, second = await store.write(add_release, 1), await store.write(add_release, 2)
    made = await store.write(actions.assign_many, ids[::-1], first.id, by="ann", now_ms=NOW)
    assert [action.device_id for action in made] == ids[::-1]
    await store.write(
        feedback.add, made[0].device_id, made[0].id, Report("deployment", "closed", "success"), now_ms=NOW
    )
    again = await store.write(actions.assign_many, ids, second.id, by="ann", now_ms=NOW)
    assert {action.previous_release_id for action in again if action.device_id == ids[-1]} == {first.id}
    assert {action.previous_release_id for action in again if action.device_id != ids[-1]} == {None}
    assert await store.read(actions.counts) == {"canceled": 29, "finished": 1, "pending": 30}
    with pytest.raises(MissingError):
        await store.write(actions.assign_many, [*ids, 10**9], second.id, by="ann", now_ms=NOW)
    with pytest.raises(MissingError):
        await store.write(actions.assign_many, ids, 10**9, by="ann", now_ms=NOW)
    assert await store.read(actions.counts) == {"canceled": 29, "finished": 1, "pending": 30}


async def test_the_release_before_is_the_one_that_ran_just_before_the_end(store: Store) -> None:
    box = await new_device(store)
    first, second, third = [await store.write(add_release, number) for number in (1, 2, 3)]

    async def report(action: Action, execution: str, finished: str = "none") -> int | None:
        await store.write(feedback.add, box, action.id, Report("deployment", execution, finished), now_ms=NOW)
        return (await store.read(actions.get, action.id)).previous_release_id

    one = await store.write(actions.assign, box, first.id, by="ann", now_ms=NOW)
    assert await report(one, "closed", "success") is None
    two = await store.write(actions.assign, box, second.id, by="ann", now_ms=NOW)
    assert await report(two, "proceeding") == first.id
    three = await store.write(actions.assign, box, third.id, by="ann", now_ms=NOW)
    assert await report(three, "proceeding") == first.id
    assert await report(two, "closed", "success") == first.id  # it could not be cancelled any more
    assert await report(three, "closed", "success") == second.id
    four = await store.write(actions.assign, box, first.id, by="ann", now_ms=NOW)
    assert await report(four, "proceeding") == third.id
    assert await store.write(actions.note_by_hand, box, first, now_ms=NOW) is not None
    assert await report(four, "closed", "success") == third.id  # the same release ran just before: no way back


async def test_what_a_device_says_it_runs_goes_before_what_it_reported(store: Store) -> None:
    box = await new_device(store)
    rows = {number: await store.write(add_release, number) for number in (1, 2, 3)}
    agent = {"agent_version": "0.1.0", "model.pose": "configured.onnx"}

    async def says(number: int | None, *, whole: bool = True, **more: str) -> int | None:
        said = {} if number is None else {"model.pose": f"pose-nano 0.{number}.0", "number.pose": str(number)}
        await store.write(reported.note, box, agent | said | more, whole=whole, now_ms=NOW)
        return await serves()

    async def serves() -> int | None:
        found = await store.read(devices.installed, [box])
        return next((number for number, row in rows.items() for one in found if one.release_id == row.id), None)

    assert await says(1) == 1  # a server that was begun anew
    two = await store.write(actions.assign, box, rows[2].id, by="ann", now_ms=NOW)
    await store.write(feedback.add, box, two.id, Report("deployment", "proceeding", "none"), now_ms=NOW)
    assert await says(2) == 1  # it will say itself how that ended
    await store.write(feedback.add, box, two.id, Report("deployment", "closed", "success"), now_ms=NOW)
    assert await serves() == 2
    assert (await store.read(actions.get, two.id)).previous_release_id == rows[1].id
    three = await store.write(actions.assign, box, rows[3].id, by="ann", now_ms=NOW)
    for _ in range(5):  # back and forth on site
        assert [await says(1), await says(2)] == [1, 2]
    assert (await store.read(devices.installed, [box]))[0].action_id == two.id
    assert (await store.read(actions.page, limit=1, offset=0))[1] == 3
    assert (await store.read(actions.get, three.id)).state is ActionState.PENDING  # and what it is offered stays so
    assert await says(None, whole=False) == 2
    assert await says(None) is None  # a version that could not be loaded
    await store.write(feedback.add, box, three.id, Report("deployment", "closed", "success"), now_ms=NOW)
    assert (await store.read(actions.get, three.id)).previous_release_id is None
    assert await says(7) is None  # nobody here knows it
    for odd in ("", "-1", "1.5", "x", "9" * 30, "\u0663"):
        assert await says(2, **{"number.pose": odd}) is None


async def test_installations_by_hand_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ota.store.actions.MAX_BY_HAND", 4)
    box, rows = await new_device(store), [await store.write(add_release, number) for number in (1, 2)]
    for n in range(4):
        assert await store.write(actions.note_by_hand, box, rows[n % 2], now_ms=NOW) is not None
    with pytest.raises(LimitError):
        await store.write(actions.note_by_hand, box, rows[0], now_ms=NOW)
    assert await store.write(actions.note_by_hand, box, rows[1], now_ms=NOW) is None


async def test_cancelling(store: Store) -> None:
    box = await new_device(store)
    release = await store.write(add_release, 1)
    action = await store.write(actions.assign, box, release.id, by="ann", now_ms=NOW)
    assert (await store.write(actions.cancel, action.id, now_ms=NOW)).state is ActionState.CANCELED
    with pytest.raises(ConflictError):
        await store.write(actions.cancel, action.id, now_ms=NOW)
    action = await store.write(actions.assign, box, release.id, by="ann", now_ms=NOW)
    await store.write(feedback.add, box, action.id, Report("deployment", "download", "none"), now_ms=NOW)
    assert (await store.write(actions.cancel, action.id, now_ms=NOW)).state is ActionState.CANCELING
    assert (await store.write(actions.cancel, action.id, now_ms=NOW, force=True)).state is ActionState.CANCELED
    assert (await store.read(devices.get, "box-1")).update_status is UpdateStatus.REGISTERED


async def test_users(store: Store) -> None:
    await store.write(users.create, "ann", Role.ADMIN, "h1", by="x", now_ms=NOW)
    await store.write(users.create, "bob", Role.VIEWER, "h2", by="ann", now_ms=NOW)
    with pytest.raises(ConflictError):
        await store.write(users.create, "bob", Role.ADMIN, "h3", by="ann", now_ms=NOW)
    for change in ({"role": Role.VIEWER}, {"active": False}):
        with pytest.raises(ConflictError, match="last administrator"):
            await store.write(lambda c, change=change: users.change(c, "ann", **change))
    assert (await store.read(users.get, "ann")).role is Role.ADMIN
    await store.write(users.change, "bob", active=False)
    assert await store.read(users.find_by_token, "h2") is None
    assert (await store.read(users.find_by_token, "h1")) is not None


async def test_settings(store: Store) -> None:
    for value in ("x", 3, {"a": [None, True]}, None):
        await store.write(settings.put, "key", value)
        assert await store.read(settings.get, "key") == value


async def test_poll_sees_the_cancellation_first_then_the_oldest(store: Store) -> None:
    box = await new_device(store)
    pose, fight = await store.write(add_release, 1), await store.write(add_release, 1, slot="action/fight")
    one = await store.write(actions.assign, box, pose.id, by="ann", now_ms=NOW)
    two = await store.write(actions.assign, box, fight.id, by="ann", now_ms=NOW)

    async def due() -> int | None:
        found = (await store.read(look, ["box-1"]))["box-1"].due
        return found.action_id if found is not None else None

    assert await due() == one.id
    await store.write(feedback.add, box, two.id, Report("deployment", "download", "none"), now_ms=NOW)
    await store.write(actions.cancel, two.id, now_ms=NOW)
    assert await due() == two.id
    await store.write(actions.cancel, two.id, now_ms=NOW, force=True)
    await store.write(feedback.add, box, one.id, Report("deployment", "closed", "success"), now_ms=NOW)
    assert await due() is None
    assert (await store.read(look, ["box-1"]))["box-1"].installed_action_id == one.id


async def test_polls_share_queries_and_each_gets_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(60):
        await new_device(store, f"box-{n}")
    polls, asked = Polls(store), []

    def counted(connection: Connection, ids: list[str]) -> Any:
        asked.append(len(ids))
        return look(connection, ids)

    monkeypatch.setattr("ota.store.polls.look", counted)
    found = await asyncio.gather(*(polls.look(f"box-{n % 70}") for n in range(140)))
    assert [poll.device.controller_id if poll else None for poll in found] == [
        f"box-{n % 70}" if n % 70 < 60 else None for n in range(140)
    ]
    assert len(asked) <= 3
    assert sum(asked) == 70


async def test_a_row_that_this_version_does_not_understand_is_told_to_those_who_asked(store: Store) -> None:
    box = await new_device(store)
    await store.write(devices.change, box, update_status="of another version")
    polls = Polls(store)
    async with asyncio.timeout(10):
        answers = await asyncio.gather(polls.look("box-1"), polls.look("box-2"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError, ValueError]
    await store.write(devices.change, box, update_status=UpdateStatus.REGISTERED)
    assert await polls.look("box-1") is not None


async def test_a_second_server_keeps_off_the_folder(tmp_path: Path) -> None:
    async with fleet_server(tmp_path) as first:
        with pytest.raises(TransientError, match="another fleet server is at work in it"):
            async with fleet_server(tmp_path):
                pass
        assert (await first.api("GET", "/me")).status == 200
    async with fleet_server(tmp_path) as again:
        assert (await again.api("GET", "/me")).status == 200


async def test_a_server_that_is_begun_anew_numbers_its_actions_from_the_clock(tmp_path: Path) -> None:
    async with fleet_server(tmp_path, repository=Repository(tmp_path / "repository")) as fleet:
        (release,) = await fleet.publish(1)
        assert await fleet.assign(await fleet.device(), release.id) > 1_000_000
