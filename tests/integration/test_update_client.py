"""The update client against a fleet server, a signed repository and real files: every way an update can go."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
from fakes.ddi_server import TOKEN, DdiServer, answers
from fakes.downloads import Handler, cut_after, good, status, wrong_range
from fakes.update_world import QUICK, until, world

from agent.config.update import MaintenanceWindow
from agent.errors import StorageFullError
from agent.update import acquire, trust
from agent.update.boot import JOURNAL
from agent.update.journal import Journal
from agent.update.machine import Phase, Report
from agent.update.records import Action
from agent.update.requests import Answer, Request, RequestFolder
from agent.update.trials import Candidate, Refusal

WAY = ["downloading", "verified", "validated", "shadow", "probation", "committed"]


async def test_an_update_goes_all_the_way(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
            assert here.server.phases("7")[-1] == "committed"
            assert [phase for phase in WAY if phase in here.server.phases("7")] == here.server.phases("7")
            assert here.server.result("7") == "success"
            assert here.device.serving == "1.1.0"
            details = here.server.told("7")[-1]["details"]
            assert {"agreement: 0.97", "gap_ms: 4"} <= set(details)
            await until(lambda: here.server.attributes.get("model.pose") == "tiny 1.1.0")
        serving = here.device.root / "current" / "pose"
        assert (serving / "bundle" / "manifest.json").is_file()
        assert not list((here.device.root / "partial").iterdir())


@pytest.mark.parametrize("step", ["", "watch"])
async def test_every_state_that_is_shown_fits_together(tmp_path: Path, step: str) -> None:
    shown: list[tuple[str, str | None, str]] = []
    async with world(tmp_path) as here:
        first = here.releases.make("1.1.0")
        second = here.releases.make("1.2.0", **({step: "worse"} if step else {}))
        async with here.device.running(here.server.url) as client:

            async def look() -> None:
                while True:
                    state = client.state
                    versions = {slot: one["version"] for slot, one in state["versions"].items()}
                    now = (state["action_id"] or "", state["result"], versions.get("pose", ""))
                    if now not in shown[-1:]:
                        shown.append(now)
                    time.sleep(0.0002)  # noqa: ASYNC251 - threads need the interpreter, and every turn of the loop is looked at
                    await asyncio.sleep(0)

            looking = asyncio.create_task(look())
            for action, release in (("1", first), ("2", second)):
                here.server.offer(action, release.path, "pose")
                await until(lambda action=action: any(one[0] == action and one[1] for one in shown))  # type: ignore[misc]
            looking.cancel()
    ended = [one for one in shown if one[1]]
    assert ended == [
        ("1", "success", "tiny 1.1.0"),
        ("2", "failure", "tiny 1.1.0") if step else ("2", "success", "tiny 1.2.0"),
    ]
    order = [action for action, _, _ in shown]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("step", "reason"), [("validate", "slower"), ("shadow", "worse"), ("install", "crash"), ("watch", "unhealthy")]
)
async def test_a_bad_model_is_refused_or_taken_back_with_its_reason(tmp_path: Path, step: str, reason: str) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0", **{step: reason})
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url) as client:
            await until(lambda: here.server.result("7"))
            assert here.server.result("7") == "failure"
            ended = "rolled_back" if step in {"install", "watch"} else "refused"
            assert here.server.phases("7")[-1] == ended
            assert f"reason: {reason}" in here.server.told("7")[-1]["details"]
            assert ("back_gap_ms: 4" in here.server.told("7")[-1]["details"]) == (step == "watch")
            assert here.device.serving == "1.0.0"
            await until(lambda: client.state["result"])
        assert not (here.device.root / "current" / "pose").exists()
        assert not list((here.device.root / "sha256").iterdir())


async def test_a_release_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.server.offer("7", "pose/tiny-9.9.9.tar.zst", "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
        assert here.server.result("7") == "failure"
        assert "reason: trust" in here.server.told("7")[-1]["details"]


async def test_only_one_release_at_a_time_and_for_a_known_slot(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        two = here.server.offer("7", release.path, "pose")
        two.chunks = two.chunks * 2
        here.server.offer("8", release.path, "firmware")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7") and here.server.result("8"))
        assert "text: one release at a time: this deployment has 2" in here.server.told("7")[-1]["details"]
        assert "reason: deployment" in here.server.told("8")[-1]["details"]


async def test_the_number_of_a_slot_only_rises_but_for_the_version_before(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        old, new, newer = (here.releases.make(version) for version in ("1.1.0", "1.2.0", "1.3.0"))
        async with here.device.running(here.server.url):
            for action, release in (("1", new), ("2", newer)):
                here.server.offer(action, release.path, "pose")
                await until(partial(here.server.result, action))
            here.server.offer("3", old.path, "pose")
            await until(lambda: here.server.result("3"))
            assert "reason: number" in here.server.told("3")[-1]["details"]
            here.server.offer("4", new.path, "pose")
            await until(lambda: here.server.result("4"))
            assert here.server.result("4") == "success"
            assert here.device.serving == "1.2.0"
            assert here.device.journal.serving("pose").highest == newer.number


async def test_the_version_before_comes_back_without_the_trials_that_the_new_one_would_spoil(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        old, new = here.releases.make("1.1.0"), here.releases.make("1.2.0")
        async with here.device.running(here.server.url) as client:
            for action, release in (("1", old), ("2", new)):
                here.server.offer(action, release.path, "pose")
                await until(partial(here.server.result, action))
            trials = here.device.trials
            trials.calls.clear()
            trials.unwell, trials.blocked = "the agent is not well: memory_high", "an event is active: fall at cam0"
            here.server.offer("3", old.path, "pose", update="forced")
            await until(lambda: client.state["waiting"])
            assert (client.state["detail"], here.device.serving) == ("an event is active: fall at cam0", "1.2.0")
            assert here.device.journal.unsettled()[0].figures["shadow"] == {}, "deaths while it waits are not its own"
            trials.blocked = ""
            await until(lambda: here.server.result("3"))
            assert (here.server.result("3"), here.device.serving) == ("success", "1.1.0")
            assert trials.calls == [("install", "pose"), ("watch", "pose")]
            trials.calls.clear()
            here.server.offer("4", new.path, "pose", update="forced")  # forth again is no way back
            await until(lambda: client.state["waiting"])
            assert trials.calls == [("validate", "pose"), ("shadow", "pose")]
            assert client.state["detail"] == "the agent is not well: memory_high"


async def test_the_same_bytes_under_a_new_number_raise_it_where_they_serve_already(tmp_path: Path) -> None:
    """The fleet is brought back from 1.2.0 by `sign --again`: this device never had that, and must not take it any more."""
    async with world(tmp_path) as here:
        release, bad = here.releases.make("1.1.0"), here.releases.make("1.2.0")
        name = release.path.rpartition("/")[2]
        archive = next(content for path, content in here.releases.repository.files.items() if path.endswith(name))
        async with here.device.running(here.server.url):
            here.server.offer("1", release.path, "pose")
            await until(lambda: here.server.result("1"))
            before = here.device.journal.serving("pose")
            here.releases.repository.add(release.model_copy(update={"number": 3}), archive)
            here.releases.repository.publish()
            here.server.offer("2", release.path, "pose")
            await until(lambda: here.server.result("2"))
            assert here.server.result("2") == "success"
            now = here.device.journal.serving("pose")
            assert now.current is not None
            assert (now.current.release.number, now.highest) == (3, 3)
            assert (now.before, now.has_before) == (before.before, before.has_before)
            await until(lambda: here.device.store.numbers() == {"pose": 3})  # written behind the commit
            here.server.offer("3", bad.path, "pose")
            await until(lambda: here.server.result("3"))
            assert "reason: number" in here.server.told("3")[-1]["details"]


@pytest.mark.parametrize("ends", ["well", "badly"])
async def test_what_was_left_aside_does_not_serve_already(tmp_path: Path, ends: str) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        here.server.offer("1", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("1"))
        async with here.device.running(here.server.url):
            trials = here.device.trials
            trials.leave_aside("pose")
            if ends == "badly":
                trials.watch = unwell  # type: ignore[method-assign]
            here.server.offer("2", release.path, "pose")
            await until(lambda: here.server.result("2"))
            current = here.device.journal.serving("pose").current
        if ends == "well":
            assert {"shadow", "watch"} <= {call for call, _ in trials.calls}
            assert (here.server.result("2"), here.device.serving, current is not None) == ("success", "1.1.0", True)
        else:
            assert "reason: unhealthy" in here.server.told("2")[-1]["details"]
            assert (here.server.result("2"), here.device.serving, current) == ("failure", "1.0.0", None)


async def unwell(_candidate: Candidate, _tell: object) -> Refusal:
    return Refusal("unhealthy", "pose_model is raised")


async def test_what_serves_already_is_a_success_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        async with here.device.running(here.server.url):
            for action in ("1", "2"):
                here.server.offer(action, release.path, "pose")
                await until(partial(here.server.result, action))
            assert here.server.phases("2") in (["committed"], ["downloading", "committed"])
            assert [call for call, _ in here.device.trials.calls].count("watch") == 1


async def test_cancelled_before_the_swap_nothing_has_changed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0", validate="hang")
        offered = here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: "verified" in here.server.phases("7"))
            offered.cancelling = True
            await until(lambda: here.server.told("7", "cancelAction"))
            await until(
                lambda: (action := here.device.journal.action("7")) is not None and action.phase is Phase.CANCELLED
            )
            assert here.server.told("7", "cancelAction")[-1]["execution"] == "canceled"
            assert here.device.serving == "1.0.0"


async def test_a_wish_to_cancel_in_the_probation_is_rejected_and_the_probation_ends_well(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.device.step_s = 0.4
        release = here.releases.make("1.1.0")
        offered = here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: "probation" in here.server.phases("7"))
            offered.cancelling = True
            await until(lambda: here.server.told("7", "cancelAction"))
            assert here.server.told("7", "cancelAction")[-1]["execution"] == "rejected"
            await until(lambda: here.server.result("7"))
            assert here.server.result("7") == "success"


async def test_a_deployment_that_the_server_withdraws_ends(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0", validate="hang")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: "verified" in here.server.phases("7"))
            here.server.actions.clear()
            await until(
                lambda: (action := here.device.journal.action("7")) is not None and action.phase is Phase.CANCELLED
            )


async def test_another_deployment_takes_the_place_of_one_that_has_not_swapped(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        stuck, good = here.releases.make("1.1.0", validate="hang"), here.releases.make("1.2.0")
        first = here.server.offer("7", stuck.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: "verified" in here.server.phases("7"))
            first.closed = True
            here.server.offer("8", good.path, "pose")
            await until(lambda: here.server.result("8"))
            assert here.device.serving == "1.2.0"


async def test_it_waits_for_a_moment_that_suits_and_says_so(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        offered = here.server.offer("7", release.path, "pose", update="skip")
        here.device.config = here.device.config.model_copy(update={"maintenance": _window(start_in_h=2)})
        async with here.device.running(here.server.url):
            here.device.trials.blocked = "an event is active"

            def says(text: str) -> bool:
                return any(text in line for status in here.server.told("7") for line in status["details"])

            await until(lambda: says("the server holds the installation back"))
            offered.update = "attempt"
            await until(lambda: says("outside the maintenance windows"))
            here.device.config = here.device.config.model_copy(update={"maintenance": ()})
            await until(lambda: says("an event is active"))
            assert here.device.serving == "1.0.0"
            here.device.trials.blocked = ""
            await until(lambda: here.server.result("7"))
            assert here.device.serving == "1.1.0"


@pytest.mark.parametrize("step", ["shadow", "watch"])
async def test_the_time_on_trial_counts_over_restarts(tmp_path: Path, step: str) -> None:
    """Else a device that restarts daily would never come to a verdict."""
    async with world(tmp_path) as here:
        here.device.pace = replace(QUICK, spent_s=0.02)
        here.server.offer("7", here.releases.make("1.1.0", **{step: "hang"}).path, "pose")
        told = 0.0
        for _ in range(3):
            async with here.device.running(here.server.url):
                await until(lambda: step in dict(here.device.trials.spent_s))
                assert dict(here.device.trials.spent_s)[step] == pytest.approx(told)
                await until(lambda told=told: here.device.journal.unsettled()[0].spent_s >= told + 0.05)  # type: ignore[misc]
                here.device.journal.stopped()
            with contextlib.closing(Journal.open_to_read(here.device.root / JOURNAL)) as journal:
                (action,) = journal.unsettled()
                told = action.spent_s
        assert told >= 0.15


async def test_time_on_trial_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.device.pace, here.device.step_s = replace(QUICK, spent_s=0.02), 0.2
        here.server.offer("7", here.releases.make("1.1.0").path, "pose")
        async with here.device.running(here.server.url):
            here.device.journal.spent = full  # type: ignore[method-assign]
            await until(lambda: here.server.result("7"))
        assert here.server.result("7") == "success"


def full(*_: object) -> Action:
    raise StorageFullError("no room")


async def test_a_full_disk_keeps_no_bad_model_serving(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.server.offer("7", here.releases.make("1.1.0", watch="unhealthy").path, "pose")
        async with here.device.running(here.server.url) as client:
            enter, room = here.device.journal.enter, threading.Event()

            def late(action: Action, phase: Phase, told: Report | None, **more: Any) -> Action:
                return enter(action, phase, told, **more) if phase is not Phase.ROLLED_BACK or room.is_set() else full()

            here.device.journal.enter = late  # type: ignore[method-assign]
            await until(lambda: client.state["waiting"])
            assert client.state["detail"] == "taken back (unhealthy), which cannot be written: no room"
            assert (client.state["phase"], here.device.serving) == ("probation", "1.0.0")
            room.set()
            await until(lambda: here.server.result("7"))
            assert {"rolled_back", "reason: unhealthy"} <= set(here.server.told("7")[-1]["details"])
            assert [call for call, _ in here.device.trials.calls].count("watch") == 1


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_forced_update_does_not_wait_for_the_maintenance_window(tmp_path: Path, restarts: bool) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        offered = here.server.offer("7", release.path, "pose", update="attempt")
        here.device.config = here.device.config.model_copy(update={"maintenance": _window(start_in_h=2)})
        async with here.device.running(here.server.url) as client:
            await until(lambda: client.state["waiting"] and client.state["detail"] == "outside the maintenance windows")
            if not restarts:
                offered.update = "forced"
                await until(lambda: here.server.result("7"))
        if restarts:  # what the server says is learned again
            offered.update = "forced"
            async with here.device.running(here.server.url):
                await until(lambda: here.server.result("7"))
        assert (here.server.result("7"), here.device.serving) == ("success", "1.1.0")


async def test_a_forced_update_waits_for_an_event_and_forces_no_other_one(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        first, second = here.releases.make("1.1.0"), here.releases.make("1.2.0")
        here.device.config = here.device.config.model_copy(update={"maintenance": _window(start_in_h=2)})
        here.server.offer("7", first.path, "pose", update="forced")
        async with here.device.running(here.server.url) as client:
            here.device.trials.blocked = "an event is active"
            await until(lambda: client.state["waiting"] and client.state["detail"] == "an event is active")
            here.device.trials.blocked = ""
            await until(lambda: here.server.result("7"))
            here.server.offer("8", second.path, "pose", update="attempt")
            await until(lambda: client.state["waiting"] and client.state["detail"] == "outside the maintenance windows")
            assert here.device.serving == "1.1.0"


async def test_a_forced_update_beside_one_in_its_probation_does_not_force_that_one(tmp_path: Path) -> None:
    """The candidate is loaded, and waits for a moment; the server has another update already."""
    async with world(tmp_path) as here:
        here.device.step_s = 0.4
        first, second = here.releases.make("1.1.0"), here.releases.make("1.2.0")
        offered = here.server.offer("7", first.path, "pose", update="attempt")
        async with here.device.running(here.server.url) as client:
            await until(lambda: ("install", "pose") in here.device.trials.calls)
            here.device.config = here.device.config.model_copy(update={"maintenance": _window(start_in_h=2)})
            offered.closed = True
            here.server.offer("8", second.path, "pose", update="forced")
            await until(lambda: client.state["waiting"])
            polls = here.server.polls
            await until(lambda: here.server.polls > polls + 3)
            assert (client.state["action_id"], client.state["waiting"], here.device.serving) == ("7", True, "1.0.0")
            here.device.config = here.device.config.model_copy(update={"maintenance": ()})
            await until(lambda: here.server.result("8"))
            assert here.device.serving == "1.2.0"


async def test_an_event_that_begins_while_the_candidate_is_loaded_is_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.device.step_s = 0.4
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url) as client:
            await until(lambda: ("install", "pose") in here.device.trials.calls)
            here.device.trials.blocked = "an event is active: fall at cam0"
            await until(lambda: client.state["waiting"])
            await asyncio.sleep(0.2)
            assert (client.state["phase"], here.device.serving) == ("probation", "1.0.0")
            here.device.trials.blocked = ""
            await until(lambda: here.server.result("7"))
            assert here.device.serving == "1.1.0"


async def test_a_loaded_candidate_is_freed_when_no_moment_comes_and_loaded_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.device.step_s, here.device.pace = 0.4, replace(QUICK, moment_s=0.2)
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            trials = here.device.trials
            await until(lambda: ("install", "pose") in trials.calls)
            trials.blocked = "an event is active: fall at cam0"
            await until(lambda: trials.given_up == 1)
            trials.blocked = ""
            await until(lambda: here.server.result("7"))
            assert here.server.result("7") == "success"
            assert trials.calls.count(("install", "pose")) == 2
            assert here.device.serving == "1.1.0"


async def test_a_candidate_that_the_agent_is_not_well_with_is_given_up(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.device.step_s, here.device.pace = 0.4, replace(QUICK, moment_s=0.1)
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            trials = here.device.trials
            await until(lambda: ("install", "pose") in trials.calls)
            trials.blocked_while_loaded = "the agent is not well: memory_high"
            await until(lambda: here.server.result("7"))
            assert {"rolled_back", "reason: memory"} <= set(here.server.told("7")[-1]["details"])
            assert trials.given_up == 3
            assert here.device.serving == "1.0.0"


async def test_what_held_a_download_back_is_not_shown_while_it_comes(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        action = here.server.offer("7", release.path, "pose", download="skip")
        async with here.device.running(here.server.url) as client:
            await until(lambda: client.state["waiting"])
            action.download = "forced"
            await until(lambda: here.server.result("7"))
        coming = [one for one in here.device.told if one["phase"] == "downloading" and one["progress"]]
        assert coming
        assert not any(one["waiting"] for one in coming)


async def test_a_report_too_many_does_not_silence_the_device(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0", watch="hang")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url) as client:
            await until(lambda: here.server.phases("7")[-1:] == ["probation"])
            here.server.full = True
            here.server.actions["7"].cancelling = True
            await until(
                lambda: any(one.what == "told" and "refused" in str(one.detail) for one in here.device.journal.audit(5))
            )
            here.server.full = False
            assert await client.roll_back("pose", "test") == "tiny 1.1.0: taken back"
            await until(lambda: here.server.result("7"))
            assert client.state["server"]["state"] == "ok"


async def test_what_somebody_left_in_the_store_stops_no_update(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        versions = here.device.root / "sha256"
        (versions / "lost+found").mkdir(parents=True)
        (versions / ("0" * 64)).symlink_to("nowhere")
        (here.device.root / "current").mkdir()
        (here.device.root / "current" / "pose").symlink_to("nowhere")
        (here.device.root / "partial" / "copy").mkdir(parents=True)
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url) as client:
            await until(lambda: here.server.result("7") and client.state["result"])
        assert here.server.result("7") == "success"
        assert len(list(versions.iterdir())) == 1


async def test_it_agrees_to_what_it_understands_and_denies_the_rest(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose", confirmation=True)
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
            here.server.offer("8", release.path, "firmware", confirmation=True)
            await until(lambda: here.server.actions["8"].closed)
        confirmations = [body["confirmation"] for base, _, body in here.server.feedback if base == "confirmationBase"]
        assert confirmations == ["confirmed", "denied"]


async def test_feedback_is_kept_until_the_server_takes_it(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.device.journal.action("7"))
            here.server.always = answers(503)
            await until(lambda: (action := here.device.journal.action("7")) is not None and action.settled)
        assert here.device.serving == "1.1.0"
        assert not here.server.result("7")
        here.server.always = None
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
        assert here.server.result("7") == "success"


@pytest.mark.parametrize("repository", ["there", "away"])
async def test_an_end_that_the_server_has_forgotten_is_told_again(tmp_path: Path, repository: str) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        offered = here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
            if repository == "away":
                here.releases.repository.files.clear()
            here.server.feedback.clear()
            offered.closed = False
            await until(lambda: here.server.result("7"))
            assert [call for call, _ in here.device.trials.calls].count("watch") == 1


async def test_an_id_that_another_server_gives_again_is_another_update(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        first, second = here.releases.make("1.1.0"), here.releases.make("1.2.0")
        here.server.offer("1", first.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("1"))
            _begin_anew(here.server)
            here.server.offer("1", second.path, "pose")
            await until(lambda: here.server.result("1"))
            assert here.device.serving == "1.2.0"
        assert here.server.phases("1") == [phase for phase in WAY if phase in here.server.phases("1")]
        assert here.server.told("1")[-1]["details"][1] == "text: tiny 1.2.0"


async def test_an_id_given_again_for_what_was_signed_anew_is_another_update(tmp_path: Path) -> None:
    """The same path and the same bytes, but for the number: what was refused then is in order now."""
    async with world(tmp_path) as here:
        old, new = here.releases.make("1.1.0"), here.releases.make("1.2.0")
        name = old.path.rpartition("/")[2]
        archive = next(content for path, content in here.releases.repository.files.items() if path.endswith(name))
        here.server.offer("1", new.path, "pose")
        here.server.offer("2", old.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("2"))
            assert "reason: number" in here.server.told("2")[-1]["details"]
            here.releases.repository.add(old.model_copy(update={"number": 3}), archive)
            here.releases.repository.publish()
            _begin_anew(here.server)
            here.server.offer("2", old.path, "pose")
            await until(lambda: here.server.result("2"))
            assert (here.server.result("2"), here.device.serving) == ("success", "1.1.0")
            assert here.device.journal.serving("pose").highest == 3


async def test_another_server_does_not_hear_how_an_update_of_the_same_id_ends(tmp_path: Path) -> None:
    """It is in its probation when the server is exchanged: its end says nothing about what the new one wants."""
    async with world(tmp_path) as here:
        first, second = here.releases.make("1.1.0", watch="hang"), here.releases.make("1.2.0")
        here.server.offer("1", first.path, "pose")
        async with here.device.running(here.server.url) as client:
            await until(lambda: here.server.phases("1")[-1:] == ["probation"])
            _begin_anew(here.server)
            here.server.offer("1", second.path, "pose")
            polls = here.server.polls
            await until(lambda: here.server.polls > polls + 3)
            await client.roll_back("pose", "test")
            await until(lambda: here.server.result("1"))
        phases = [phase for phase in here.server.phases("1") if phase]
        # A step of the old one may have been on its way when the server was exchanged.
        assert phases[: phases.index("downloading")] in ([], ["probation"])
        assert "rolled_back" not in phases
        assert [status["result"]["finished"] for status in here.server.told("1")].count("failure") == 0
        assert (here.server.result("1"), here.device.serving) == ("success", "1.2.0")


async def test_an_id_given_again_in_the_middle_of_an_update_takes_its_place(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        stuck, good_one = here.releases.make("1.1.0", validate="hang"), here.releases.make("1.2.0")
        here.server.offer("1", stuck.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: "verified" in here.server.phases("1"))
            _begin_anew(here.server)
            here.server.offer("1", good_one.path, "pose")
            await until(lambda: here.server.result("1"))
            assert (here.server.result("1"), here.device.serving) == ("success", "1.2.0")


async def test_a_wrong_token_is_said_and_mended_without_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path, poll_max_s=0.3) as here:
        here.server.token = "another"
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url) as client:
            await until(lambda: client.state["server"]["state"] == "denied")
            assert "401" in client.state["server"]["detail"]
            assert TOKEN not in client.state["server"]["detail"]
            here.server.token = TOKEN
            await until(lambda: here.server.result("7"))


async def test_rolled_back_by_command_and_forth_again(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        requests = RequestFolder(here.device.root / "requests")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
            back = await asyncio.to_thread(requests.ask, Request("rollback", "pose", "test"), 5.0)
            assert (back.good, back.text) == (True, "pose: as configured serves")
            assert here.device.trials.calls[-2:] == [("install", "pose"), ("let_go", "pose")]
            assert here.device.serving == "1.0.0"
            forth = await asyncio.to_thread(requests.ask, Request("rollback", "pose", "test"), 5.0)
            assert (forth.good, here.device.serving) == (True, "1.1.0")
            unknown = await asyncio.to_thread(requests.ask, Request("rollback", "action/fight", "test"), 5.0)
            assert not unknown.good
            assert "no version to go back to" in unknown.text
            assert not list(requests.waiting())


async def test_a_second_wish_to_go_back_while_it_is_done_does_not_undo_it(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        requests, taken = RequestFolder(here.device.root / "requests"), threading.Event()
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
            here.device.trials.step_s = 2.0  # a model that has to be loaded takes its time

            def ask() -> Answer:
                return requests.ask(Request("rollback", "pose", "test"), 0.3, 10.0, taken.set)

            first = asyncio.create_task(asyncio.to_thread(ask))
            await until(taken.is_set)
            taken.clear()
            second = asyncio.create_task(asyncio.to_thread(ask))
            await until(taken.is_set)
            assert not first.done()
            assert await first == await second == Answer(True, "pose: as configured serves")
            assert here.device.serving == "1.0.0"


async def test_a_stop_in_the_middle_of_a_way_back_is_said(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        requests, taken = RequestFolder(here.device.root / "requests"), threading.Event()
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
            here.device.trials.step_s = 60.0
            back = asyncio.create_task(
                asyncio.to_thread(requests.ask, Request("rollback", "pose", "test"), 5.0, 20.0, taken.set)
            )
            await until(taken.is_set)
        answer = await back
        assert (answer.good, "the agent stops in the middle of it" in answer.text) == (False, True)


async def test_rolled_back_by_command_in_the_probation(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0", watch="hang")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url) as client:
            await until(lambda: here.device.serving == "1.1.0")
            assert await client.roll_back("pose", "test") == "tiny 1.1.0: taken back"
            await until(lambda: here.server.result("7"))
            assert "reason: command" in here.server.told("7")[-1]["details"]
            assert here.device.serving == "1.0.0"
            assert here.device.trials.calls[-2:] == [("install", "pose"), ("let_go", "pose")]


async def test_a_wish_to_go_back_in_the_moment_of_the_commit_is_granted(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url) as client:
            commit, reached, asked = here.device.journal.commit, threading.Event(), threading.Event()

            def late(action: Action, told: Report) -> Action:
                reached.set()
                assert asked.wait(10)
                return commit(action, told)

            here.device.journal.commit = late  # type: ignore[method-assign]
            await until(reached.is_set)
            back = asyncio.create_task(client.roll_back("pose", "test"))
            await asyncio.sleep(0.05)
            asked.set()
            assert await back == "pose: as configured serves"
            assert here.device.serving == "1.0.0"
            await until(lambda: here.server.result("7") == "success")
            assert here.device.journal.serving("pose").current is None


async def test_a_wish_to_go_back_from_before_the_start_is_about_what_is_on_trial(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        first, second = here.releases.make("1.1.0"), here.releases.make("1.2.0", watch="hang")
        async with here.device.running(here.server.url):
            here.server.offer("6", first.path, "pose")
            await until(lambda: here.server.result("6"))
            here.server.offer("7", second.path, "pose")
            await until(lambda: here.device.serving == "1.2.0")
        requests = RequestFolder(here.device.root / "requests")
        asking = asyncio.create_task(asyncio.to_thread(requests.ask, Request("rollback", "pose", "test"), 10.0))
        await until(requests.waiting)
        here.device.slow_s = 0.1
        async with here.device.running(here.server.url):
            assert (await asking).text == "tiny 1.2.0: taken back"
            await until(lambda: here.server.result("7"))
            assert here.device.serving == "1.1.0"


async def test_a_download_that_breaks_off_goes_on_later(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        release = here.releases.make("1.1.0")
        archive = next(path for path in here.releases.repository.files if path.endswith(".tar.zst"))
        here.tuf.behaviours[archive] = cut_after(300)
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.tuf.asked.count(archive) >= 2)
            here.tuf.behaviours[archive] = good
            await until(lambda: here.server.result("7"))
        assert here.server.result("7") == "success"
        assert any(
            headers.get("range", "").startswith("bytes=300-") or "range" in headers
            for path, headers in here.tuf.requests
            if path.endswith(".zst")
        )


async def test_a_download_that_gets_on_each_time_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acquire, "WORTH_BYTES", 200)
    async with world(tmp_path, retries=1) as here:
        release = here.releases.make("1.1.0")
        archive = next(path for path in here.releases.repository.files if path.endswith(".tar.zst"))
        here.tuf.behaviours[archive] = cut_after(200)
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
        assert here.server.result("7") == "success"
        assert here.tuf.asked.count(archive) > 5


async def test_a_download_that_starts_over_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that were here once are no progress."""
    monkeypatch.setattr(acquire, "WORTH_BYTES", 200)
    async with world(tmp_path, retries=3) as here:
        release = here.releases.make("1.1.0")
        archive = next(path for path in here.releases.repository.files if path.endswith(".tar.zst"))

        def forgetful(handler: Handler) -> None:
            (wrong_range if handler.headers.get("Range") else cut_after(300))(handler)

        here.tuf.behaviours[archive] = forgetful
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
        assert "reason: download" in here.server.told("7")[-1]["details"]


@pytest.mark.parametrize("trouble", ["denied", "clock"])
async def test_what_somebody_has_to_mend_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    async with world(tmp_path, retries=1) as here:
        release, timestamp, looks = here.releases.make("1.1.0"), "/metadata/timestamp.json", 0

        class Wrong(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Self:
                nonlocal looks
                looks += 1
                return cls(2001, 1, 1, tzinfo=tz)

        if trouble == "denied":
            here.tuf.behaviours[timestamp] = status(403)
        else:
            monkeypatch.setattr(trust, "datetime", Wrong)
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url) as client:
            await until(lambda: here.tuf.asked.count(timestamp) > 4 or looks > 4)
            assert client.state["phase"] == "downloading"
            here.tuf.behaviours.clear()
            monkeypatch.undo()
            await until(lambda: here.server.result("7"))
        assert here.server.result("7") == "success"


async def test_no_room_is_a_refusal_before_the_download(tmp_path: Path) -> None:
    async with world(tmp_path, reserve_bytes=2**60) as here:
        release = here.releases.make("1.1.0")
        here.server.offer("7", release.path, "pose")
        async with here.device.running(here.server.url):
            await until(lambda: here.server.result("7"))
        assert "reason: space" in here.server.told("7")[-1]["details"]
        assert not any(path.endswith(".zst") for path in here.tuf.asked)


def _begin_anew(server: DdiServer) -> None:
    """As another server, that knows of nothing."""
    server.actions.clear()
    server.feedback.clear()


def _window(start_in_h: int) -> tuple[object, ...]:
    start = datetime.now().astimezone() + timedelta(hours=start_in_h)
    end = start + timedelta(hours=1)
    return (MaintenanceWindow(start=f"{start:%H:%M}", end=f"{end:%H:%M}"),)
