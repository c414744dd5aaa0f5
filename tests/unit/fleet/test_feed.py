"""The event feed in memory."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from ota.server.feed import KEPT, Event, Feed


async def take(feed: Feed, number: int, last_id: int | None = None) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(5), aclosing(feed.listen(last_id)) as events:
        async for event in events:
            found.append(event)
            if len(found) == number:
                break
    return found


def make() -> Feed:
    return Feed(lambda: 5)


async def test_from_now_on() -> None:
    feed = make()
    feed.tell("device", "before")
    taking = asyncio.create_task(take(feed, 2))
    await asyncio.sleep(0)
    feed.tell("device", "one", change="x")
    feed.tell("action", 2)
    found = await taking
    assert [(event.kind, event.subject, event.fields) for event in found] == [
        ("device", "one", {"change": "x"}), ("action", 2, {}),
    ]  # fmt: skip
    assert feed.listeners == 0


async def test_from_where_it_was() -> None:
    feed = make()
    feed.tell("device", "one")
    (one,) = await take(feed, 1, 4999)
    assert one.subject == "one"
    feed.tell("device", "two")
    assert [event.subject for event in await take(feed, 1, one.id)] == ["two"]


async def test_who_is_too_far_behind_is_told() -> None:
    feed = make()
    for n in range(KEPT + 10):
        feed.tell("device", n)
    found = await take(feed, 2, 5000)
    assert [(event.kind, event.subject) for event in found] == [("reset", ""), ("device", 10)]


async def test_ids_rise_over_restarts() -> None:
    early, late = Feed(lambda: 5), Feed(lambda: 6)
    early.tell("device", "a")
    late.tell("device", "b")
    (before,) = await take(early, 1, 4999)
    assert [event.kind for event in await take(late, 2, before.id)] == ["reset", "device"]


async def test_every_listener_hears_everything_and_all_end_with_the_server() -> None:
    feed = make()
    taking = [asyncio.create_task(take(feed, 100)) for _ in range(5)]
    await asyncio.sleep(0)
    for n in range(100):
        feed.tell("device", n)
        if n % 7 == 0:
            await asyncio.sleep(0)
    for found in await asyncio.gather(*taking):
        assert [event.subject for event in found] == list(range(100))
    waiting = asyncio.create_task(take(feed, 1))
    await asyncio.sleep(0)
    feed.close()
    assert await waiting == []
