"""Events against incidents: who found what, and the figures made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.evaluate.matching import Alarm, Incident, event_figures, match, merge


def alarm(detected_s: float, ended_s: float | None = None, onset_s: float | None = None) -> Alarm:
    return Alarm("fight", detected_s, detected_s if onset_s is None else onset_s, ended_s, 0.9)


def incident(start_s: float, end_s: float) -> Incident:
    return Incident("fight", start_s, end_s)


def test_one_event_during_an_incident_is_a_hit() -> None:
    result = match([incident(10, 20)], [alarm(12.5)])
    assert result.hits == ((incident(10, 20), alarm(12.5)),)
    assert (result.missed, result.duplicates, result.false_alarms) == ((), (), ())


@pytest.mark.parametrize(
    ("detected_s", "hit"), [(8.9, False), (9.0, True), (10, True), (20, True), (25.0, True), (25.1, False)]
)
def test_reach_before_and_after(detected_s: float, hit: bool) -> None:
    result = match([incident(10, 20)], [alarm(detected_s)], before_s=1, after_s=5)
    assert (len(result.hits), len(result.false_alarms)) == ((1, 0) if hit else (0, 1))


def test_somebody_on_the_ground_may_be_reported_as_long_as_he_lies_there() -> None:
    fallen = Incident("fall", 10, 12, lasts_s=40)
    assert match([fallen], [alarm(39)]).hits == ((fallen, alarm(39)),)
    assert match([fallen], [alarm(41)]).false_alarms == (alarm(41),)
    (both,) = merge([fallen, Incident("fall", 13, 15)])
    assert both == Incident("fall", 10, 15, lasts_s=40)


def test_the_second_event_of_an_incident_is_a_duplicate_not_a_false_alarm() -> None:
    result = match([incident(10, 40)], [alarm(30), alarm(12, 20)])
    assert result.hits == ((incident(10, 40), alarm(12, 20)),)
    assert result.duplicates == (alarm(30),)
    assert result.false_alarms == ()


def test_an_event_means_what_goes_on_rather_than_what_is_over() -> None:
    result = match([incident(10, 20), incident(23, 30)], [alarm(24)])
    assert result.hits == ((incident(23, 30), alarm(24)),)
    assert result.missed == (incident(10, 20),)


def test_a_late_event_goes_to_the_incident_that_ended_last() -> None:
    result = match([incident(10, 12), incident(15, 16)], [alarm(16.5)])
    assert result.hits == ((incident(15, 16), alarm(16.5)),)


def test_an_incident_inside_an_open_event_is_missed_but_covered() -> None:
    first, second, third = incident(10, 15), incident(25, 30), incident(60, 65)
    result = match([first, second, third], [alarm(12, 40)])
    assert result.missed == (second, third)
    assert result.covered == (second,)


def test_incidents_that_touch_become_one() -> None:
    assert merge([incident(10, 14), incident(3, 5), incident(15, 18), incident(12, 13)], gap_s=2) == [
        incident(3, 5),
        incident(10, 18),
    ]


def test_figures_of_a_known_case() -> None:
    here = match([incident(10, 20), incident(50, 60), incident(90, 95)], [alarm(12), alarm(54), alarm(70), alarm(56)])
    there = match([incident(10, 20)], [alarm(11)])
    figures = event_figures([here, there], hours=0.5)
    assert (figures["incidents"], figures["found"], figures["missed"]) == (4, 3, 1)
    assert (figures["duplicates"], figures["false_alarms"]) == (1, 1)
    assert figures["precision"] == figures["recall"] == figures["f1"] == pytest.approx(3 / 4)
    assert figures["false_alarms_per_hour"] == pytest.approx(2)
    assert figures["delay_s"] == {"median": 2, "p95": pytest.approx(3.8), "worst": 4}


def test_a_quiet_time_line_is_flawless_until_somebody_cries_wolf() -> None:
    quiet = event_figures([match([], [])], hours=1)
    assert (quiet["precision"], quiet["recall"], quiet["f1"], quiet["false_alarms_per_hour"]) == (1, 1, 1, 0)
    assert quiet["delay_s"]["median"] is None
    loud = event_figures([match([], [alarm(5)])], hours=1)
    assert (loud["precision"], loud["recall"], loud["f1"], loud["false_alarms_per_hour"]) == (0, 1, 0, 1)


def test_silence_during_an_incident_is_neither_precise_nor_complete() -> None:
    figures = event_figures([match([incident(1, 2)], [])], hours=1)
    assert (figures["precision"], figures["recall"], figures["f1"]) == (0, 0, 0)


def test_figures_need_time() -> None:
    with pytest.raises(ValueError, match="more than 0 hours"):
        event_figures([], hours=0)


times = st.floats(0, 200, allow_nan=False)


@given(
    spans=st.lists(st.tuples(times, st.floats(0.1, 20)), max_size=8),
    detections=st.lists(st.tuples(times, st.floats(0, 30)), max_size=12),
)
def test_everything_is_counted_once(spans: list[tuple[float, float]], detections: list[tuple[float, float]]) -> None:
    incidents = merge(incident(start, start + length) for start, length in spans)
    alarms = [alarm(t, t + length) for t, length in detections]
    result = match(incidents, alarms)
    assert len(result.hits) + len(result.missed) == len(incidents)
    told = [one for _, one in result.hits] + [*result.duplicates, *result.false_alarms]
    assert sorted(told, key=repr) == sorted(alarms, key=repr)
    assert set(result.covered) <= set(result.missed)
    figures = event_figures([result], hours=1)
    assert 0 <= figures["precision"] <= 1
    assert 0 <= figures["recall"] <= 1
