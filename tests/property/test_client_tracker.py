"""The subscriber's sequence tracker against a model that remembers every number and every id."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agent.client.tracker import HoleState, SequenceTracker, Verdict

GRACE_S = 10.0
NUMBERS = st.integers(1, 40)
WAITED_FOR = (HoleState.OPEN, HoleState.ASKED)


def uuid7(n: int) -> str:
    """The id of the n-th message of a device: rising text."""
    return f"019abcde-{n >> 16 & 0xFFFF:04x}-7000-8000-{n:012x}"


def spread(ranges: object) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}  # type: ignore[attr-defined]


class TrackerMachine(RuleBasedStateMachine):
    """One life of a device after the other; each number has one id in a life, and the ids of a later life are higher."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.life = 0
        self.tracker = SequenceTracker(grace_s=GRACE_S, max_ids=8)
        self.reset()

    def reset(self) -> None:
        self.seen: set[int] = set()
        self.absent: dict[int, tuple[HoleState, float]] = {}

    def id_of(self, sequence: int) -> str:
        return uuid7(self.life * 1000 + sequence)

    def note(self, sequence: int) -> None:
        """What the model learns from a number that is new."""
        highest = max(self.seen | set(self.absent), default=0)
        state = HoleState.OPEN if highest else HoleState.BEFORE
        self.absent |= dict.fromkeys(range(highest + 1, sequence), (state, self.now_s))
        self.absent.pop(sequence, None)
        self.seen.add(sequence)
        above, was = sequence + 1, None
        while above in self.absent and was in (None, self.absent[above]):  # the run right above gets its grace again
            was = self.absent[above]
            self.absent[above] = (was[0], self.now_s)
            above += 1

    @rule(sequence=NUMBERS)
    def come(self, sequence: int) -> None:
        known = sequence in self.seen
        verdict = self.tracker.feed(sequence, self.id_of(sequence), self.now_s)
        assert verdict is (Verdict.DUPLICATE if known else Verdict.NEW)
        if not known:
            self.note(sequence)

    @rule(sequence=NUMBERS)
    def start_again(self, sequence: int) -> None:
        """A new life shows when a number comes that the old one had used already."""
        if sequence not in self.seen:
            return
        self.life += 1
        assert self.tracker.feed(sequence, self.id_of(sequence), self.now_s) is Verdict.RESTARTED
        self.reset()
        self.note(sequence)

    @rule(first=NUMBERS, length=st.integers(0, 10))
    def announce(self, first: int, length: int) -> None:
        if not self.seen:
            return
        last = first + length
        highest = max(self.seen | set(self.absent))
        self.tracker.announce([(first, last)], self.now_s)
        self.absent |= dict.fromkeys(range(highest + 1, last + 1), (HoleState.OPEN, self.now_s))
        for number in self.absent.keys() & set(range(first, last + 1)):
            self.absent[number] = (HoleState.ANNOUNCED, self.absent[number][1])

    @rule(by_s=st.sampled_from([1.0, 4.0, 11.0]), ask=st.booleans())
    def wait(self, by_s: float, ask: bool) -> None:
        self.now_s += by_s
        late = {n for n, (state, s) in self.absent.items() if state in WAITED_FOR and self.now_s - s >= GRACE_S}
        asked = {n for n in late if ask and self.absent[n][0] is HoleState.OPEN}
        overdue = self.tracker.overdue(self.now_s, ask=ask)
        assert spread(overdue.ask) == asked
        assert spread(overdue.missing) == late - asked
        for number in late - asked:
            self.absent[number] = (HoleState.REPORTED, self.now_s)

    @rule()
    def ask(self) -> None:
        """For all that may be asked for, due or not."""
        numbers = [number for number, (state, _) in self.absent.items() if state is HoleState.OPEN]
        if numbers:
            self.tracker.asked((min(numbers), max(numbers)), self.now_s)
        self.absent |= dict.fromkeys(numbers, (HoleState.ASKED, self.now_s))

    @rule(first=NUMBERS, length=st.integers(0, 10))
    def give_up(self, first: int, length: int) -> None:
        wanted = {n for n in range(first, first + length + 1) if self.absent.get(n, ("",))[0] in WAITED_FOR}
        assert spread(self.tracker.give_up([(first, first + length)])) == wanted
        for number in wanted:
            self.absent[number] = (HoleState.REPORTED, self.absent[number][1])

    @rule()
    def start_the_subscriber_again(self) -> None:
        """From what it kept: grace begins anew, and what was asked for is asked for again."""
        dumped = self.tracker.dump()
        self.tracker = SequenceTracker(grace_s=GRACE_S, max_ids=8)
        self.tracker.load(dumped, self.now_s)
        self.absent = {
            number: (HoleState.OPEN if state is HoleState.ASKED else state, self.now_s)
            for number, (state, _) in self.absent.items()
        }

    @invariant()
    def holes_are_what_is_absent(self) -> None:
        holes = self.tracker.holes
        assert all(a.last < b.first for a, b in itertools.pairwise(holes))
        known = {n: (hole.state, hole.since_s) for hole in holes for n in range(hole.first, hole.last + 1)}
        assert {n: state for n, (state, _) in known.items()} == {n: state for n, (state, _) in self.absent.items()}
        waited = {n for n, (state, _) in known.items() if state in WAITED_FOR}
        assert {n: known[n][1] for n in waited} == {n: self.absent[n][1] for n in waited}
        assert self.tracker.highest == max(self.seen | set(self.absent), default=0)
        due = [since + GRACE_S for state, since in self.absent.values() if state in WAITED_FOR]
        assert self.tracker.due_s == min(due, default=None)


TestTracker = TrackerMachine.TestCase
TestTracker.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(1, 200), max_size=300), st.integers(2, 4), st.integers(1, 5))
def test_however_little_memory_nothing_new_is_ever_taken_for_a_duplicate(
    numbers: list[int], max_holes: int, max_ids: int
) -> None:
    tracker = SequenceTracker(grace_s=1.0, max_holes=max_holes, max_ids=max_ids)
    seen: set[int] = set()
    for number in numbers:
        verdict = tracker.feed(number, uuid7(number), 0.0)
        assert verdict is Verdict.NEW or (verdict is Verdict.DUPLICATE and number in seen)
        seen.add(number)
        assert len(tracker.holes) <= max_holes
    missing = set(range(numbers[0] if numbers else 1, tracker.highest + 1)) - seen
    assert missing <= spread(tracker.overdue(1.0).missing), "all that is missing since the first one is told"


@given(st.permutations(range(1, 30)), st.lists(st.integers(0, 28), max_size=20))
def test_any_order_with_any_repetition_gives_each_number_once(order: list[int], again: list[int]) -> None:
    tracker = SequenceTracker(max_ids=4)
    stream = list(order)
    for place in again:
        stream.insert(place, order[place])
    new = [number for number in stream if tracker.feed(number, uuid7(number), 0.0) is Verdict.NEW]
    assert sorted(new) == list(range(1, 30))
    assert tracker.holes == ()


def test_a_number_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        SequenceTracker().feed(0, uuid7(1), 0.0)


@pytest.mark.parametrize(
    "dumped",
    [
        {"highest": 5, "newest_id": "", "holes": [[3, 2, "open"]]},
        {"highest": 5, "newest_id": "", "holes": [[2, 6, "open"]]},
        {"highest": 9, "newest_id": "", "holes": [[4, 5, "open"], [2, 3, "open"]]},
        {"highest": 9, "newest_id": "", "holes": [[4, 5, "lost"]]},
        {"highest": "many", "newest_id": "", "holes": []},
    ],
)
def test_a_state_that_cannot_be_is_refused(dumped: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"holes|HoleState|invalid literal"):
        SequenceTracker().load(dumped, 0.0)
