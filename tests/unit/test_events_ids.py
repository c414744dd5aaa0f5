"""UUIDv7: layout after RFC 9562, order under every behaviour of the clock."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from uuid import UUID

import pytest

from agent.events.ids import Uuid7, made_at, pack

RFC_EXAMPLE = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"  # RFC 9562, appendix A.6: 2022-02-22 14:22:22.00 GMT-05:00


def test_pack_reproduces_the_example_of_the_rfc() -> None:
    assert str(pack(0x017F22E279B0, 0xCC3, 0x18C4DC0C0C07398F)) == RFC_EXAMPLE


def test_time_is_read_back_from_the_example_of_the_rfc() -> None:
    assert made_at(RFC_EXAMPLE) == datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)


def test_made_at_refuses_other_versions() -> None:
    with pytest.raises(ValueError, match="version 7"):
        made_at("c232ab00-9414-11ec-b3c8-9f6bdeced846")


@pytest.mark.parametrize("fields", [(-1, 0, 0), (1 << 48, 0, 0), (0, 1 << 12, 0), (0, 0, 1 << 62)])
def test_pack_refuses_fields_out_of_range(fields: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        pack(*fields)


def test_ids_have_version_and_variant() -> None:
    value = UUID(Uuid7()())
    assert (value.version, value.variant) == (7, "specified in RFC 4122")


def test_ids_of_one_millisecond_increase_also_past_the_counter() -> None:
    make = Uuid7(unix_ns=lambda: 5_000_000_000, random_bits=lambda bits: (1 << bits) - 1)
    ids = [make() for _ in range(10_000)]  # the counter has 4096 values
    assert ids == sorted(set(ids))
    assert made_at(ids[-1]) > made_at(ids[0])  # borrowed milliseconds


def test_ids_increase_when_the_clock_goes_back() -> None:
    times = iter([9_000_000_000, 1_000_000_000, 1_000_000_000, 9_001_000_000])
    make = Uuid7(unix_ns=lambda: next(times), random_bits=lambda _: 0)
    ids = [make() for _ in range(4)]
    assert ids == sorted(set(ids))
    assert made_at(ids[-1]).timestamp() == pytest.approx(9.001)


def test_ids_are_unique_across_threads() -> None:
    make = Uuid7()
    made: list[list[str]] = [[] for _ in range(4)]

    def work(mine: list[str]) -> None:
        mine.extend(make() for _ in range(2_000))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for mine in made for one in mine}) == 8_000
    assert all(mine == sorted(mine) for mine in made)
