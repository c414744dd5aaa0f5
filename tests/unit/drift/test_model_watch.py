"""The watch in the daemon: golden answers, the file, health reasons and metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_drift_watch import NOON, QUICK, people, verdict

from agent.catalogue.store import ModelStore
from agent.config.schema import DriftConfig
from agent.daemon import drift as module
from agent.daemon.drift import ModelWatch
from agent.errors import DeviceMemoryError, ModelError, RecognizerError
from agent.events.ids import Uuid7
from agent.health.reasons import HealthState
from agent.observe.metrics import Metrics
from agent.runtime.bundle import Bundle, load_bundle, seal_bundle, write_golden
from agent.runtime.engines import EngineProgress, EngineState
from agent.runtime.selfcheck import card_baseline, golden_agreement
from agent.types import Event


class CheckedModel:
    """A model whose golden answers a test scripts."""

    name = "checked 1.0"
    device = "cpu"
    upgrade: EngineProgress | None = None
    card: dict[str, float] = {}  # noqa: RUF012  # read only

    def __init__(self, *answers: float | RecognizerError | None) -> None:
        self.answers = list(answers)

    def self_check(self) -> float | None:
        answer = self.answers.pop(0)
        if isinstance(answer, RecognizerError):
            raise answer
        return answer


class Desk:
    """A ModelWatch with real health and metrics; events are kept."""

    def __init__(self, folder: Path, config: DriftConfig = QUICK) -> None:
        self.health, self.metrics, self.events = HealthState(), Metrics("1"), list[Event]()
        self.file = folder / "drift.json"
        self.watch = ModelWatch(
            config, self.file, new_id=Uuid7(), metrics=self.metrics, health=self.health, tell=self._tell
        )

    async def _tell(self, event: Event) -> None:
        self.events.append(event)

    def reasons(self) -> dict[str, str]:
        return {reason.reason: reason.detail for reason in self.health.snapshot().reasons}

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"recognizer_{name}", labels)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the monotonic clock, to be set."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


async def run(desk: Desk, clock: list[float], confidence: float, rounds: int, model: object) -> None:
    for _ in range(rounds):
        for _ in range(4):
            desk.watch.observe_people("yard", people(confidence))
        clock[0] += 1.0
        await desk.watch.round({"pose": model})


async def test_drift_is_an_event_a_reason_and_a_gauge_until_it_is_over(tmp_path: Path, clock: list[float]) -> None:
    desk, model = Desk(tmp_path), CheckedModel(*[1.0] * 9)
    await desk.watch.open()
    await run(desk, clock, 0.8, 60, model)
    assert desk.metric("model_drift", model_name="checked 1.0", signal="person_confidence") == pytest.approx(
        0, abs=0.01
    )
    await run(desk, clock, 0.6, 60, model)
    ((reason, detail),) = desk.reasons().items()
    assert reason == "model_drift:pose/person_confidence/yard"
    assert "-25%" in detail
    drift = desk.metric("model_drift", model_name="checked 1.0", signal="person_confidence")
    assert drift == pytest.approx(2.5, abs=0.1)
    assert {row["state"] for row in desk.watch.report() if row["signal"] == "person_confidence"} == {"drift"}
    await run(desk, clock, 0.8, 60, model)
    assert desk.reasons() == {}
    assert [event.phase for event in desk.events] == ["detected", "resolved"]


async def test_what_is_seen_of_smaller_pictures_is_no_drift(tmp_path: Path, clock: list[float]) -> None:
    desk, model = Desk(tmp_path), CheckedModel(*[1.0] * 99)

    async def rounds(confidence: float, seconds: float, number: int) -> None:
        for _ in range(number):
            for _ in range(4):
                desk.watch.observe_latency("pose", 1, seconds)
            await run(desk, clock, confidence, 1, model)

    await desk.watch.open()
    await rounds(0.8, 0.02, 60)
    desk.watch.smaller_pictures = True
    await rounds(0.5, 0.08, 60)
    desk.watch.smaller_pictures = False
    await rounds(0.8, 0.02, 20)
    assert desk.events == []
    await rounds(0.5, 0.08, 60)
    assert {"model_drift:pose/latency", "model_drift:pose/person_confidence/yard"} <= desk.reasons().keys()


async def test_how_many_of_sparse_windows_begin_something_is_not_counted(tmp_path: Path, clock: list[float]) -> None:
    desk, models = Desk(tmp_path), {"pose": CheckedModel(None), "action/fight": CheckedModel(None)}
    await desk.watch.open()
    await desk.watch.round(models)
    desk.watch.sparse_windows = True
    desk.watch.observe_scores(verdict(0.9))
    assert {row["signal"] for row in desk.watch.report()} == {"window_confidence"}
    desk.watch.sparse_windows = False
    desk.watch.observe_scores(verdict(0.9))
    assert {row["signal"] for row in desk.watch.report()} == {"window_confidence", "class_rate"}


async def test_restart_takes_up_baseline_alarm_and_reason(tmp_path: Path, clock: list[float]) -> None:
    first, model = Desk(tmp_path), CheckedModel(*[None] * 9)
    await run(first, clock, 0.8, 60, model)
    await run(first, clock, 0.6, 60, model)
    await first.watch.save()
    second = Desk(tmp_path)
    await second.watch.open()
    assert second.watch.incidents == {first.events[0].incident_id}
    await second.watch.round({"pose": model})
    assert list(second.reasons()) == ["model_drift:pose/person_confidence/yard"]
    await run(second, clock, 0.8, 60, model)
    assert second.events[0].incident_id == first.events[0].incident_id


async def test_what_is_seen_while_the_first_golden_answers_are_asked_belongs_to_its_hour(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(tmp_path)

    class Asked(CheckedModel):
        def self_check(self) -> float | None:
            for _ in range(QUICK.min_samples):
                desk.watch.observe_people("yard", people(0.8))
            return None

    monkeypatch.setattr(module, "datetime", SimpleNamespace(now=lambda _: NOON))
    for _ in range(2):
        await desk.watch.round({"pose": Asked()})
        clock[0] += QUICK.block_s
    await desk.watch.save()
    signals = json.loads(desk.file.read_text())["signals"]
    assert [list(state["learned"][0]) for name, *_, state in signals if name == "person_confidence"] == [["3"]]


async def test_latencies_wait_until_it_is_settled_who_computes(tmp_path: Path, clock: list[float]) -> None:
    desk, model = Desk(tmp_path), CheckedModel(*[None] * 9)
    await desk.watch.open()

    async def watched(state: EngineState, device: str) -> bool:
        model.upgrade, model.device = EngineProgress(state, 1.0), device
        desk.watch.observe_latency("pose", 1, 0.01)
        await desk.watch.round({"pose": model})
        return "latency" in {row["signal"] for row in desk.watch.report()}

    for state in (EngineState.WAITING, EngineState.BUILDING, EngineState.LOADING):
        assert not await watched(state, "cuda:0")
    assert await watched(EngineState.SERVING, "tensorrt:0")
    assert await watched(EngineState.LOADING, "cuda:0"), "as after a restart: what was learned stays"
    assert await watched(EngineState.FAILED, "cuda:0")


async def test_a_service_that_was_taken_out_leaves_no_reason(tmp_path: Path, clock: list[float]) -> None:
    first = Desk(tmp_path)
    for _ in range(2):
        clock[0] += 86_400.0
        await first.watch.round({"pose": CheckedModel(1.0), "action/fall": CheckedModel(0.5)})
    assert list(first.reasons()) == ["model_drift:action/fall/golden_agreement"]
    await first.watch.save()
    second = Desk(tmp_path)
    await second.watch.open()
    for _ in range(2):
        await second.watch.round({"pose": CheckedModel(1.0, 1.0)})
    assert second.reasons() == {}
    assert [event.attributes["reason"] for event in second.events] == ["service_removed"]
    assert second.watch.incidents == frozenset()


async def test_unreadable_file_costs_what_was_learned_and_nothing_else(tmp_path: Path, clock: list[float]) -> None:
    desk = Desk(tmp_path)
    desk.file.write_text('{"version": 1, "t_s"')
    await desk.watch.open()
    await run(desk, clock, 0.8, 3, CheckedModel(None))
    await desk.watch.save()
    assert json.loads(desk.file.read_text())["version"] == 1


async def test_a_baseline_that_is_no_number_is_learned_again(tmp_path: Path, clock: list[float]) -> None:
    first, model = Desk(tmp_path), CheckedModel(*[None] * 9)
    await run(first, clock, 0.8, 60, model)
    await first.watch.save()
    state = json.loads(first.file.read_text())
    for *_, signal in state["signals"]:
        if signal.get("baseline"):
            signal["baseline"]["overall"] = float("nan")
    first.file.write_text(json.dumps(state))
    second = Desk(tmp_path)
    await second.watch.open()
    await run(second, clock, 0.8, 3, model)
    assert {row["state"] for row in second.watch.report()} == {"learning"}
    await second.watch.save()
    assert "NaN" not in second.file.read_text()


async def test_state_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path, clock: list[float]) -> None:
    desk = Desk(tmp_path / "gone")
    await run(desk, clock, 0.8, 2, CheckedModel(None))
    await desk.watch.save()
    assert not desk.file.exists()


async def test_golden_answers_are_asked_at_the_start_and_then_when_due(tmp_path: Path, clock: list[float]) -> None:
    desk = Desk(tmp_path)
    model = CheckedModel(1.0, DeviceMemoryError("full"), ModelError("broken"), 0.0)
    await desk.watch.round({"pose": model, "action/fight": object()})
    assert desk.metric("model_accuracy", model_name="checked 1.0") == 1.0
    await desk.watch.round({"pose": model})
    assert len(model.answers) == 3, "not due yet"
    for _ in range(3):
        clock[0] += QUICK.golden_every_h * 3600 + 1
        await desk.watch.round({"pose": model})
    assert desk.metric("model_accuracy", model_name="checked 1.0") == 0.0
    assert "model_drift:pose/golden_agreement" in desk.reasons()


async def test_golden_answers_wait_for_a_quiet_moment_but_not_for_ever(tmp_path: Path, clock: list[float]) -> None:
    desk, model = Desk(tmp_path), CheckedModel(1.0)
    desk.watch.observe_people("yard", people(0.8))
    await desk.watch.round({"pose": model})
    assert model.answers
    clock[0] += module.IMPATIENT_S + 1
    desk.watch.observe_people("yard", people(0.8))
    await desk.watch.round({"pose": model})
    assert not model.answers


async def test_switched_off_it_keeps_and_says_nothing(tmp_path: Path, clock: list[float]) -> None:
    desk = Desk(tmp_path, DriftConfig(enabled=False))
    await desk.watch.open()
    await run(desk, clock, 0.8, 3, CheckedModel())
    await desk.watch.save()
    assert desk.watch.report() == []
    assert not desk.file.exists()


# --- what a bundle says of itself -------------------------------------------------------------------------------------


class Doubler:
    """A session that doubles its input; `faults` are rows that come out wrong."""

    device = "cpu"
    output_names = ("y",)

    def __init__(self, *faults: int) -> None:
        self._faults = faults

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        answer = feeds["x"] * 2
        answer[list(self._faults)] += 1
        return [answer]


def make_bundle(folder: Path, figures: dict[str, object] | None = None, times: int = 2) -> Bundle:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"none")
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    write_golden(folder / "golden.npz", {"x": x}, {"y": x * times})
    fields = {
        "name": "doubler", "version": "1", "task": "action", "labels": ["a", "b"], "licence": "none", "training_data": "none",
        "inputs": [{"name": "x", "shape": ["batch", 3], "preprocessing": {"kind": "skeleton"}}],
        "outputs": [{"name": "y", "shape": ["batch", 3], "meaning": "logits"}], "figures": figures or {},
    }  # fmt: skip
    seal_bundle(folder, fields)
    return load_bundle(folder)


def test_golden_agreement_is_the_share_of_samples_answered_alike(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "doubler")
    assert golden_agreement(bundle, Doubler()) == 1.0
    assert golden_agreement(bundle, Doubler(1)) == 0.75
    assert golden_agreement(Bundle(tmp_path, tmp_path, "", None), Doubler()) is None


def test_a_model_is_not_asked_for_the_answers_of_one_that_was_pulled_in_its_place(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    with store.staging() as folder:
        store.publish("doubler", make_bundle(folder / "new").path)
    bundle = load_bundle(store.names()["doubler"])
    assert golden_agreement(bundle, Doubler()) == 1.0
    with store.staging() as folder:
        newer = store.publish("doubler", make_bundle(folder / "new", times=3).path)
    assert golden_agreement(load_bundle(bundle.path), Doubler()) == 0.0
    assert golden_agreement(bundle, Doubler()) is None
    shutil.rmtree(newer)
    assert golden_agreement(bundle, Doubler()) is None


def test_golden_answers_that_were_damaged_are_an_error(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "doubler")
    (tmp_path / "doubler" / "golden.npz").write_bytes(b"rot")
    with pytest.raises(ModelError, match="not a readable"):
        golden_agreement(bundle, Doubler())


def test_card_baseline_takes_the_signals_it_knows(tmp_path: Path) -> None:
    figures = {"baseline": {"window_confidence": 0.93, "clips": 200}, "accuracy": 0.8}
    assert card_baseline(make_bundle(tmp_path / "good", figures)) == {"window_confidence": 0.93}
    assert card_baseline(make_bundle(tmp_path / "none")) == {}


@pytest.mark.parametrize("baseline", [[0.9], {"window_confidence": "high"}, {"window_confidence": 1.2}])
def test_card_baseline_that_makes_no_sense_is_refused(tmp_path: Path, baseline: object) -> None:
    with pytest.raises(ModelError, match=r"figures\.baseline"):
        card_baseline(make_bundle(tmp_path / "bad", {"baseline": baseline}))
