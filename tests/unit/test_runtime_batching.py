"""Out of memory: halve, try again, remember, give up at one."""

from __future__ import annotations

import pytest

from agent.errors import DeviceMemoryError, ModelError
from agent.runtime.batching import BatchLimiter


class Device:
    """Computes batches up to `bears`, else is out of memory."""

    def __init__(self, bears: int) -> None:
        self.bears = bears
        self.calls: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> list[int]:
        self.calls.append((start, stop))
        if stop - start > self.bears:
            raise DeviceMemoryError("out of memory")
        return list(range(start, stop))


def test_work_is_split_into_batches_in_order() -> None:
    device = Device(8)
    parts = BatchLimiter(4).run(10, device)
    assert [value for part in parts for value in part] == list(range(10))
    assert device.calls == [(0, 4), (4, 8), (8, 10)]


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_the_size_is_kept() -> None:
    device, shrunk = Device(2), []
    limiter = BatchLimiter(8, shrunk.append)
    parts = limiter.run(9, device)
    assert [value for part in parts for value in part] == list(range(9))
    assert shrunk == [4, 2]
    assert limiter.limit == 2
    assert limiter.shortage == "out of device memory: batches of 2 in place of 8"
    device.calls.clear()
    limiter.run(4, device)
    assert device.calls == [(0, 2), (2, 4)]


def test_a_small_rest_that_fails_shrinks_from_its_own_size() -> None:
    limiter = BatchLimiter(8)
    limiter.run(3, Device(1))
    assert limiter.limit == 1


def test_one_that_does_not_fit_is_the_end() -> None:
    with pytest.raises(DeviceMemoryError):
        BatchLimiter(4).run(4, Device(0))


def test_other_errors_pass_and_change_nothing() -> None:
    limiter = BatchLimiter(4)

    def broken(_start: int, _stop: int) -> None:
        raise ModelError("no")

    with pytest.raises(ModelError):
        limiter.run(4, broken)
    assert limiter.limit == 4


def test_after_a_good_while_larger_batches_are_tried_again() -> None:
    device, changes = Device(2), []
    limiter = BatchLimiter(8, changes.append, patience=3)
    limiter.run(8, device)
    device.bears = 8
    for _ in range(40):
        limiter.run(8, device)
    assert changes == [4, 2, 4, 8]
    assert limiter.shortage == ""
    device.calls.clear()
    limiter.run(8, device)
    assert device.calls == [(0, 8)]


def test_a_device_that_stays_too_small_is_bothered_ever_more_rarely_and_loses_nothing() -> None:
    device = Device(2)
    limiter = BatchLimiter(4, patience=3)
    for _ in range(1000):
        parts = limiter.run(4, device)
        assert [value for part in parts for value in part] == [0, 1, 2, 3]
    failures = sum(stop - start > 2 for start, stop in device.calls)
    assert failures < 12  # 2000 batches: at 6, 18, 42, ... good ones


def test_nothing_to_do_is_nothing_done() -> None:
    device = Device(1)
    assert BatchLimiter(4).run(0, device) == []
    assert device.calls == []
