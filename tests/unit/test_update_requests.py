"""Wishes of people at the device, and the commands that make them."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from agent.errors import StorageError
from agent.update.requests import Answer, Request, RequestFolder


def test_a_wish_is_answered(tmp_path: Path) -> None:
    folder = RequestFolder(tmp_path / "requests")

    def agent() -> None:
        while not (found := folder.waiting()):
            time.sleep(0.01)
        name, request = found[0]
        folder.answer(name, Answer(True, f"{request.what} {request.slot} for {request.by}"))

    thread = threading.Thread(target=agent)
    thread.start()
    try:
        assert folder.ask(Request("rollback", "pose", "anna"), 5.0) == Answer(True, "rollback pose for anna")
    finally:
        thread.join()
    assert list((tmp_path / "requests").iterdir()) == []


def test_a_wish_that_is_taken_is_waited_for_longer(tmp_path: Path) -> None:
    folder, said = RequestFolder(tmp_path / "requests"), threading.Event()

    def agent() -> None:
        while not (found := folder.waiting()):
            time.sleep(0.01)
        folder.take(found[0][0])
        assert said.wait(5)
        time.sleep(0.4)
        folder.answer(found[0][0], Answer(True, "done"))

    thread = threading.Thread(target=agent)
    thread.start()
    try:
        assert folder.ask(Request("rollback", "pose", "anna"), 0.3, 10.0, said.set) == Answer(True, "done")
    finally:
        thread.join()
    assert list((tmp_path / "requests").iterdir()) == []


def test_a_wish_that_is_taken_and_not_done_is_not_taken_for_unheard(tmp_path: Path) -> None:
    folder = RequestFolder(tmp_path / "requests")

    def agent() -> None:
        while not (found := folder.waiting()):
            time.sleep(0.01)
        folder.take(found[0][0])

    thread = threading.Thread(target=agent)
    thread.start()
    try:
        with pytest.raises(StorageError, match=r"is at it, and not done within 0\.4 s"):
            folder.ask(Request("rollback", "pose", "anna"), 0.3, 0.4)
    finally:
        thread.join()
    assert list((tmp_path / "requests").iterdir()) == []


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"has not answered within 0\.2 s"):
        RequestFolder(tmp_path / "requests").ask(Request("check"), 0.2)
    assert list((tmp_path / "requests").iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"what": "format"}',
        '{"what": "check", "more": 1}',
        '{"what": "rollback", "slot": 7}',
        "x" * 5000,
    ],
)
def test_what_is_no_wish_is_removed(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert RequestFolder(tmp_path).waiting() == []
    assert not (tmp_path / "a.json").exists()


def test_an_old_wish_is_not_granted_at_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"what": "rollback", "slot": "pose", "by": "anna"}))
    os.utime(file, (time.time() - 3600,) * 2)
    assert RequestFolder(tmp_path).waiting() == []


def test_what_nobody_has_waited_for_goes(tmp_path: Path) -> None:
    folder = RequestFolder(tmp_path)
    for name, age_s in (("old", 3600), ("new", 0)):
        folder.answer(name, Answer(True, "too late"))
        (tmp_path / f"{name}.taken").touch()
        for kind in ("answer", "taken"):
            os.utime(tmp_path / f"{name}.{kind}", (time.time() - age_s,) * 2)
    folder.waiting()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.answer", "new.taken"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "requests").write_text("a file")
    with pytest.raises(StorageError, match="as the agent's user"):
        RequestFolder(tmp_path / "requests").ask(Request("check"), 0.2)
