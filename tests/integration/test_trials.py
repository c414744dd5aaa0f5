"""Candidates on a running agent: simulated camera, shipped models, and releases that must not get in or must not stay."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes.candidates import candidate_of, contrary, derive, elsewhere, slower
from fakes.trial_desk import REPO, Desk, desk_config, open_desk
from fakes.trials import FakeTrials
from onnx import helper, numpy_helper

from agent.daemon.trials import AgentTrials
from agent.errors import ConfigError, ModelError
from agent.health.reasons import Reason
from agent.runtime.bundle import load_bundle
from agent.update.trials import Candidate, Figures, Refusal, Trials

SIM = "sim://?scenario=mixed&seed=3&people=4&fps=8"
FALL = "action/fall"


def figures_of(outcome: Figures | Refusal) -> Figures:
    assert not isinstance(outcome, Refusal), outcome
    return outcome


def refusal_of(outcome: Figures | Refusal) -> Refusal:
    assert isinstance(outcome, Refusal), outcome
    return outcome


def untouched(desk: Desk, before: dict[str, Any]) -> None:
    """The running agent does not know that anything was tried on it."""
    assert desk.recognition.slots == before
    assert all(desk.recognition.worker(slot).tap is None for slot in before)
    assert desk.log.failures == []


# --- the port -----------------------------------------------------------------------------------------------------------


def test_agent_and_fake_have_the_same_port() -> None:
    for name in ("not_now", "running", "validate", "shadow", "install", "let_go", "watch"):
        wanted = inspect.signature(getattr(Trials, name))
        for kind in (AgentTrials, FakeTrials):
            found = inspect.signature(getattr(kind, name))
            assert list(found.parameters) == list(wanted.parameters), f"{kind.__name__}.{name}"
            assert inspect.iscoroutinefunction(getattr(kind, name)) == inspect.iscoroutinefunction(
                getattr(Trials, name)
            )


@pytest.mark.parametrize("kind", ["agent", "fake"])
async def test_contract_of_the_port(tmp_path: Path, kind: str) -> None:
    """What the update client relies on, of the fake as of the agent."""
    new = derive("fall-stgcn", tmp_path / "new", version="9.0.0")
    candidate = candidate_of(new, FALL, latency_ratio=10)
    async with open_desk(desk_config(tmp_path, SIM, shadow_s=0.1, probation_s=0.5)) as desk:
        await desk.more_frames(8)
        old = desk.trials.running(FALL)
        assert old is not None
        trials: Trials = desk.trials if kind == "agent" else FakeTrials({FALL: old})
        assert trials.not_now() == ""
        assert trials.running("action/none") is None
        assert "latency_ms" in figures_of(await trials.validate(candidate, desk.tell))
        figures_of(await trials.shadow(candidate, desk.tell))
        assert trials.running(FALL) == old
        assert float((await trials.install(FALL, new))["gap_ms"]) > 0
        assert trials.running(FALL) == new
        figures_of(await trials.watch(candidate, desk.tell))
        assert trials.running(FALL) == new
        with pytest.raises((ModelError, ConfigError)):
            await trials.install(FALL, tmp_path / "absent")
        assert trials.running(FALL) == new, "what serves goes on"
        watching = asyncio.ensure_future(trials.watch(candidate, desk.tell))
        await asyncio.sleep(0)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert trials.running(FALL) == new
        await trials.install(FALL, None)
        assert trials.running(FALL) == old


# --- not now ------------------------------------------------------------------------------------------------------------


async def test_when_nothing_may_be_exchanged(tmp_path: Path) -> None:
    async with open_desk(desk_config(tmp_path, SIM)) as desk:
        assert desk.trials.not_now() == ""
        desk.incidents.append({"kind": "drift", "camera": "", "phase": "detected", "incident_id": "1"})
        assert desk.trials.not_now() == "", "a model that drifts is a reason for an update, not against it"
        desk.incidents.append({"kind": "fall", "camera": "cam0", "phase": "active", "incident_id": "2"})
        assert desk.trials.not_now() == "an event is active: fall at cam0"
        assert desk.trials.not_now(back=True) == desk.trials.not_now()
        desk.incidents.clear()
        for reason in (Reason.MQTT_OFFLINE, Reason.CPU_HIGH, Reason.DEGRADED_STEP):
            desk.health.raise_reason(reason)
            assert desk.trials.not_now() == ""
        for reason in (Reason.MEMORY_HIGH, Reason.STORAGE):
            desk.health.raise_reason(reason)
            assert "not well" in desk.trials.not_now()
            assert str(reason) in desk.trials.not_now()
            assert desk.trials.not_now(back=True) == "", "the version before may be what helps"
            desk.health.clear_reason(reason)


# --- validate -----------------------------------------------------------------------------------------------------------


async def test_bad_candidates_are_refused_and_the_agent_never_notices(tmp_path: Path) -> None:
    cases = {
        "slower": candidate_of(derive("fall-stgcn", tmp_path / "slow", slower(4)), FALL),
        "golden": candidate_of(derive("fall-stgcn", tmp_path / "wrong", contrary, golden=False), FALL),
        "contract": candidate_of(derive("fall-stgcn", tmp_path / "labels", labels=["other", "slip"]), FALL),
        "memory": candidate_of(derive("fall-stgcn", tmp_path / "large"), FALL, memory_mb=0.001),
    }
    async with open_desk(desk_config(tmp_path, SIM)) as desk:
        await desk.more_frames(8)
        before = desk.recognition.slots
        for reason, candidate in cases.items():
            had = desk.log.frames
            refusal = refusal_of(await desk.trials.validate(candidate, desk.tell))
            assert refusal.reason == reason, refusal
            assert str(tmp_path) not in refusal.text
            assert desk.log.frames > had, "cameras go on meanwhile"
        nowhere = candidate_of(tmp_path / "large", "action/none")
        assert refusal_of(await desk.trials.validate(nowhere, desk.tell)).reason == "contract"
        with pytest.raises(ModelError, match="action/none"):
            await desk.trials.install("action/none", tmp_path / "large")
        untouched(desk, before)


async def test_a_device_without_the_memory_refuses_instead_of_trying(tmp_path: Path) -> None:
    candidate = candidate_of(derive("fall-stgcn", tmp_path / "new"), FALL)
    huge = replace(candidate, release=candidate.release.model_copy(update={"unpacked_bytes": 1 << 42}))
    async with open_desk(desk_config(tmp_path, SIM)) as desk:
        refusal = refusal_of(await desk.trials.validate(huge, desk.tell))
        assert refusal.reason == "memory"
        assert "free memory" in refusal.text


# --- shadow -------------------------------------------------------------------------------------------------------------


async def shadow(
    tmp_path: Path,
    candidate: Candidate,
    *,
    source: str = SIM,
    frames: tuple[int, int] = (8, 3),
    shadow_s: float = 2.0,
    **update: float,
) -> tuple[Figures | Refusal, list[tuple[str, float]]]:
    """frames: waited for before and after."""
    async with open_desk(desk_config(tmp_path, source, shadow_s=shadow_s, **update)) as desk:
        await desk.more_frames(frames[0])
        before = desk.recognition.slots
        outcome = await desk.trials.shadow(candidate, desk.tell)
        await desk.more_frames(frames[1])
        untouched(desk, before)
        return outcome, desk.told


async def test_equal_estimator_agrees(tmp_path: Path) -> None:
    candidate = candidate_of(derive("pose-nano-int8", tmp_path / "new", version="9.0.0"), "pose", agreement=0.9)
    outcome, told = await shadow(tmp_path, candidate)
    figures = figures_of(outcome)
    assert float(figures["agreement"]) > 0.95, figures
    assert float(figures["keypoint_distance_px"]) < 3
    assert int(figures["samples"]) > 3
    assert told[0] == ("loading", 0.0)
    assert [done for step, done in told if step == "shadow"][-1] == 1.0


async def test_estimator_that_sees_people_elsewhere_is_worse(tmp_path: Path) -> None:
    candidate = candidate_of(derive("pose-nano-int8", tmp_path / "new", elsewhere(150), version="9.0.0"), "pose")
    outcome, _ = await shadow(tmp_path, candidate)
    refusal = refusal_of(outcome)
    assert refusal.reason == "worse"
    assert float(refusal.figures["agreement"]) < 0.5
    assert "the two agree on" in refusal.text


async def test_classifier_that_says_the_opposite_is_worse(tmp_path: Path) -> None:
    candidate = candidate_of(derive("fall-stgcn", tmp_path / "new", contrary, version="9.0.0"), FALL)
    outcome, _ = await shadow(tmp_path, candidate, shadow_s=4)
    refusal = refusal_of(outcome)
    assert refusal.reason == "worse"
    assert float(refusal.figures["agreement"]) < 0.5
    assert float(refusal.figures["probability_difference"]) > 0.5


async def test_equal_classifier_agrees(tmp_path: Path) -> None:
    candidate = candidate_of(derive("fall-stgcn", tmp_path / "new", version="9.0.0"), FALL, agreement=0.95)
    outcome, _ = await shadow(tmp_path, candidate, shadow_s=4)
    figures = figures_of(outcome)
    assert figures["agreement"] == 1.0
    assert float(figures["probability_difference"]) < 1e-3


def spoil(model: onnx.ModelProto) -> None:
    """A key point is missing where the picture is bright (mean above 130): by day here, not in golden and warm-up pictures."""
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["keypoints_before" if name == "keypoints" else name for name in node.output]
    constants = {"limit": np.array(130, np.float32), "one": [1], "all": [17], "from": [0], "axis": [2]}
    for name, value in constants.items():
        array = value if isinstance(value, np.ndarray) else np.array(value, np.int64)
        graph.initializer.append(numpy_helper.from_array(array, f"spoil_{name}"))
    for kind, inputs, output, attributes in (
        ("ReduceMean", [graph.input[0].name], "spoil_mean", {"keepdims": 0}),
        ("Greater", ["spoil_mean", "spoil_limit"], "spoil_bright", {}),
        ("Cast", ["spoil_bright"], "spoil_count", {"to": onnx.TensorProto.INT64}),
        ("Reshape", ["spoil_count", "spoil_one"], "spoil_less", {}),
        ("Sub", ["spoil_all", "spoil_less"], "spoil_to", {}),
        ("Slice", ["keypoints_before", "spoil_from", "spoil_to", "spoil_axis"], "keypoints", {}),
    ):
        graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
    graph.output[1].type.tensor_type.shape.dim[2].Clear()


async def test_candidate_that_fails_on_live_frames_is_refused(tmp_path: Path) -> None:
    """Its golden answers are right: only what the camera shows brings it down."""
    candidate = candidate_of(derive("pose-nano-int8", tmp_path / "new", spoil, version="9.0.0"), "pose")
    outcome, _ = await shadow(tmp_path, candidate, source=f"{SIM}&night=no")
    refusal = refusal_of(outcome)
    assert refusal.reason == "crash"
    assert "expected outputs" in refusal.text


async def test_nobody_in_view_is_waited_for_and_then_said(tmp_path: Path) -> None:
    candidate = candidate_of(derive("fall-stgcn", tmp_path / "new", contrary, version="9.0.0"), FALL)
    slow = "sim://?scenario=mixed&seed=3&people=4&fps=1"
    outcome, told = await shadow(tmp_path, candidate, source=slow, frames=(2, 1), shadow_s=0.4, shadow_max_s=1.2)
    refusal = refusal_of(outcome)
    assert int(refusal.figures["samples"]) < 6, "with so few nothing is called worse"
    assert refusal.reason == "unproven"
    assert "nothing to compare" in refusal.text or "were wanted" in refusal.text
    assert float(refusal.figures["shadow_s"]) == pytest.approx(1.2, abs=0.1)
    assert "shadow: waiting for people" in {step for step, _ in told}


async def test_no_shadow_run_where_none_is_wanted(tmp_path: Path) -> None:
    candidate = candidate_of(derive("fall-stgcn", tmp_path / "new"), FALL)
    outcome, told = await shadow(tmp_path, candidate, shadow_s=0)
    assert (outcome, told) == ({"shadow_s": 0}, [])


async def test_one_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    candidate = candidate_of(derive("fall-stgcn", tmp_path / "new"), FALL)
    (candidate.path / "model.onnx").write_bytes(b"no graph")
    outcome, _ = await shadow(tmp_path, candidate)
    assert refusal_of(outcome).reason == "contract"


async def test_a_shadow_run_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    candidate = candidate_of(derive("pose-nano-int8", tmp_path / "new", version="9.0.0"), "pose")
    async with open_desk(desk_config(tmp_path, SIM, shadow_s=60)) as desk:
        await desk.more_frames(4)
        before = desk.recognition.slots
        run = asyncio.ensure_future(desk.trials.shadow(candidate, desk.tell))
        await desk.until(lambda: desk.recognition.worker("pose").tap is not None, "the run begins")
        with pytest.raises(ModelError, match="under way"):
            await desk.trials.shadow(candidate, desk.tell)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        untouched(desk, before)


# --- install and watch --------------------------------------------------------------------------------------------------


async def test_probation_of_an_equal_model_passes_and_lets_the_old_one_go(tmp_path: Path) -> None:
    candidate = candidate_of(derive("pose-nano-int8", tmp_path / "new", version="9.0.0"), "pose", latency_ratio=5)
    async with open_desk(desk_config(tmp_path, SIM, probation_s=2)) as desk:
        await desk.more_frames(16)
        before: Any = desk.recognition.slots["pose"]
        await desk.trials.install("pose", candidate.path)
        figures = figures_of(await desk.trials.watch(candidate, desk.tell))
        assert figures["inferences"] > 3  # type: ignore[operator]
        assert "fps_before" in figures
        assert float(figures["probation_s"]) >= 2
        await desk.until(lambda: closed(before), "the old model is freed")
        assert desk.told[-1] == ("probation", 1.0)
        assert desk.trials.paths == {"pose": candidate.path}


def closed(model: Any) -> bool:
    try:
        model.estimate([np.zeros((48, 64, 3), np.uint8)])
    except ModelError:
        return True
    return False


async def test_health_that_fails_ends_the_probation_and_the_old_model_is_back_at_once(tmp_path: Path) -> None:
    candidate = candidate_of(derive("pose-nano-int8", tmp_path / "new", version="9.0.0"), "pose", latency_ratio=5)
    async with open_desk(desk_config(tmp_path, SIM, probation_s=60)) as desk:
        await desk.more_frames(8)
        before, path = desk.recognition.slots["pose"], desk.trials.running("pose")
        await desk.trials.install("pose", candidate.path)
        watch = asyncio.ensure_future(desk.trials.watch(candidate, desk.tell))
        await asyncio.sleep(0.1)
        desk.health.raise_reason("pose_model:cam0", "ten in a row")
        refusal = refusal_of(await asyncio.wait_for(watch, 10))
        assert refusal.reason == "unhealthy"
        assert "pose_model:cam0" in refusal.text
        back = await desk.trials.install("pose", path)
        assert desk.recognition.slots["pose"] is before
        assert float(back["load_s"]) < 0.2


@pytest.mark.timeout(300)
async def test_a_model_that_is_slower_on_live_frames_does_not_stay(tmp_path: Path) -> None:
    candidate = candidate_of(derive("fall-stgcn", tmp_path / "new", slower(3), version="9.0.0"), FALL)
    source = "sim://?scenario=mixed&seed=3&people=4&fps=10"
    async with open_desk(desk_config(tmp_path, source, stride=15, probation_s=90)) as desk:
        await desk.more_frames(8)  # starting is over: it would count as slowness of the model before
        window = np.random.default_rng(0).uniform(-1, 1, (4, 100, 17, 3)).astype(np.float32)
        for _ in range(60):  # as many cameras would: the past of a classifier in a moment
            await desk.recognition.worker(FALL).submit(window)
        await desk.trials.install(FALL, candidate.path)
        watch = asyncio.ensure_future(desk.trials.watch(candidate, desk.tell))
        for _ in range(60):
            await desk.recognition.worker(FALL).submit(window)
        refusal = refusal_of(await asyncio.wait_for(watch, 200))
        assert refusal.reason == "slower"
        assert float(refusal.figures["latency_ratio"]) > 1.5


@pytest.mark.parametrize("back", [False, True])
async def test_the_version_before_is_not_held_against_the_one_that_it_takes_away(tmp_path: Path, back: bool) -> None:
    old = candidate_of(derive("fall-stgcn", tmp_path / "old", version="9.0.0"), FALL, latency_ratio=0.01)
    async with open_desk(desk_config(tmp_path, SIM, probation_s=0.5)) as desk:
        await desk.more_frames(8)
        window = np.random.default_rng(0).uniform(-1, 1, (4, 100, 17, 3)).astype(np.float32)
        for _ in range(60):
            await desk.recognition.worker(FALL).submit(window)
        desk.health.raise_reason(Reason.MEMORY_HIGH)  # by the one that goes
        await desk.trials.install(FALL, old.path)
        for _ in range(60):
            await desk.recognition.worker(FALL).submit(window)
        outcome = await asyncio.wait_for(desk.trials.watch(replace(old, back=back), desk.tell), 60)
        if back:
            assert "latency_ratio" not in figures_of(outcome)
        else:
            assert refusal_of(outcome).reason == "slower"


async def test_after_a_restart_a_probation_goes_on_without_a_past(tmp_path: Path) -> None:
    candidate = candidate_of(derive("pose-nano-int8", tmp_path / "new", version="9.0.0"), "pose")
    config = desk_config(tmp_path, SIM, probation_s=1)
    async with open_desk(config, paths={"pose": candidate.path}) as desk:
        assert desk.trials.running("pose") == candidate.path
        figures = figures_of(await desk.trials.watch(candidate, desk.tell))
        assert figures["probation_s"] >= 1  # type: ignore[operator]
        await desk.trials.install("pose", None)
        assert desk.recognition.models["pose"] == load_bundle(REPO / "models" / "pose-nano-int8").title


@pytest.mark.parametrize("sources", [(), ("sim://?scenario=mixed&seed=3&people=4&fps=1",)], ids=["none", "few"])
async def test_a_probation_in_which_hardly_any_frame_came_is_not_passed(
    tmp_path: Path, sources: tuple[str, ...]
) -> None:
    candidate = candidate_of(derive("pose-nano-int8", tmp_path / "new", version="9.0.0"), "pose")
    config = desk_config(tmp_path, *sources, probation_s=0.5, probation_max_s=4)
    async with open_desk(config) as desk:
        refusal = refusal_of(await desk.trials.watch(candidate, desk.tell))
        assert refusal.reason == "unproven"
        assert "in 0:00:04 never 50 inferences" in refusal.text
        assert float(refusal.figures["probation_s"]) == pytest.approx(4, abs=0.6)


async def test_a_probation_goes_on_until_something_was_seen_in_it(tmp_path: Path) -> None:
    candidate = candidate_of(derive("pose-nano-int8", tmp_path / "new", version="9.0.0"), "pose", latency_ratio=5)
    async with open_desk(desk_config(tmp_path, SIM, probation_s=1)) as desk:
        await desk.trials.install("pose", candidate.path)
        figures = figures_of(await desk.trials.watch(candidate, desk.tell))
        assert int(figures["inferences"]) >= 50
        assert "note" not in figures
        assert float(figures["probation_s"]) > 3
        assert "probation: waiting for frames" in {step for step, _ in desk.told}


async def test_a_classifier_stays_where_hardly_anybody_comes_and_that_is_said(tmp_path: Path) -> None:
    candidate = candidate_of(derive("fall-stgcn", tmp_path / "new", version="9.0.0"), FALL)
    async with open_desk(desk_config(tmp_path, SIM, probation_s=1)) as desk:  # too short for many windows
        await desk.more_frames(2)
        await desk.trials.install(FALL, candidate.path)
        figures = figures_of(await desk.trials.watch(candidate, desk.tell))
        assert figures["note"] == f"hardly anybody came: {figures['inferences']} inferences"
        assert float(figures["probation_s"]) == pytest.approx(3, abs=0.5)
        assert desk.trials.running(FALL) == candidate.path


async def test_frames_of_a_camera_that_a_classifier_does_not_watch_are_none_for_it(tmp_path: Path) -> None:
    candidate = candidate_of(derive("fall-stgcn", tmp_path / "new", version="9.0.0"), FALL)
    config = desk_config(tmp_path, SIM, probation_s=0.5, probation_max_s=2)
    (other,) = config.cameras
    async with open_desk(config.model_copy(update={"cameras": (other.model_copy(update={"services": ()}),)})) as desk:
        await desk.more_frames(2)
        await desk.trials.install(FALL, candidate.path)
        assert refusal_of(await desk.trials.watch(candidate, desk.tell)).reason == "unproven"


async def test_a_left_aside_model_is_a_health_reason_until_another_is_installed(tmp_path: Path) -> None:
    broken = derive("fall-stgcn", tmp_path / "broken", cut=True)
    good = derive("fall-stgcn", tmp_path / "good", version="9.0.0")
    async with open_desk(desk_config(tmp_path, SIM), paths={FALL: broken}) as desk:
        (reason,) = desk.health.snapshot().reasons
        assert reason.reason == "model_fallback:action/fall/update"
        assert str(tmp_path) not in reason.detail
        assert desk.trials.paths == {}
        await desk.trials.install(FALL, good)
        assert not desk.health.snapshot().reasons


async def test_what_was_gone_back_from_does_not_stay_in_the_memory(tmp_path: Path) -> None:
    new = derive("pose-nano-int8", tmp_path / "new", version="9.0.0")
    async with open_desk(desk_config(tmp_path, SIM), paths={"pose": new}) as desk:
        await desk.more_frames(4)
        gone = desk.recognition.slots["pose"]
        await desk.trials.install("pose", None)
        assert desk.recognition.models["pose"] == load_bundle(REPO / "models" / "pose-nano-int8").title
        assert not closed(gone)
        desk.trials.let_go("pose")
        await desk.until(lambda: closed(gone), "it is freed")


async def test_what_serves_already_is_not_loaded_once_more(tmp_path: Path) -> None:
    async with open_desk(desk_config(tmp_path, SIM)) as desk:
        before, path = desk.recognition.slots[FALL], desk.trials.running(FALL)
        with pytest.raises(ModelError):
            await desk.trials.install(FALL, tmp_path / "absent")
        for way_back in (path, None):
            await desk.trials.install(FALL, way_back)
            assert desk.recognition.slots[FALL] is before


async def test_an_event_that_begins_during_the_loading_is_waited_for(tmp_path: Path) -> None:
    new = derive("fall-stgcn", tmp_path / "new", version="9.0.0")
    said: list[str] = []
    async with open_desk(desk_config(tmp_path, SIM)) as desk:
        await desk.more_frames(4)

        async def ready() -> None:
            while why := desk.trials.not_now():
                said.append(why)
                await asyncio.sleep(0.01)

        installing = asyncio.ensure_future(desk.trials.install(FALL, new, ready))
        await asyncio.sleep(0)
        desk.incidents.append({"kind": "fall", "camera": "cam0", "phase": "active", "incident_id": "2"})
        await desk.until(lambda: len(said) > 10, "it waits")
        assert desk.recognition.models[FALL] == "fall-stgcn 0.5.0"
        desk.incidents.clear()
        await installing
        assert desk.recognition.models[FALL] == "fall-stgcn 9.0.0"
        assert set(said) == {"an event is active: fall at cam0"}


async def test_a_candidate_whose_moment_does_not_come_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = derive("fall-stgcn", tmp_path / "new", version="9.0.0")
    loaded: list[Any] = []
    async with open_desk(desk_config(tmp_path, SIM)) as desk:
        load = desk.recognition.load

        async def kept(*given: Any, **more: Any) -> Any:
            loaded.append(await load(*given, **more))
            return loaded[-1]

        monkeypatch.setattr(desk.recognition, "load", kept)
        before = desk.recognition.slots
        waits = asyncio.Event()

        async def ready() -> None:
            waits.set()
            await asyncio.Event().wait()

        installing = asyncio.ensure_future(desk.trials.install(FALL, new, ready))
        await waits.wait()
        installing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await installing
        await desk.trials.close()
        untouched(desk, before)
        with pytest.raises(ModelError, match="closed"):
            loaded[0].classify(np.zeros((1, *loaded[0].input_shape), np.float32))


async def test_several_changes_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    one = derive("fall-stgcn", tmp_path / "one", version="8.0.0")
    two = derive("fall-stgcn", tmp_path / "two", version="9.0.0")
    async with open_desk(desk_config(tmp_path, SIM)) as desk:
        await desk.more_frames(4)
        changes = [asyncio.ensure_future(desk.trials.install(FALL, path)) for path in (one, two, None)]
        await asyncio.sleep(0)
        assert "put in place" in desk.trials.not_now()
        await asyncio.gather(*changes)
        assert desk.recognition.models[FALL] == "fall-stgcn 0.5.0"
        assert desk.trials.not_now() == ""
