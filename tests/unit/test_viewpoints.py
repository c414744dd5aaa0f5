"""The views of cameras, kept between two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from fakes.views import ELSEWHERE, USUAL, look, look_elsewhere

from agent.capture.viewpoint import EDGES_SHAPE, _complex, edges, likeness
from agent.config.schema import CameraConfig
from agent.daemon.viewpoints import Viewpoints


def camera(camera_id: str = "yard", source: str = "rtsp://u:pass@cam/?channel=1", **more: Any) -> CameraConfig:
    return CameraConfig.model_validate({"id": camera_id, "source": source, **more})


async def reopened(file: Path) -> Viewpoints:
    viewpoints = Viewpoints(file)
    await viewpoints.open()
    return viewpoints


async def test_a_camera_that_was_turned_while_the_agent_was_off_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "viewpoints.json"
    before = await reopened(file)
    look(before.of(camera()), USUAL)
    await before.save()
    viewpoint = (await reopened(file)).of(camera())
    assert not viewpoint.moved
    look(viewpoint, ELSEWHERE)
    assert viewpoint.moved


async def test_a_moved_camera_is_moved_after_a_restart_and_may_be_accepted(tmp_path: Path) -> None:
    file = tmp_path / "viewpoints.json"
    before = await reopened(file)
    look_elsewhere(before.of(camera()))
    await before.save()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "pass" not in file.read_text()
    after = await reopened(file)
    assert after.of(camera()).moved
    after.accept("nobody")
    after.accept("yard")
    look(after.of(camera()), ELSEWHERE)
    assert not after.of(camera()).moved


async def test_a_view_that_was_accepted_is_right_after_a_restart_too(tmp_path: Path) -> None:
    file = tmp_path / "viewpoints.json"
    before = await reopened(file)
    look_elsewhere(before.of(camera()))
    before.accept("yard")
    await before.save()  # before half a minute could be judged
    viewpoint = (await reopened(file)).of(camera())
    look(viewpoint, ELSEWHERE)
    assert not viewpoint.moved


async def test_another_source_has_another_view_and_a_camera_that_is_gone_none(tmp_path: Path) -> None:
    viewpoints = await reopened(tmp_path / "viewpoints.json")
    for name in ("yard", "hall"):
        look(viewpoints.of(camera(name)), USUAL)
    assert viewpoints.of(camera(moved_after_s=90)).learned is not None
    assert viewpoints.of(camera(moved_after_s=90)).moved_after_s == 90
    assert viewpoints.of(camera(source="rtsp://u:pass@cam/?channel=2")).learned is None
    viewpoints.keep([camera("hall")])
    await viewpoints.save()
    assert list(json.loads((tmp_path / "viewpoints.json").read_text())) == ["hall"]


async def test_a_file_is_written_only_when_something_was_learned(tmp_path: Path) -> None:
    file = tmp_path / "viewpoints.json"
    viewpoints = await reopened(file)
    viewpoints.of(camera())
    await viewpoints.save()
    assert not file.exists()
    look(viewpoints.of(camera()), USUAL)
    await viewpoints.save()
    written = file.stat().st_mtime_ns
    await viewpoints.save()
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", '{"yard": 3}', '{"yard": {"source": "1", "edges": "AAAA", "known_s": 0, "other_s": 0}}',
        '{"yard": {"source": "1", "edges": "?", "known_s": 0, "other_s": 0}}', '{"yard": {"source": "1", "edges": "", "other_s": NaN}}',
        "[" * 100_000, "\x00\xff",
    ],
)  # fmt: skip
async def test_a_damaged_file_is_said_and_learned_again(tmp_path: Path, text: str) -> None:
    file = tmp_path / "viewpoints.json"
    file.write_text(text, encoding="latin-1")
    with structlog.testing.capture_logs() as logs:
        viewpoints = await reopened(file)
    assert [log["event"] for log in logs] == ["camera_views_unreadable"]
    look(viewpoints.of(camera()), USUAL)
    await viewpoints.save()
    again = (await reopened(file)).of(camera())
    assert again.learned is not None
    assert again.learned.reference.shape == EDGES_SHAPE
    assert likeness(_complex(again.learned.reference), edges(USUAL.astype(np.float32))) > 0.9


async def test_a_disk_that_takes_nothing_is_said_and_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "viewpoints.json"
    (tmp_path / "folder").write_text("a file where a folder belongs")
    viewpoints = Viewpoints(file)
    look(viewpoints.of(camera()), USUAL)
    with structlog.testing.capture_logs() as logs:
        await viewpoints.save()
    assert [log["event"] for log in logs] == ["camera_views_not_saved"]
    (tmp_path / "folder").unlink()
    await viewpoints.save()
    assert file.exists()
