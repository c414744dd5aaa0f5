"""The whole agent in this process: what it says about itself before, at and after an exchange of models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes.candidates import candidate_of, contrary, derive

from agent.app import Agent
from agent.config.load import load_config
from agent.drift.watch import Key
from agent.outbox.history import EventArchive, EventQuery
from agent.runtime.bundle import load_bundle
from agent.types import POSE_SLOT, Event, EventPhase
from agent.update.trials import Refusal

REPO = Path(__file__).resolve().parent.parent.parent
FALL = "action/fall"


def write_config(folder: Path) -> Path:
    document: dict[str, Any] = {
        "device_id": "box",
        "state_dir": str(folder / "state"),
        "cameras": [{"id": "hall", "source": "sim://?scenario=crowd&seed=3&people=4&fps=8", "frozen_after_s": 0}],
        "pose": {"device": "cpu"},
        "services": {"fight": {"enabled": False}},
        "evidence": {"enabled": False},
        "mqtt": {"enabled": False},
        "http": {"port": 0},
        "health": {"probe_interval_s": 0.2, "governor": {"enabled": False, "cpu_high": 1, "memory_high": 1}},
        "update": {"shadow_s": 1, "probation_s": 1},
    }
    config = folder / "agent.yaml"
    config.write_text(json.dumps(document))
    return config


@asynccontextmanager
async def running_agent(folder: Path, paths: dict[str, Path] | None = None) -> AsyncIterator[tuple[Agent, Any]]:
    """The agent and a function that gets a page of it."""
    config = load_config([REPO / "configs" / "pose-nano.yaml", write_config(folder)], env={})
    agent = Agent(config, environ={}, load=lambda: config)
    agent.trials.paths |= paths or {}
    task = asyncio.create_task(agent.run())
    try:
        async with asyncio.timeout(60):
            ready = asyncio.create_task(agent.ready_event.wait())
            await asyncio.wait({ready, task}, return_when=asyncio.FIRST_COMPLETED)
            assert agent.http is not None
            await agent.http.started.wait()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{agent.http.port}") as client:

            async def get(path: str) -> Any:
                async with client.get(path) as response:
                    return await response.json()

            yield agent, get
    finally:
        agent.stop()
        await asyncio.wait_for(task, 60)


async def until(condition: Any, what: str, timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)
    assert what


async def test_new_versions_show_everywhere_and_the_drift_watch_begins_anew(tmp_path: Path) -> None:
    card = {"baseline": {"person_confidence": 0.33, "keypoint_visibility": 0.5}}
    pose = derive("pose-nano-int8", tmp_path / "pose", version="9.0.0", figures=card)
    async with running_agent(tmp_path) as (agent, get):
        documents: list[dict[str, Any]] = []
        agent._put_state = lambda topic, document: documents.append({"topic": topic, **document})  # type: ignore[method-assign]

        def watched() -> Any:
            return agent.drift._watch._signals.get(Key("person_confidence", POSE_SLOT, "hall"))

        async def watching() -> bool:
            return watched() is not None

        await until(watching, "the drift watch looks at the camera")
        before, shipped = watched(), load_bundle(REPO / "models" / "pose-nano-int8")
        assert before._card == pytest.approx(shipped.manifest.figures["baseline"]["person_confidence"])
        await agent.trials.install(POSE_SLOT, pose)
        assert (await get("/api/v1/state"))["models"][POSE_SLOT] == "pose-nano-int8 9.0.0"
        assert agent.trials.running(POSE_SLOT) == pose

        async def anew() -> bool:
            return watched() is not None and watched() is not before

        await until(anew, "a fresh signal")
        assert watched()._card == pytest.approx(0.33), "the new card's"
        assert (await get("/api/v1/state"))["health"]["models"][POSE_SLOT] == "pose-nano-int8 9.0.0"

        async def published() -> bool:
            health = [one for one in documents if one["topic"].endswith("/health")]
            return any(one["models"][POSE_SLOT].endswith("9.0.0") for one in health)

        await until(published, "told at once, not with the next regular message", timeout_s=5)
        reports = [one for one in agent.drift.report() if one["slot"] == POSE_SLOT]
        assert {one["model"] for one in reports} == {"pose-nano-int8 9.0.0"}


async def test_an_event_names_the_models_that_judged_it(tmp_path: Path) -> None:
    fall = derive("fall-stgcn", tmp_path / "fall", version="9.0.0")
    async with running_agent(tmp_path) as (agent, _):
        frames = agent.vitals.watch_gaps()

        async def flowing() -> bool:
            return frames.frames["hall"] > 3

        await until(flowing, "frames")
        now = agent.live.camera_state("hall")
        assert now["people"] >= 0
        event = make_event(agent, EventPhase.DETECTED)
        told = asyncio.create_task(agent._listener.on_event(event))
        assert "an event is active: fall at hall" not in agent.trials.not_now()
        await told
        assert agent.trials.not_now() == "an event is active: fall at hall"
        await agent._listener.on_event(make_event(agent, EventPhase.RESOLVED))
        assert agent.trials.not_now() == ""
        await agent.trials.install(FALL, fall)
        await agent._listener.on_event(make_event(agent, EventPhase.DETECTED))
        await agent._listener.on_event(make_event(agent, EventPhase.RESOLVED))
        assert agent.vitals.spell(FALL, ("fall",)).incidents == 2
        state_dir = agent.config.state_dir
    with EventArchive(state_dir / "events.db") as archive:
        rows = [json.loads(row.payload) for row in archive.events(EventQuery(limit=None)) if row.kind == "fall"]
    versions = [row["data"]["models"][FALL] for row in rows]
    assert sorted(versions) == ["fall-stgcn 0.5.0"] * 2 + ["fall-stgcn 9.0.0"] * 2


def make_event(agent: Agent, phase: EventPhase) -> Event:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    return Event(
        event_id=agent.new_id(), incident_id="01a20000-0000-7000-8000-000000000001", kind="fall", phase=phase,
        camera_id="hall", track_ids=(1,), t_start_ns=0, t_utc=now, t_onset_utc=now, duration_s=0.0, confidence=0.9,
    )  # fmt: skip


async def test_from_probe_to_probation_on_the_running_agent(tmp_path: Path) -> None:
    """All steps in a row, as the update client takes them: a good one to its end, a bad one to its refusal."""
    good = candidate_of(derive("fall-stgcn", tmp_path / "good", version="9.0.0"), FALL, latency_ratio=10)
    bad = candidate_of(derive("fall-stgcn", tmp_path / "bad", contrary, golden=False), FALL)
    async with running_agent(tmp_path) as (agent, get):
        trials, steps = agent.trials, []
        for work in (trials.validate, trials.shadow):
            outcome = await work(good, lambda step, _: steps.append(step))
            assert not isinstance(outcome, Refusal), outcome
        assert trials.not_now() == ""
        await trials.install(FALL, good.path)
        outcome = await trials.watch(good, lambda step, _: steps.append(step))
        assert not isinstance(outcome, Refusal), outcome
        refusal = await trials.validate(bad, lambda step, _: steps.append(step))
        assert isinstance(refusal, Refusal)
        assert refusal.reason == "golden"
        assert (await get("/api/v1/state"))["models"][FALL] == "fall-stgcn 9.0.0"
        assert {"loading", "measuring", "shadow", "probation"} <= set(steps)


async def test_a_bundle_of_an_update_that_is_broken_does_not_keep_the_agent_from_watching(tmp_path: Path) -> None:
    broken = derive("fall-stgcn", tmp_path / "broken", cut=True)
    async with running_agent(tmp_path, {FALL: broken}) as (agent, get):
        state = await get("/api/v1/state")
        assert state["models"][FALL] == "fall-stgcn 0.5.0"
        reasons = [reason["reason"] for reason in state["health"]["reasons"]]
        assert "model_fallback:action/fall/update" in reasons
        await asyncio.sleep(0.5)
        reasons = [reason["reason"] for reason in (await get("/api/v1/state"))["health"]["reasons"]]
        assert "model_fallback:action/fall/update" in reasons, "the round that looks at engines leaves it alone"
        assert agent.trials.paths == {}
