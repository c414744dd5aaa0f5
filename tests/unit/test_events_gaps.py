"""The announcement of a loss: every message against its schema, there and back."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import DataError
from agent.events.cloudevents import load_schema, parse
from agent.events.gaps import parse_gap, render_gap
from agent.events.ids import Uuid7
from agent.outbox.limits import missing, parts, runs
from agent.types import Lane, Loss, LossReason

NOON = datetime(2026, 11, 26, 12, 0, 0, 250_000, tzinfo=UTC)
SCHEMA = jsonschema.Draft202012Validator(load_schema("gap"), format_checker=jsonschema.FormatChecker())
LOSS = Loss(LossReason.BYTES, Lane.EVENT, ((4712, 4750), (4753, 4790)), 77)
new_id = Uuid7()


def rendered(loss: Loss) -> bytes:
    return render_gap(loss, event_id=new_id(), device_id="gate-1", sequence=4801, emitted_utc=NOON)


steps = st.lists(st.tuples(st.integers(2, 50), st.integers(0, 50)), min_size=1, max_size=20)


@st.composite
def losses(draw: st.DrawFn) -> Loss:
    """Rising runs that do not touch."""
    ranges, at = [], 0
    for gap, length in draw(steps):
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    return Loss(
        draw(st.sampled_from(LossReason)), draw(st.sampled_from([Lane.ALARM, Lane.EVENT, None])), tuple(ranges),
        draw(st.none() | st.integers(1, 10_000)), draw(st.text(max_size=40)),
        draw(st.sampled_from(["", "pager"])),
    )  # fmt: skip


@given(losses())
def test_there_and_back(loss: Loss) -> None:
    payload = rendered(loss)
    SCHEMA.validate(json.loads(payload))
    gap = parse_gap(payload)
    assert (gap.loss, gap.device_id, gap.sequence, gap.emitted_utc) == (loss, "gate-1", 4801, NOON)


def test_the_schema_is_valid_and_refuses_what_is_wrong() -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema("gap"))
    good = json.loads(rendered(LOSS))
    for spoil in ({"reason": "mood"}, {"ranges": []}, {"ranges": [[1]]}, {"first": 0}, {"lane": "state"}, {"lost": 0}):
        with pytest.raises(jsonschema.ValidationError):
            SCHEMA.validate(good | {"data": good["data"] | spoil})


def test_a_loss_without_numbers_is_not_announced() -> None:
    with pytest.raises(ValueError, match="without sequence numbers"):
        rendered(Loss(LossReason.BYTES, Lane.TELEMETRY, (), 3))


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}", b'{"specversion": "1.0", "type": "recognizer.gap.v1", "data": 1}']
)
def test_what_is_no_gap_is_refused(payload: bytes) -> None:
    with pytest.raises(DataError, match="not a gap"):
        parse_gap(payload)


@pytest.mark.parametrize(
    ("good", "beyond"),
    [
        (b'"lost":77', b'"lost":1e999'),
        (b'"sequence":4801', b'"sequence":1e999'),
        (b"[4753,4790]", b"[4753,1e999]"),
        (b"2026-11-26T12:00:00.250Z", b"0001-01-01T00:00:00+23:59"),
    ],
)
def test_a_gap_with_a_value_beyond_all_bounds_is_refused(good: bytes, beyond: bytes) -> None:
    payload = rendered(LOSS)
    assert good in payload
    with pytest.raises(DataError, match="not a gap"):
        parse_gap(payload.replace(good, beyond))


def test_events_and_gaps_are_told_apart() -> None:
    with pytest.raises(DataError, match="not a Recognizer event"):
        parse(rendered(LOSS))


def test_the_example_of_the_manual(repo_dir: Path) -> None:
    text = (repo_dir / "docs" / "events.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if "recognizer.gap.v1" in block]
    SCHEMA.validate(json.loads(example))
    assert parse_gap(example.encode()).loss == LOSS


# --- runs of numbers --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3), max_size=40))
def test_runs_hold_the_numbers_and_nothing_else(differences: list[int]) -> None:
    numbers = list(accumulate(differences))
    found = runs(numbers)
    assert [number for first, last in found for number in range(first, last + 1)] == sorted(set(numbers))
    assert all(later[0] > earlier[1] + 1 for earlier, later in pairwise(found))


@given(st.sets(st.integers(1, 60)), st.integers(1, 60), st.integers(1, 60))
def test_missing_is_what_is_not_there(numbers: set[int], first: int, end: int) -> None:
    found = {number for low, high in missing(sorted(numbers), first, end) for number in range(low, high + 1)}
    assert found == set(range(first, end)) - numbers


def test_parts_hold_everything_once() -> None:
    ranges = tuple((n, n + 1) for n in range(1, 4000, 3))
    pieces = parts(Loss(LossReason.AGE, Lane.EVENT, ranges, 2 * len(ranges)))
    assert tuple(run for piece in pieces for run in piece.ranges) == ranges
    assert sum(piece.lost or 0 for piece in pieces) == 2 * len(ranges)
    assert max(len(piece.ranges) for piece in pieces) == 500
