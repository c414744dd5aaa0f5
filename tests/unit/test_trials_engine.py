"""A model that is to run in an engine takes its place when the engine stands, and not before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes.candidates import candidate_of

from agent.config.schema import AgentConfig
from agent.config.update import UpdateConfig
from agent.daemon.trials import AgentTrials, TrialPorts
from agent.daemon.vitals import Vitals
from agent.errors import ModelError
from agent.health.reasons import HealthState
from agent.pipeline.worker import BatchWorker
from agent.recognition import Model, Recognition, function_of
from agent.runtime.engines import EngineProgress, EngineState
from agent.types import POSE_SLOT, ImageArray, People
from agent.update.trials import Refusal

SERVING = (EngineState.SERVING,)
BUILDING = (EngineState.WAITING, EngineState.BUILDING, EngineState.SERVING)
FAILING = (EngineState.BUILDING, EngineState.FAILED)
REPO = Path(__file__).resolve().parent.parent.parent


class Engined:
    """A pose estimator whose engine goes one state further each time somebody looks; no states: it has none."""

    max_batch = 1

    def __init__(self, name: str, *states: EngineState) -> None:
        self.name = name
        self.states = list(states)
        self.closed = False

    @property
    def upgrade(self) -> EngineProgress | None:
        if not self.states:
            return None
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return EngineProgress(state, 30.0, "out of workspace" if state is EngineState.FAILED else "")

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        return [People.empty() for _ in images]

    def close(self) -> None:
        self.closed = True


class Desk:
    """Trials over a slot whose next model is given."""

    def __init__(self, running: Engined, coming: Engined) -> None:
        class Loading(Recognition):
            async def load(self, slot: str, path: Path | None, *, threads: int | None = None) -> Model:
                return coming

        config = AgentConfig(update=UpdateConfig(shadow_s=0.1, shadow_max_s=0.1))
        self.worker: BatchWorker[Any, Any] = BatchWorker("pose", function_of(running))
        self.recognition = Loading(config, {POSE_SLOT: running}, {POSE_SLOT: self.worker})
        self.trials = AgentTrials(TrialPorts(lambda: self.recognition, lambda: config, HealthState(), list, Vitals()))
        self.told: list[str] = []

    def tell(self, step: str, done: float) -> None:
        assert 0 <= done <= 1
        self.told.append(step)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.daemon.trials.LOOK_S", 0.01)


@pytest.mark.parametrize("running", [(), SERVING])
async def test_the_exchange_waits_for_the_engine(quick: None, running: tuple[EngineState, ...]) -> None:
    coming = Engined("new", *BUILDING)
    desk = Desk(Engined("old", *running), coming)
    await desk.trials.install(POSE_SLOT, Path("/new"))
    assert desk.recognition.slots[POSE_SLOT] is coming
    assert coming.states == [EngineState.SERVING], "it was looked at until it stood"


async def test_progress_of_the_build_is_told(quick: None) -> None:
    desk = Desk(Engined("old", *SERVING), Engined("new", *BUILDING))
    desk.worker.start()
    outcome = await desk.trials.shadow(candidate_of(REPO / "models" / "pose-nano-int8", POSE_SLOT), desk.tell)
    assert isinstance(outcome, Refusal)
    assert outcome.reason == "unproven", "no camera shows anything here"
    assert desk.told[:3] == ["loading", "engine waiting", "engine building"]
    await desk.worker.close()


async def test_without_an_engine_it_does_not_take_the_place_of_one_that_has_it(quick: None) -> None:
    running, coming = Engined("old", *SERVING), Engined("new", *FAILING)
    desk = Desk(running, coming)
    with pytest.raises(ModelError, match="out of workspace"):
        await desk.trials.install(POSE_SLOT, Path("/new"))
    assert desk.recognition.slots[POSE_SLOT] is running
    await desk.trials.close()
    assert coming.closed
    assert not running.closed


async def test_that_is_a_refusal_before_the_exchange(quick: None) -> None:
    desk = Desk(Engined("old", *SERVING), Engined("new", *FAILING))
    outcome = await desk.trials.shadow(candidate_of(REPO / "models" / "pose-nano-int8", POSE_SLOT), desk.tell)
    assert isinstance(outcome, Refusal)
    assert outcome.reason == "slower"
    assert "no engine" in outcome.text


async def test_where_nothing_has_an_engine_its_failure_is_none(quick: None) -> None:
    coming = Engined("new", *FAILING)
    desk = Desk(Engined("old"), coming)
    await desk.trials.install(POSE_SLOT, Path("/new"))
    assert desk.recognition.slots[POSE_SLOT] is coming
