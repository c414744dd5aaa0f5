"""Candidates in the probing process: each bad one refused for what is wrong with it, and nothing of it comes near the agent."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes.candidates import contrary, derive, endless, greedy, slower
from fakes.plugin import install_crashing

from agent.config.load import load_config
from agent.config.schema import AgentConfig
from agent.recognition import with_models
from agent.update.probing import ProbeLimits, clean, run_probe, too_poor
from agent.update.release import Minimum
from agent.update.trials import Figures, Refusal

REPO = Path(__file__).resolve().parent.parent.parent
SLOT = "action/fall"
LIMITS = ProbeLimits(1 << 30, seconds=90)


@pytest.fixture(scope="module")
def config() -> AgentConfig:
    return load_config([REPO / "configs" / "pose-nano.yaml"], env={})


def request(config: AgentConfig, path: Path, slot: str = SLOT) -> dict[str, Any]:
    def section(one: AgentConfig) -> dict[str, Any]:
        part = one.pose if slot == "pose" else one.services["fall"]
        return part.model_dump(mode="json")

    base = with_models(config, {"pose": REPO / "models" / "pose-nano-int8"})
    return {
        "slot": slot, "section": section(with_models(base, {slot: path})), "running": section(base),
        "allow_custom_ops": False,
    }  # fmt: skip


def children() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "agent.update.probe" in " ".join(one.cmdline())]


async def probed(config: AgentConfig, path: Path, limits: ProbeLimits = LIMITS, slot: str = SLOT) -> Figures | Refusal:
    told: list[tuple[str, float]] = []
    outcome = await run_probe(request(config, path, slot), limits, lambda step, done: told.append((step, done)))
    assert not children(), "the child is gone"
    assert [done for _, done in told] == sorted(done for _, done in told)
    return outcome


@pytest.mark.parametrize(("slot", "shipped"), [("pose", "pose-nano-int8"), ("action/fall", "fall-stgcn")])
async def test_good_candidate_gets_figures(config: AgentConfig, tmp_path: Path, slot: str, shipped: str) -> None:
    found = await probed(config, derive(shipped, tmp_path / "new", version="9.0.0"), slot=slot)
    assert isinstance(found, dict), found
    assert found.keys() == {"device", "memory_mb", "pairs", "latency_ms", "running_latency_ms", "latency_ratio"}
    assert found["device"] == "cpu"
    assert 0.4 < float(found["latency_ratio"]) < 2.5, "the same model"
    assert 0 < float(found["memory_mb"]) < 500
    assert int(found["pairs"]) >= 3
    assert too_poor(found, Minimum(latency_ratio=3)) is None


async def test_slower_one_is_measured_as_such(config: AgentConfig, tmp_path: Path) -> None:
    found = await probed(config, derive("fall-stgcn", tmp_path / "new", slower(4)))
    assert isinstance(found, dict), found
    refusal = too_poor(found, Minimum())
    assert refusal is not None
    assert refusal.reason == "slower"
    assert refusal.figures["latency_ratio"] > 3  # type: ignore[operator]
    assert "times as long as the model in use, at most 1.5" in refusal.text


async def test_a_broken_model_in_use_does_not_keep_its_successor_out(config: AgentConfig, tmp_path: Path) -> None:
    asked = request(config, derive("fall-stgcn", tmp_path / "new", version="9.0.0"))
    asked["running"] = asked["section"] | {"model": str(derive("fall-stgcn", tmp_path / "old", cut=True))}
    found = await run_probe(asked, LIMITS, lambda *_: None)
    assert isinstance(found, dict), found
    assert "cannot be loaded beside it" in str(found["note"])
    assert str(tmp_path) not in str(found["note"])
    assert "latency_ratio" not in found
    assert float(found["latency_ms"]) > 0


async def test_wrong_answers_are_named(config: AgentConfig, tmp_path: Path) -> None:
    found = await probed(config, derive("fall-stgcn", tmp_path / "new", contrary, golden=False))
    assert isinstance(found, Refusal)
    assert found.reason == "golden"
    assert "differs from the golden one" in found.text


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"labels": ["other", "slip"]}, "has no class 'fall'"),
        ({"labels": ["fall", "other", "sit"]}, "other"),
        ({"task": "pose", "labels": []}, "is a model for 'pose'"),
        ({"cut": True}, "cut short"),
    ],
)
async def test_one_that_does_not_fit_is_refused_for_its_contract(
    config: AgentConfig, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    found = await probed(config, derive("fall-stgcn", tmp_path / "new", **change))
    assert isinstance(found, Refusal)
    assert found.reason == "contract"
    assert word in found.text
    assert str(tmp_path) not in found.text


@pytest.mark.parametrize(
    ("preprocessing", "word"),
    [
        ({"rate_hz": 10.0}, "fall-stgcn 0.5.0 was trained at 10"),
        ({"rate_hz": 30.0, "missing_below_score": 0.1}, "pre-processing"),
    ],
)
async def test_a_model_trained_on_other_windows_does_not_fit(
    config: AgentConfig, tmp_path: Path, preprocessing: dict[str, float], word: str
) -> None:
    folder = derive("fall-stgcn", tmp_path / "new")
    skeletons = {
        "name": "input_tensor", "shape": ["batch", 4, 100, 17, 3], "dtype": "float32",
        "preprocessing": {"kind": "skeleton", **preprocessing},
    }  # fmt: skip
    found = await probed(config, derive("fall-stgcn", tmp_path / "slow", inputs=[skeletons]))
    assert isinstance(found, Refusal)
    assert found.reason == "contract"
    assert word in found.text
    assert isinstance(await probed(config, folder), dict)


async def test_changed_bytes_are_refused(config: AgentConfig, tmp_path: Path) -> None:
    folder = derive("fall-stgcn", tmp_path / "new")
    with (folder / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    found = await probed(config, folder)
    assert isinstance(found, Refusal)
    assert found.reason == "contract"
    assert "sha256" in found.text


async def test_endless_graph_is_killed(config: AgentConfig, tmp_path: Path) -> None:
    folder = derive("fall-stgcn", tmp_path / "new", endless, golden=False)
    started_s = time.monotonic()
    found = await probed(config, folder, ProbeLimits(1 << 30, seconds=8))
    assert isinstance(found, Refusal)
    assert found.reason == "crash"
    assert "no end after 8 s" in found.text
    assert time.monotonic() - started_s < 30


async def test_greedy_graph_gets_no_more_than_its_memory(config: AgentConfig, tmp_path: Path) -> None:
    free = psutil.virtual_memory().available
    found = await probed(
        config, derive("fall-stgcn", tmp_path / "new", greedy, golden=False), ProbeLimits(300 << 20, 60)
    )
    assert isinstance(found, Refusal)
    assert found.reason == "memory"
    assert psutil.virtual_memory().available > free - (1 << 30)


async def test_memory_is_watched_from_outside_too(config: AgentConfig, tmp_path: Path) -> None:
    """Where there is a GPU, the kernel cannot hold the child to a limit of address space."""
    limits = ProbeLimits(300 << 20, 60, address_space=False)
    found = await probed(config, derive("fall-stgcn", tmp_path / "new", greedy, golden=False), limits)
    assert isinstance(found, Refusal)
    assert found.reason == "memory"
    assert "takes more than the 315 MB" in found.text


@pytest.mark.parametrize(
    ("how", "word"), [("segfault", "SIGSEGV"), ("abort", "SIGABRT"), ("exit", "exit code 3"), ("chatter", "understood")]
)
async def test_death_of_the_child_is_a_finding(
    config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, word: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", install_crashing(tmp_path / "plugins"))
    asked = request(config, derive("fall-stgcn", tmp_path / "new"))
    asked["section"] |= {"classifier": "crashing", "options": {"how": how}}
    found = await run_probe(asked, LIMITS, lambda *_: None)
    assert isinstance(found, Refusal)
    assert found.reason == "crash"
    assert word in found.text
    assert "while loading the model" in found.text
    if how == "abort":
        assert "last words about model.onnx" in found.text
    assert "/secret/" not in found.text


async def test_credentials_of_the_agent_are_not_the_childs(
    config: AgentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", install_crashing(tmp_path / "plugins"))
    monkeypatch.setenv("MQTT_PASSWORD", "hunter2")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    asked = request(config, derive("fall-stgcn", tmp_path / "new"))
    asked["section"] |= {"classifier": "crashing", "options": {"how": "environment", "file": str(tmp_path / "seen")}}
    await run_probe(asked, LIMITS, lambda *_: None)
    seen = (tmp_path / "seen").read_text()
    assert "PATH=" in seen
    assert "hunter2" not in seen
    assert "CREDENTIALS" not in seen


async def test_giving_up_kills_the_child(config: AgentConfig, tmp_path: Path) -> None:
    folder = derive("fall-stgcn", tmp_path / "new", endless, golden=False)
    task = asyncio.ensure_future(run_probe(request(config, folder), LIMITS, lambda *_: None))
    while not children():
        await asyncio.sleep(0.01)
    (child,) = children()
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert os.getpriority(os.PRIO_PROCESS, 0) == os.getpriority(os.PRIO_PROCESS, os.getpid())


@pytest.mark.parametrize(
    ("figures", "minimum", "reason"),
    [
        ({"latency_ratio": 1.4, "latency_ms": 50.0, "memory_mb": 90.0}, {}, ""),
        ({"latency_ratio": 1.6}, {}, "slower"),
        ({"latency_ratio": 1.6}, {"latency_ratio": 2.0}, ""),
        ({"latency_ms": 50.0}, {"latency_ms": 40.0}, "slower"),
        ({"memory_mb": 90.0}, {"memory_mb": 80.0}, "memory"),
        ({}, {"memory_mb": 80.0, "latency_ms": 1.0}, ""),
    ],
)
def test_figures_against_what_is_asked_for(figures: dict[str, float], minimum: dict[str, float], reason: str) -> None:
    refusal = too_poor(figures, Minimum(**minimum))  # type: ignore[arg-type]
    assert (refusal.reason if refusal else "") == reason


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/var/lib/recognizer/updates/sha256/ab/bundle/model.onnx: is cut short", "model.onnx: is cut short"),
        ("loading '/a/b c/model.onnx'\n failed\x1b[31m", "loading 'b c/model.onnx' failed [31m"),
        ("see https://host/path/file and a/b", "see https://host/path/file and a/b"),
        ("x" * 1000, "x" * 400),
    ],
)
def test_texts_for_elsewhere(text: str, shown: str) -> None:
    assert clean(text) == shown
