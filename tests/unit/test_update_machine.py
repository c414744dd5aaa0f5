"""What follows what in an update, and what the server hears of it."""

from __future__ import annotations

import pytest

from agent.update.machine import FINAL, NEXT, Phase, after, judge_start, may_cancel, not_cancelled, report
from agent.update.trials import Refusal

BAD = Refusal("slower", "41 ms instead of 20", {"latency_ms": 41.25})


def test_the_good_way() -> None:
    phase, seen = Phase.DOWNLOADING, [Phase.DOWNLOADING]
    while phase not in FINAL:
        phase = after(phase, {})
        seen.append(phase)
    assert [one.value for one in seen] == ["downloading", "verified", "validated", "shadow", "probation", "committed"]


@pytest.mark.parametrize("phase", NEXT)
def test_a_refusal_ends_it_and_only_a_probation_has_something_to_go_back_from(phase: Phase) -> None:
    assert after(phase, BAD) is (Phase.ROLLED_BACK if phase is Phase.PROBATION else Phase.REFUSED)


@pytest.mark.parametrize("phase", sorted(FINAL))
def test_nothing_follows_an_end(phase: Phase) -> None:
    with pytest.raises(ValueError, match="is an end"):
        after(phase, {})


def test_it_can_be_cancelled_until_the_swap() -> None:
    assert {phase for phase in Phase if may_cancel(phase)} == NEXT.keys() - {Phase.PROBATION}


@pytest.mark.parametrize(
    ("phase", "starts", "clean", "counted", "back"),
    [
        (Phase.PROBATION, 0, False, 1, False),
        (Phase.PROBATION, 1, False, 2, True),
        (Phase.PROBATION, 1, True, 1, False),
        (Phase.PROBATION, 0, True, 0, False),
        (Phase.SHADOW, 0, False, 1, False),
        (Phase.SHADOW, 1, False, 2, True),
        (Phase.SHADOW, 1, True, 1, False),
        (Phase.DOWNLOADING, 5, False, 5, False),
    ],
)
def test_the_second_death_with_the_candidate_in_the_process_ends_it(
    phase: Phase, starts: int, clean: bool, counted: int, back: bool
) -> None:
    found, refusal = judge_start(phase, starts, clean=clean)
    assert found == counted
    assert (refusal is not None) is back
    assert refusal is None or refusal.reason == "restart"


def test_a_candidate_that_only_waits_for_its_moment_is_not_to_blame() -> None:
    assert judge_start(Phase.SHADOW, 1, clean=False, measured=True) == (1, None)


def test_only_a_good_probation_is_a_success() -> None:
    finished = {phase: report(phase).finished for phase in Phase}
    assert {phase for phase, result in finished.items() if result == "success"} == {Phase.COMMITTED, Phase.CANCELLED}
    assert {phase for phase, result in finished.items() if result == "failure"} == {Phase.REFUSED, Phase.ROLLED_BACK}
    assert {phase for phase in Phase if report(phase).final} == FINAL


def test_a_report_names_phase_reason_and_figures() -> None:
    told = report(Phase.REFUSED, text=BAD.text, reason=BAD.reason, figures=BAD.figures)
    assert told.details == ("refused", "text: 41 ms instead of 20", "reason: slower", "latency_ms: 41.25")


def test_a_report_stays_within_what_servers_take() -> None:
    told = report(Phase.REFUSED, text="x" * 5000, figures={f"figure_{n}": "y" * 900 for n in range(200)})
    assert len(told.details) <= 40
    assert max(map(len, told.details)) <= 500


def test_too_late_to_cancel_is_a_rejection() -> None:
    told = not_cancelled(Phase.PROBATION)
    assert (told.execution, told.final) == ("rejected", True)
