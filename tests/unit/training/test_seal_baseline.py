"""Means of a report into the manifest of a bundle: copies of the bundles that ship, sealed again and opened by the agent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from seal_baseline import main

from agent.action.stgcn import create as create_classifier
from agent.catalogue.examine import examine
from agent.catalogue.inventory import brief
from agent.config.schema import PoseConfig, ServiceConfig, WindowConfig
from agent.pose.rtmo import create as create_estimator
from agent.runtime.bundle import load_bundle

MATERIAL = "40 clips, poses of pose-nano"
MEANS = {
    "pose": {"person_confidence": 0.412345, "keypoint_visibility": 0.35},
    "action/fight": {"window_confidence": 0.87654321},
    "action/fall": {"window_confidence": 0.9},
}
Copy = Callable[[str], Path]


@pytest.fixture
def copy(repo_dir: Path, tmp_path: Path) -> Copy:
    """A shipped bundle of that name in the test's folder."""

    def _copy(name: str) -> Path:
        return Path(shutil.copytree(repo_dir / "models" / name, tmp_path / name))

    return _copy


@pytest.fixture
def report(repo_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """A report on the bundles as they ship; changes: of its keys."""

    def _report(**changes: Any) -> Path:
        names = {"pose": "pose-nano", "action/fight": "fight-stgcn", "action/fall": "fall-stgcn"}
        models = {slot: load_bundle(repo_dir / "models" / name).title for slot, name in names.items()}
        file = tmp_path / "report.json"
        file.write_text(json.dumps({"hours": 1.0, "baseline": MEANS, "about": {"models": models}} | changes))
        return file

    return _report


def seal(bundle: Path, report: Path, *more: str) -> int:
    return main([str(bundle), str(report), "--material", MATERIAL, *more])


def manifest(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "manifest.json").read_text()))


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("pose-nano", {"person_confidence": 0.4123, "keypoint_visibility": 0.35}),
        ("fight-stgcn", {"window_confidence": 0.8765}),
        ("fall-stgcn", {"window_confidence": 0.9}),
    ],
)
def test_sealed_means_are_the_card_of_the_opened_model(
    copy: Copy, report: Callable[..., Path], name: str, baseline: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copy(name)
    before = manifest(bundle)
    assert seal(bundle, report()) == 0
    after = manifest(bundle)
    assert after["figures"].pop("baseline") == baseline
    assert after["figures"].pop("baseline_material") == MATERIAL
    for key in ("baseline", "baseline_material"):
        before["figures"].pop(key, None)
    assert after == before, "nothing else has changed, checksums included"
    assert MATERIAL in capsys.readouterr().out

    found = examine(bundle, device="cpu")  # what `models verify` does
    assert (found.good, found.problems) == (True, [])
    assert "baseline" not in brief(manifest(bundle)["figures"])
    if name == "pose-nano":
        estimator = create_estimator(PoseConfig(estimator="rtmo", model=bundle, device="cpu", threads=1))
        assert estimator.card == baseline
        estimator.close()
    else:
        window = WindowConfig(length=100, stride=50, rate_hz=30, channels=4)
        config = ServiceConfig(model=bundle, device="cpu", window=window)
        classifier = create_classifier(name.partition("-")[0], config)
        assert classifier.card == baseline
        classifier.close()


def test_sealing_again_replaces_the_means(copy: Copy, report: Callable[..., Path]) -> None:
    bundle = copy("fight-stgcn")
    assert seal(bundle, report()) == 0
    again = report(baseline={"action/fight": {"window_confidence": 0.7}})
    assert main([str(bundle), str(again), "--material", "others"]) == 0
    figures = manifest(bundle)["figures"]
    assert (figures["baseline"], figures["baseline_material"]) == ({"window_confidence": 0.7}, "others")


def test_service_says_which_where_a_model_serves_two(
    copy: Copy, report: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copy("fight-stgcn")
    title = load_bundle(bundle).title
    both = report(
        about={"models": {"action/fight": title, "action/brawl": title}},
        baseline={"action/fight": {"window_confidence": 0.8}, "action/brawl": {"window_confidence": 0.6}},
    )
    assert seal(bundle, both) == 1
    assert "is action/fight, action/brawl in it (hint: --service says which)" in capsys.readouterr().err
    assert seal(bundle, both, "--service", "brawl") == 0
    assert manifest(bundle)["figures"]["baseline"] == {"window_confidence": 0.6}
    assert seal(bundle, both, "--service", "dance") == 1
    assert "as action/dance" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"about": {"models": {"pose": "pose-nano 0.0.0"}}}, "it measured pose pose-nano 0.0.0, not fight-stgcn"),
        ({"about": {"models": {"action/fight": "fight-stgcn 0.0.0"}}}, "it measured action/fight fight-stgcn 0.0.0, not"),
        ({"about": {}}, "it measured no model"),
        ({"about": []}, "about: Input should be"),
        ({"baseline": {}}, "no window_confidence in baseline.action/fight"),
        ({"baseline": {"pose": MEANS["pose"]}}, "no window_confidence in baseline.action/fight"),
        ({"baseline": {"action/fight": {"window_confidence": None}}}, "baseline.action/fight.window_confidence: Input should be"),
    ],
)  # fmt: skip
def test_a_report_that_does_not_fit_is_named_and_nothing_is_written(
    copy: Copy, report: Callable[..., Path], changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, file = copy("fight-stgcn"), report(**changes)
    before = (bundle / "manifest.json").read_bytes()
    assert seal(bundle, file) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {file}: ")
    assert said in message
    assert "(hint: " in message
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("mean", [0.0, 0.00001, 1.2, -0.5, float("nan")])
def test_a_mean_that_the_agent_would_refuse_is_not_sealed(
    copy: Copy, report: Callable[..., Path], mean: float, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copy("fight-stgcn")
    before = (bundle / "manifest.json").read_bytes()
    assert seal(bundle, report(baseline={"action/fight": {"window_confidence": mean}})) == 1
    assert "figures.baseline.window_confidence" in capsys.readouterr().err
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_a_file_that_is_no_report_is_named(
    copy: Copy, tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.json"
    if content is not None:
        file.write_bytes(content)
    assert seal(copy("fight-stgcn"), file) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {file}: ")
    assert "evaluate ... --report" in message


def test_a_damaged_bundle_is_not_blessed(
    copy: Copy, report: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copy("fight-stgcn")
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    before = (bundle / "manifest.json").read_bytes()
    assert seal(bundle, report()) == 1
    assert "sha256 is" in capsys.readouterr().err
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_bare_model_has_no_card(copy: Copy, report: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert seal(copy("fight-stgcn") / "model.onnx", report()) == 1
    assert "has no manifest (hint: give a bundle folder)" in capsys.readouterr().err


@pytest.mark.parametrize("material", ["", "  ", "two\nlines"])
def test_the_material_is_one_line(
    copy: Copy, report: Callable[..., Path], material: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(copy("fight-stgcn")), str(report()), "--material", material])
    assert ended.value.code == 2
    assert "one line" in capsys.readouterr().err
