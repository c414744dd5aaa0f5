"""From tracks per frame to a classifier's tensor: when windows are due, what is in them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from agent.action.history import TrackBuffer
from agent.action.windows import ActionWindows, resample
from agent.config.schema import ServiceConfig, WindowConfig
from agent.types import FloatArray, FrameStamp, ImageArray, People, Tracks, TrackState, Window

START = datetime(2026, 1, 1, tzinfo=UTC)
WIDTH, HEIGHT = 640, 480


def service(**window: object) -> ServiceConfig:
    defaults: dict[str, object] = {"length": 20, "stride": 10, "min_track_frames": 3}
    return ServiceConfig(model=Path("m"), window=WindowConfig.model_validate(defaults | window))


def frame(
    seq: int,
    ids: tuple[int, ...] = (1,),
    *,
    fps: float = 30.0,
    keypoints: FloatArray | None = None,
    scores: float | FloatArray = 0.9,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    t_ns: int | None = None,
) -> Tracks:
    t_ns = round(seq * 1e9 / fps) if t_ns is None else t_ns
    stamp = FrameStamp("cam", seq, t_ns, START + timedelta(microseconds=t_ns // 1000), *size)
    n = len(ids)
    if keypoints is None:
        keypoints = np.full((n, 17, 2), 100.0, np.float32) + np.array(ids, np.float32)[:, None, None]
    keypoint_scores = np.broadcast_to(np.float32(scores), (n, 17)).astype(np.float32)
    people = People(np.zeros((n, 4), np.float32), keypoints, keypoint_scores, np.ones(n, np.float32))
    return Tracks(stamp, people, np.array(ids, np.int64), np.full(n, TrackState.TRACKED, np.int64))


def run(windows: ActionWindows, frames: list[Tracks]) -> list[tuple[int, Window]]:
    return [(tracks.stamp.seq, window) for tracks in frames for window in windows.push(tracks)]


def one(windows: list[Window]) -> Window:
    assert len(windows) == 1
    return windows[0]


class TestDue:
    def test_first_when_full_then_every_stride(self) -> None:
        made = run(ActionWindows("cam", {"fight": service()}), [frame(i) for i in range(45)])
        assert [seq for seq, _ in made] == [19, 29, 39]
        assert made[1][1].t_start_ns == frame(10).stamp.t_mono_ns
        assert made[1][1].t_end_ns == frame(29).stamp.t_mono_ns
        assert made[1][1].t_end_utc == frame(29).stamp.t_utc
        assert not made[1][1].partial

    def test_a_rate_counts_time_not_frames(self) -> None:
        slow = [frame(i, fps=10) for i in range(30)]
        made = run(ActionWindows("cam", {"fight": service(rate_hz=30)}), slow)
        assert [seq for seq, _ in made] == [7, 11, 15, 19, 23, 27]

    @pytest.mark.parametrize(("fps", "filled"), [(30, 1.0), (2.4, 1.0), (2, 1.0), (1, 1.0), (0.5, 0.1)])
    def test_the_way_between_the_frames_of_a_slow_camera_is_no_hole(self, fps: float, filled: float) -> None:
        seconds = 100 / 30
        seen = [frame(i, fps=fps) for i in range(math.ceil(2 * seconds * fps) + 1)]
        _, window = run(ActionWindows("cam", {"fight": service(length=100, rate_hz=30, min_track_frames=3)}), seen)[-1]
        assert (window.tensor[0, 5:, 0, 2] > 0).mean() == pytest.approx(filled, abs=0.09)

    def test_a_person_whom_a_slow_camera_misses_once_is_absent_there(self) -> None:
        seen = [frame(i, () if i == 10 else (1,), fps=2) for i in range(12)]
        _, window = run(ActionWindows("cam", {"fight": service(length=100, rate_hz=30)}), seen)[-1]
        absent = window.tensor[0, :, 0, 2] <= 0
        assert 25 <= absent.sum() <= 35

    def test_services_have_their_own_plans_over_the_same_tracks(self) -> None:
        windows = ActionWindows("cam", {"fight": service(), "fall": service(length=8, stride=5, channels=2)})
        made = run(windows, [frame(i) for i in range(20)])
        assert [(seq, window.service) for seq, window in made] == [
            (7, "fall"), (12, "fall"), (17, "fall"), (19, "fight"),
        ]  # fmt: skip
        assert made[0][1].tensor.shape == (4, 8, 17, 2)
        assert made[3][1].tensor.shape == (4, 20, 17, 3)

    def test_stride_changes_live(self) -> None:
        windows = ActionWindows("cam", {"fight": service()})
        run(windows, [frame(i) for i in range(20)])
        windows.set_stride("fight", 4)
        assert [seq for seq, _ in run(windows, [frame(i) for i in range(20, 30)])] == [23, 27]

    def test_wrong_stride_or_service_is_refused(self) -> None:
        windows = ActionWindows("cam", {"fight": service()})
        with pytest.raises(ValueError, match="stride"):
            windows.set_stride("fight", 0)
        with pytest.raises(KeyError):
            windows.set_stride("swim", 5)

    def test_an_empty_scene_gives_no_window(self) -> None:
        assert run(ActionWindows("cam", {"fight": service()}), [frame(i, ()) for i in range(40)]) == []

    def test_without_services_nothing_happens(self) -> None:
        windows = ActionWindows("cam", {})
        assert run(windows, [frame(i) for i in range(5)]) == []
        assert windows.flush() == []


class TestFlush:
    def test_a_short_file_gets_one_partial_window(self) -> None:
        windows = ActionWindows("cam", {"fight": service()})
        run(windows, [frame(i) for i in range(12)])
        window = one(windows.flush())
        assert window.partial
        assert not window.tensor[:, :8].any()
        assert window.tensor[0, 8:].all()

    def test_the_rest_of_a_long_file_gets_one_when_half_a_stride_came(self) -> None:
        windows = ActionWindows("cam", {"fight": service()})
        run(windows, [frame(i) for i in range(24)])
        assert windows.flush() == []
        run(windows, [frame(i) for i in range(25)])
        window = one(windows.flush())
        assert not window.partial
        assert window.t_end_ns == frame(24).stamp.t_mono_ns

    def test_none_when_the_service_wants_none(self) -> None:
        windows = ActionWindows("cam", {"fight": service(partial_at_end=False)})
        run(windows, [frame(i) for i in range(12)])
        assert windows.flush() == []

    def test_none_for_an_empty_file_and_nothing_left_after_it(self) -> None:
        windows = ActionWindows("cam", {"fight": service()})
        assert windows.flush() == []
        run(windows, [frame(i) for i in range(12)])
        assert len(windows.flush()) == 1
        assert windows.flush() == []


class TestTensor:
    def test_coordinates_are_minus_one_to_one_over_the_picture(self) -> None:
        keypoints = np.zeros((1, 17, 2), np.float32)
        keypoints[0, 0], keypoints[0, 1], keypoints[0, 2] = (0, 0), (WIDTH, HEIGHT), (WIDTH / 2, HEIGHT / 2)
        made = run(ActionWindows("cam", {"fight": service()}), [frame(i, keypoints=keypoints) for i in range(20)])
        tensor = made[0][1].tensor
        assert tensor.dtype == np.float32
        np.testing.assert_allclose(tensor[0, :, :3, :2], np.broadcast_to([(-1, -1), (1, 1), (0, 0)], (20, 3, 2)))
        np.testing.assert_allclose(tensor[0, ..., 2], 0.9, rtol=1e-6)
        assert not tensor[1:].any()

    @pytest.mark.parametrize("score", [0.0, 0.01, np.nan, -1.0])
    def test_joints_not_seen_are_zero_after_normalising(self, score: float) -> None:
        scores = np.full(17, 0.9, np.float32)
        scores[5] = score
        made = run(ActionWindows("cam", {"fight": service()}), [frame(i, scores=scores) for i in range(20)])
        assert not made[0][1].tensor[0, :, 5].any()
        assert made[0][1].tensor[0, :, 4].all()

    def test_joints_that_are_not_finite_are_missing(self) -> None:
        keypoints = np.full((1, 17, 2), 50, np.float32)
        keypoints[0, 3] = (np.nan, 10)
        keypoints[0, 4] = (np.inf, 10)
        for rate_hz in (0, 30):
            windows = ActionWindows("cam", {"fight": service(rate_hz=rate_hz)})
            tensor = run(windows, [frame(i, keypoints=keypoints) for i in range(21)])[0][1].tensor
            assert np.isfinite(tensor).all()
            assert not tensor[0, :, 3:5].any()

    def test_frames_without_the_person_are_zero(self) -> None:
        frames = [frame(i, (1, 2) if i % 2 else (1,)) for i in range(20)]
        tensor = run(ActionWindows("cam", {"fight": service()}), frames)[0][1].tensor
        assert not tensor[1, ::2].any()
        assert tensor[1, 1::2].all()

    def test_a_rate_keeps_the_speed_of_motion(self) -> None:
        def moving(fps: float) -> FloatArray:
            windows = ActionWindows("cam", {"fight": service(rate_hz=30)})
            for i in range(40):
                keypoints = np.full((1, 17, 2), 10 + 60 * i / fps, np.float32)
                for window in windows.push(frame(i, keypoints=keypoints, fps=fps)):
                    return window.tensor[0, :, 0, 0]
            raise AssertionError("no window")

        for fps in (10.0, 15.0, 25.0, 29.97, 60.0):
            steps = np.diff(moving(fps)[-18:])
            np.testing.assert_allclose(steps, 60 / 30 / (WIDTH / 2), rtol=1e-3)


class TestFastCameras:
    """Some of their frames are left out, so that the buffer holds a window's whole length all the same."""

    @pytest.mark.parametrize("beside", [{}, {"steps": service()}], ids=["alone", "beside one without a rate"])
    @pytest.mark.parametrize("fps", [60.0, 120.0, 240.0, 1000.0])
    def test_a_window_covers_its_whole_length_from_the_first_on(
        self, fps: float, beside: dict[str, ServiceConfig]
    ) -> None:
        services = beside | {"fight": service(length=100, stride=15, rate_hz=30)}
        both = run(ActionWindows("cam", services), moving_at(fps, seconds=5))
        made = [(seq, window) for seq, window in both if window.service == "fight"]
        assert len(made) >= 3
        for _, window in made:
            assert window.tensor[0, 1:, 0, 2].all(), "no zeros in front"
            assert window.t_end_ns - window.t_start_ns >= 98 / 30 * 1e9
            np.testing.assert_allclose(np.diff(window.tensor[0, 1:, 0, 0]), 60 / 30 / (WIDTH / 2), rtol=1e-3)

    def test_the_memory_does_not_grow_with_the_rate(self) -> None:
        windows = ActionWindows("cam", {"fight": service(length=100, rate_hz=30)})
        run(windows, moving_at(1000.0, seconds=5))
        assert 200 < windows._pasts[0].buffer._joints.shape[1] < 250

    @pytest.mark.parametrize("fps", [10.0, 25.0, 59.94, 60.0])
    def test_up_to_sixty_frames_a_second_none_is_left_out_however_they_jitter(self, fps: float) -> None:
        rng = np.random.default_rng(5)
        times = np.sort(np.arange(round(20 * fps)) / fps + rng.normal(0, 0.05, round(20 * fps)))
        frames = [frame(i, t_ns=10**9 + round(t * 1e9)) for i, t in enumerate(times)]
        thinned = ActionWindows("cam", {"fight": service(length=100, stride=15, rate_hz=30)})
        whole = ActionWindows("cam", {"fight": service(length=100, stride=15, rate_hz=30)})
        whole._pasts[0]._thinning = None
        made, wanted = run(thinned, frames), run(whole, frames)
        assert [seq for seq, _ in made] == [seq for seq, _ in wanted]
        for (_, one), (_, other) in zip(made, wanted, strict=True):
            np.testing.assert_array_equal(one.tensor, other.tensor)

    def test_what_was_held_up_and_comes_at_once_is_taken(self) -> None:
        late = [frame(i, t_ns=10**9 + max(60, i) * 16_666_667 + i) for i in range(35, 90)]
        windows = ActionWindows("cam", {"fight": service(rate_hz=30)})
        run(windows, late)
        assert len(windows._pasts[0].buffer) == min(len(late), windows._pasts[0].buffer._capacity)

    def test_where_a_frame_is_a_step_none_is_left_out(self) -> None:
        made = run(ActionWindows("cam", {"fight": service()}), [frame(i, fps=1000) for i in range(45)])
        assert [seq for seq, _ in made] == [19, 29, 39]

    @pytest.mark.parametrize("fps", [60.0, 240.0])
    def test_services_with_and_without_a_rate_see_what_each_would_alone(self, fps: float) -> None:
        services = {"steps": service(length=20), "fight": service(length=100, stride=15, rate_hz=30)}
        frames = moving_at(fps, seconds=5)
        together = run(ActionWindows("cam", services), frames)
        assert {window.service for _, window in together} == services.keys()
        for name, config in services.items():
            mine = [(seq, window) for seq, window in together if window.service == name]
            alone = run(ActionWindows("cam", {name: config}), frames)
            assert [seq for seq, _ in mine] == [seq for seq, _ in alone]
            for (_, one), (_, other) in zip(mine, alone, strict=True):
                np.testing.assert_array_equal(one.tensor, other.tensor)
                assert (one.t_start_ns, one.t_end_ns) == (other.t_start_ns, other.t_end_ns)

    @pytest.mark.parametrize("frames", [19, 60])
    def test_windows_come_in_the_order_of_the_services_with_a_rate_or_without(self, frames: int) -> None:
        config = {"length": 20, "stride": 10, "partial_at_end": True}
        names = {"b": 0, "a": 30, "c": 0}
        windows = ActionWindows("cam", {name: service(rate_hz=rate, **config) for name, rate in names.items()})
        for i in range(frames):
            made = [window.service for window in windows.push(frame(i, fps=30))]
            assert made == sorted(made, key=list(names).index)
        assert [window.service for window in windows.flush()] == (list(names) if frames < 20 else [])

    def test_a_new_start_forgets_how_fast_it_was(self) -> None:
        windows = ActionWindows("cam", {"fight": service(rate_hz=30)})
        run(windows, [frame(i, t_ns=i * 1_000_000) for i in range(200)])
        windows.reset()
        run(windows, [frame(i, t_ns=-(10**9) + i * 16_666_667) for i in range(10)])
        assert len(windows._pasts[0].buffer) == 10


def moving_at(fps: float, *, seconds: float) -> list[Tracks]:
    """Somebody who moves by 60 px/s."""
    return [
        frame(i, keypoints=np.full((1, 17, 2), 10 + 60 * i / fps, np.float32), fps=fps)
        for i in range(round(seconds * fps))
    ]


class TestWho:
    def test_at_most_m_best_first(self) -> None:
        frames = [frame(i, (5, 6, 7)) for i in range(20)]
        window = run(ActionWindows("cam", {"fight": service(people=2)}), frames)[0][1]
        assert window.tensor.shape[0] == 2
        assert len(window.track_ids) == 2

    def test_short_tracks_are_left_out(self) -> None:
        frames = [frame(i, (1, 2) if i < 2 else (1,)) for i in range(20)]
        assert run(ActionWindows("cam", {"fight": service()}), frames)[0][1].track_ids == (1,)

    def test_with_a_rate_a_short_track_is_one_of_few_time_steps(self) -> None:
        config = service(rate_hz=30, min_track_frames=10)
        frames = [frame(i, (1, 2) if i < 5 else (1,), fps=10) for i in range(8)]
        made = run(ActionWindows("cam", {"fight": config}), frames)
        assert sorted(made[0][1].track_ids) == [1, 2]

    def test_noise_is_left_out(self) -> None:
        frames = [frame(i, scores=0.05) for i in range(20)]
        assert run(ActionWindows("cam", {"fight": service()}), frames) == []

    def test_two_hundred_people_are_bounded(self) -> None:
        windows = ActionWindows("cam", {"fight": service()}, max_tracks=64)
        made = run(windows, [frame(i, tuple(range(200))) for i in range(20)])
        assert len(made[0][1].track_ids) == 4
        assert windows.refused_tracks > 0

    @pytest.mark.parametrize(
        ("place", "joints", "forget_left_s", "judged"),
        [
            ((620.0, 240.0), 8, 0.4, False),
            ((320.0, 470.0), 8, 0.4, False),
            ((320.0, 240.0), 8, 0.4, True),  # lost, but nowhere near the border
            ((600.0, 240.0), 8, 0.4, True),
            ((620.0, 240.0), 9, 0.4, True),  # at the border, but in the picture
            ((620.0, 240.0), 8, 0.0, True),
            ((620.0, 240.0), 8, 1.0, True),  # not for so long
        ],
    )  # fmt: skip
    def test_who_walked_out_of_the_picture_is_not_judged(
        self, place: tuple[float, float], joints: int, forget_left_s: float, judged: bool
    ) -> None:
        seen = np.where(np.arange(17) >= 17 - joints, 0.9, 0.0)
        stays, leaves = np.full((17, 2), 200, np.float32), np.full((17, 2), 300, np.float32)
        leaves[16] = place  # an ankle is enough
        both = [
            frame(i, (1, 2), keypoints=np.stack((stays, leaves)), scores=np.stack((np.full(17, 0.9), seen)))
            for i in range(20)
        ]
        alone = [frame(i, (1,), keypoints=stays[None]) for i in range(20, 40)]
        windows = ActionWindows("cam", {"fall": service(length=30, rate_hz=30, forget_left_s=forget_left_s)})
        _, window = run(windows, both + alone)[-1]
        assert sorted(window.track_ids) == ([1, 2] if judged else [1])

    @pytest.mark.parametrize("scraps_id", [1, 2], ids=["of the same track", "by themselves"])
    def test_scraps_of_somebody_are_not_somebody(self, scraps_id: int) -> None:
        """Whoever walks out leaves a foot at the lower edge for a moment: with that the head seems to drop."""
        whole = [frame(i) for i in range(20)]
        foot = np.where(np.arange(17) < 5, 0.9, 0.0).astype(np.float32)
        scraps = [
            frame(i, (scraps_id,), keypoints=np.full((1, 17, 2), 470, np.float32), scores=foot) for i in range(20, 30)
        ]
        options = {"length": 30, "rate_hz": 30, "min_track_frames": 3}
        alone = ActionWindows("cam", {"fall": service(**options, min_joints=6)})
        _, expected = run(
            ActionWindows("cam", {"fall": service(**options)}), whole + [frame(i, ()) for i in range(20, 30)]
        )[-1]
        _, window = run(alone, whole + scraps)[-1]
        assert window.track_ids == expected.track_ids == (1,)
        np.testing.assert_array_equal(window.tensor, expected.tensor)
        _, window = run(ActionWindows("cam", {"fall": service(**options, min_joints=5)}), whole + scraps)[-1]
        assert not np.array_equal(window.tensor, expected.tensor)

    def test_of_scraps_alone_there_is_no_window(self) -> None:
        foot = np.where(np.arange(17) < 5, 0.9, 0.0).astype(np.float32)
        windows = ActionWindows("cam", {"fall": service(min_joints=6, forget_left_s=0.2, rate_hz=30)})
        assert run(windows, [frame(i, scores=foot) for i in range(40)]) == []

    def test_who_stands_at_the_edge_is_judged(self) -> None:
        edge, seen = np.full((1, 17, 2), 635, np.float32), np.repeat((0.0, 0.9), (12, 5))
        windows = ActionWindows("cam", {"fall": service(rate_hz=30, forget_left_s=0.4)})
        there = [frame(i, keypoints=edge, scores=seen) for i in range(25)]
        made = run(windows, there + [frame(i, ()) for i in range(25, 60)])
        assert [seq for seq, _ in made] == [19, 29]  # nobody is left to judge by


class TestBreaks:
    def test_another_frame_size_starts_anew(self) -> None:
        windows = ActionWindows("cam", {"fight": service()})
        run(windows, [frame(i) for i in range(15)])
        made = run(windows, [frame(i, size=(320, 240)) for i in range(15, 40)])
        assert [seq for seq, _ in made] == [34]

    def test_a_long_hole_starts_anew(self) -> None:
        windows = ActionWindows("cam", {"fight": service()})
        run(windows, [frame(i) for i in range(15)])
        late = [frame(i, t_ns=10_000_000_000 + i * 33_333_333) for i in range(15, 40)]
        assert [seq for seq, _ in run(windows, late)] == [34]

    def test_a_frame_that_does_not_advance_is_ignored(self) -> None:
        windows = ActionWindows("cam", {"fight": service()})
        frames = [frame(i) for i in range(20)]
        doubled = [tracks for tracks in frames for _ in range(2)]
        assert [seq for seq, _ in run(windows, doubled)] == [19]

    def test_a_step_back_starts_anew(self) -> None:
        windows = ActionWindows("cam", {"fight": service()})
        run(windows, [frame(i) for i in range(30)])
        assert [seq for seq, _ in run(windows, [frame(i) for i in range(20)])] == [19]


class TestBuffer:
    def test_slots_are_reused_and_arrays_never_replaced(self) -> None:
        buffer = TrackBuffer(5, max_tracks=16)
        joints = buffer._joints
        for i in range(500):
            buffer.push(frame(i, (i, i + 1)))
        assert buffer._joints is joints
        assert buffer.refused == 0
        assert len(buffer.last(5)) == 6
        assert len(buffer) == 5

    def test_history_is_ordered_by_track_id_and_time(self) -> None:
        buffer = TrackBuffer(4)
        for i in range(7):
            buffer.push(frame(i, (9, 2, 5)))
        history = buffer.history(0)
        assert history.track_ids.tolist() == [2, 5, 9]
        assert history.t_ns.tolist() == [frame(i).stamp.t_mono_ns for i in range(3, 7)]
        np.testing.assert_allclose(history.keypoints[:, 0, 0, 0], (102, 105, 109))

    def test_growing_keeps_what_is_there(self) -> None:
        buffer = TrackBuffer(4)
        buffer.push(frame(0, (1, 2)))
        buffer.push(frame(1, tuple(range(100))))
        history = buffer.last(4)
        assert len(history) == 100
        assert history.seen.sum(axis=1).tolist() == [1, 2, 2] + [1] * 97


class TestResample:
    TIMES = np.array([0, 100, 200, 900], np.int64) * 1_000_000

    def joints(self) -> FloatArray:
        joints = np.ones((4, 17, 3), np.float32)
        joints[..., 0] = np.array([0, 10, 20, 90])[:, None]
        return joints

    def test_linear_between_frames_and_zero_in_long_holes(self) -> None:
        grid = np.arange(0, 901, 50, dtype=np.int64) * 1_000_000
        out = resample(self.TIMES, self.joints(), np.ones(4, bool), grid)
        np.testing.assert_allclose(out[:5, 0, 0], (0, 5, 10, 15, 20))
        assert not out[5:-1].any()
        assert out[-1, 0, 0] == 90

    def test_a_joint_seen_on_one_side_keeps_its_place_and_fades(self) -> None:
        joints = self.joints()
        joints[1, 3] = 0
        grid = np.array([0, 25, 50, 75], np.int64) * 1_000_000
        out = resample(self.TIMES, joints, np.ones(4, bool), grid)
        np.testing.assert_allclose(out[:, 3, 0], 0, atol=1e-6)
        np.testing.assert_allclose(out[:, 3, 2], (1, 0.75, 0.5, 0.25))

    def test_a_person_never_seen_is_zero(self) -> None:
        assert not resample(self.TIMES, self.joints(), np.zeros(4, bool), self.TIMES).any()


class TestChange:
    """The fourth channel: how the picture changes."""

    def brighter(self, seq: int) -> ImageArray:
        return np.full((HEIGHT, WIDTH, 3), 4 * seq, np.uint8)

    def run(self, services: dict[str, ServiceConfig], fps: float = 10.0, count: int = 25) -> list[Window]:
        windows = ActionWindows("cam", services)
        made = []
        for seq in range(count):
            tracks = frame(seq, fps=fps)
            made += windows.push(tracks, self.brighter(seq), tracks.people)
        return made

    def test_each_step_says_how_much_its_frame_changed(self) -> None:
        tensor = self.run({"fight": service(channels=4)})[0].tensor
        assert tensor.shape == (4, 20, 17, 4)
        assert not tensor[0, 0, :, 3].any()  # the very first frame
        np.testing.assert_allclose(tensor[0, 1:, :, 3], 4 / 255)
        assert not tensor[1:].any()

    def test_steps_between_frames_say_what_the_nearest_does(self) -> None:
        tensor = self.run({"fight": service(channels=4, rate_hz=30, length=45)})[0].tensor
        np.testing.assert_allclose(tensor[0, 3:, :, 3], 4 / 255)

    def test_people_without_a_track_count_too(self) -> None:
        windows = ActionWindows("cam", {"fight": service(channels=4)})
        made = []
        for seq in range(20):
            everybody = frame(seq, (1, 2, 3), fps=10).people
            made += windows.push(frame(seq, fps=10), self.brighter(seq), everybody)
        assert [bool(row.any()) for row in one(made).tensor[..., 3]] == [True, True, True, False]
        assert not one(made).tensor[1:, ..., :3].any()

    def test_a_service_that_does_not_ask_is_not_told(self) -> None:
        both = self.run({"fight": service(channels=4), "fall": service()})
        assert {window.service: window.tensor.shape[-1] for window in both} == {"fight": 4, "fall": 3}
        alone = self.run({"fall": service()})
        np.testing.assert_array_equal([w.tensor for w in both if w.service == "fall"], [w.tensor for w in alone])

    def test_without_pictures_nothing_changes(self) -> None:
        tensor = run(ActionWindows("cam", {"fight": service(channels=4)}), [frame(i) for i in range(20)])[0][1].tensor
        assert tensor.shape[-1] == 4
        assert not tensor[..., 3].any()
        assert tensor[0, ..., 2].all()

    def test_a_hole_says_nothing(self) -> None:
        windows = ActionWindows("cam", {"fight": service(channels=4, rate_hz=30, length=60)})
        made = []
        for seq in [*range(10), *range(20, 30)]:
            tracks = frame(seq, fps=10)
            made += windows.push(tracks, self.brighter(seq), tracks.people)
        steps = made[-1].tensor[0, :, 0, 3] > 0
        assert steps[-20:].all()
        assert not steps[-46:-36].any()
        assert steps[-60:-55].all()

    def test_fewer_people_than_are_told_are_the_most_restless(self) -> None:
        tensor = self.run({"fight": service(channels=4, people=1)})[0].tensor
        assert tensor.shape == (1, 20, 17, 4)
        assert tensor[0, 5, :, 3].all()
