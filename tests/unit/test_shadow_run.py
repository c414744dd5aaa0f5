"""How long a shadow run goes on, and how it ends where there is little to compare: real threads, estimators that replay people."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import numpy as np
import pytest
from fakes.replay import ReplayEstimator, walkers

from agent.config.schema import AgentConfig
from agent.config.update import UpdateConfig
from agent.daemon.shadow_run import LONGER, Terms, run_shadow
from agent.pipeline.worker import BatchWorker
from agent.recognition import Recognition, function_of
from agent.types import POSE_SLOT, ImageArray, People
from agent.update.release import Minimum
from agent.update.trials import Figures, Refusal

SHADOW_S = 0.1
PICTURE = np.zeros((48, 64, 3), np.uint8)
FEWEST = 20
"""People, of both models together, that prove something: a fifth of the hundred that are wanted."""


class Slow(ReplayEstimator):
    """A candidate that gets hardly any time on its machine until it is let go: a picture takes `seconds`."""

    def __init__(self, recording: Sequence[People], seconds: float) -> None:
        super().__init__(recording)
        self.seconds = seconds
        self.let_go = threading.Event()
        self.pictures = 0

    def estimate(self, images: Sequence[ImageArray]) -> list[People]:
        self.let_go.wait(self.seconds)
        self.pictures += 1
        return super().estimate(images)


class Scene:
    """A camera that shows `recording` over and over, until it is exchanged, to a running model."""

    def __init__(self, recording: Sequence[People]) -> None:
        self.recording = recording
        running = ReplayEstimator([])
        running.estimate = lambda images: [self.recording[0] for _ in images]  # type: ignore[method-assign]
        self.worker: BatchWorker[ImageArray, People] = BatchWorker("pose", function_of(running))
        self.recognition = Recognition(AgentConfig(), {POSE_SLOT: running}, {POSE_SLOT: self.worker})
        self.told: list[str] = []

    async def show(self) -> None:
        while True:
            await self.worker.submit(PICTURE)
            await asyncio.sleep(0.005)

    async def run(
        self, candidate: ReplayEstimator, longest_s: float, *, shadow_s: float = SHADOW_S
    ) -> Figures | Refusal:
        terms = Terms.of(POSE_SLOT, Minimum(), UpdateConfig(shadow_s=shadow_s, shadow_max_s=longest_s))
        return await run_shadow(
            self.recognition, POSE_SLOT, candidate, terms, lambda step, done: self.told.append(step)
        )


@asynccontextmanager
async def shown(recording: Sequence[People]) -> AsyncIterator[Scene]:
    scene = Scene(recording)
    scene.worker.start()
    showing = asyncio.create_task(scene.show())
    try:
        yield scene
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
        await scene.worker.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_S", "SPARING_LOOK_S"):
        monkeypatch.setattr(f"agent.daemon.shadow_run.{name}", 0.02)
    monkeypatch.setattr("agent.daemon.shadow.MAX_REST_S", 0.005)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


ONE = walkers(1, 1)
NOBODY = [People.empty()]


async def test_a_starved_machine_takes_longer_instead_of_passing_on_what_it_has_not_seen() -> None:
    candidate = Slow(ONE, 20.0)
    async with shown(ONE) as scene:
        run = asyncio.create_task(scene.run(candidate, 60.0))
        await until(lambda: len(scene.told) > 2 * LONGER * SHADOW_S / 0.02)
        assert not run.done(), "nothing was compared yet"
        assert scene.told[-1] == "shadow: waiting for people"
        candidate.let_go.set()
        outcome = await asyncio.wait_for(run, 20)
    assert not isinstance(outcome, Refusal), outcome
    assert int(outcome["people_running"]) + int(outcome["people_candidate"]) >= FEWEST
    assert "were wanted" in str(outcome["note"])


async def test_one_that_never_gets_its_time_is_refused_in_the_end() -> None:
    async with shown(ONE) as scene:
        outcome = await asyncio.wait_for(scene.run(Slow(ONE, 0.4), 1.0), 20)
    assert isinstance(outcome, Refusal)
    assert outcome.reason == "unproven"
    samples = int(outcome.figures["samples"])
    assert samples <= 4
    assert outcome.text.startswith(f"compared {samples} times in {timedelta(seconds=1)}, too few to judge by: ")


async def test_where_nobody_is_seen_at_night_it_waits_for_the_morning_and_computes_nothing_meanwhile() -> None:
    candidate = Slow(NOBODY, 0.0)
    async with shown(NOBODY) as scene:
        run = asyncio.create_task(scene.run(candidate, 60.0))
        await until(lambda: len(scene.told) > 2 * LONGER * SHADOW_S / 0.02)
        pictures = candidate.pictures
        await asyncio.sleep(0.2)
        assert candidate.pictures == pictures > 0, "there is nothing to compare in an empty picture"
        assert not run.done()
        candidate._recording = scene.recording = ONE
        outcome = await asyncio.wait_for(run, 20)
    assert not isinstance(outcome, Refusal), outcome
    assert outcome["agreement"] == 1.0


async def test_where_nobody_ever_comes_it_is_refused_in_the_end_and_says_so() -> None:
    async with shown(NOBODY) as scene:
        outcome = await asyncio.wait_for(scene.run(ReplayEstimator(NOBODY), 0.8), 20)
    assert isinstance(outcome, Refusal)
    assert outcome.reason == "unproven"
    assert "no people in view" in outcome.text
    assert float(outcome.figures["shadow_s"]) == pytest.approx(0.8, abs=0.1)


async def test_what_runs_before_a_restart_took_counts_towards_the_limit() -> None:
    terms = Terms.of(POSE_SLOT, Minimum(), UpdateConfig(shadow_s=SHADOW_S, shadow_max_s=3600.0), spent_s=3599.5)
    async with shown(NOBODY) as scene:
        run = run_shadow(scene.recognition, POSE_SLOT, ReplayEstimator(NOBODY), terms, lambda *_: None)
        outcome = await asyncio.wait_for(run, 20)
    assert isinstance(outcome, Refusal)
    assert outcome.reason == "unproven"
    assert outcome.text.endswith("(and 1:00:00 before the agent was started again)")
    assert float(outcome.figures["shadow_s"]) == pytest.approx(0.5, abs=0.1)


async def test_enough_people_end_it_on_time() -> None:
    async with shown(walkers(4, 1)) as scene:
        run = scene.run(ReplayEstimator(walkers(4, 1)), 60.0, shadow_s=1.5)  # time for enough of them on any machine
        outcome = await asyncio.wait_for(run, 20)
    assert not isinstance(outcome, Refusal), outcome
    assert "note" not in outcome
    assert 1.5 <= float(outcome["shadow_s"]) < LONGER * 1.5


async def test_the_limit_is_never_below_the_run_itself() -> None:
    terms = Terms.of(POSE_SLOT, Minimum(), UpdateConfig(shadow_s=600, shadow_max_s=60))
    assert (terms.shadow_s, terms.longest_s) == (600, 600)
    assert Terms.of(POSE_SLOT, Minimum(), UpdateConfig(), spent_s=10 * 86400).longest_s == 300
    assert Terms.of(POSE_SLOT, Minimum(), UpdateConfig()).longest_s == 3 * 86400
