"""Power loss under a device's updates, on a disk that forgets what was not synced, tears pages and swaps writes.

The device is the real update client, store, journal and record of trust in a process of its own; the server and the repository are
real. `fakes.powerloss_updates` says what is looked at after each loss of power.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.powerloss_disk import Fate, Mode
from fakes.powerloss_fs import REASON, Moment
from fakes.powerloss_tree import Folder, Remains, Symlink, Tree, load, save
from fakes.powerloss_tree_fs import PowerLossTreeMount
from fakes.powerloss_updates import power_loss_campaign
from fakes.update_world import world
from ota_campaign import KINDS, REACHED, TRANSITIONS

from agent.update.requests import Request, RequestFolder
from agent.update.trust_record import Held, TrustRecord

needs_fuse = pytest.mark.skipif(bool(REASON), reason=REASON or "-")
MODES: tuple[Mode, ...] = ("journalled", "strict")
GOOD: dict[str, str] = {}
KIND_FOR: dict[str, dict[str, str]] = {"refused": {"validate": "slower"}, "rolled_back": {"watch": "unhealthy"}}


@needs_fuse
async def test_an_update_survives_losses_of_power(tmp_path: Path) -> None:
    async with power_loss_campaign(tmp_path, "strict") as campaign:
        await campaign.update(GOOD, {"moment": "write", "count": 25}, {"die_in": "committed"})
        assert campaign.verdict.troubles == []
        assert (campaign.verdict.kills, campaign.verdict.committed) == (2, 1)
        assert campaign.at_stake > 0


@needs_fuse
@pytest.mark.parametrize(
    ("fault", "mode", "shows"),
    [
        ("no-sync", "journalled", "is torn"),
        pytest.param("no-sync", "strict", "the server was told", marks=pytest.mark.slow),
        pytest.param("no-folder-sync", "strict", "the server was told", marks=pytest.mark.slow),
        pytest.param("no-journal-sync", "journalled", "the server was told", marks=pytest.mark.slow),
        pytest.param("no-journal-sync", "strict", "the server was told", marks=pytest.mark.slow),
        pytest.param("lying-disk", "journalled", "the server was told", marks=pytest.mark.slow),
    ],
)
async def test_a_store_that_does_not_sync_loses(tmp_path: Path, fault: str, mode: Mode, shows: str) -> None:
    """SQLite's own syncs go on under `no-sync`: names and states are there, contents are not."""
    lying = fault == "lying-disk"
    async with power_loss_campaign(tmp_path, mode, fault="" if lying else fault, ignore_sync=lying) as campaign:
        campaign.fates = itertools.repeat("drop")
        await campaign.update(GOOD, {"die_in": "committed"})
        assert any(shows in trouble for trouble in campaign.verdict.troubles), campaign.verdict.troubles


@needs_fuse
def test_the_record_of_trust_is_not_lost_with_its_folder(tmp_path: Path) -> None:
    """No commit of the journal beside it has made the folder's name safe yet."""
    folder = tmp_path / "mount" / "updates" / "trust"
    with PowerLossTreeMount(tmp_path / "safe", tmp_path / "mount", "strict") as disk:
        record = TrustRecord(folder)
        with record.locked():
            record.unfold(Held())
            (record.workplace / "timestamp.json").write_text("1")
            record.keep(Held(), None)
        disk.lose_power("drop", seed=1)
    assert TrustRecord(tmp_path / "safe" / "updates" / "trust").load().files == {"timestamp.json": b"1"}


@needs_fuse
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fate", ["torn", "drop"])
async def test_the_power_may_go_at_every_transition(tmp_path: Path, mode: Mode, fate: Fate) -> None:
    async with power_loss_campaign(tmp_path, mode) as campaign:
        campaign.fates = itertools.repeat(fate)
        await campaign.update(GOOD)
        for phase, before in TRANSITIONS:
            kind = KIND_FOR.get(phase, GOOD)
            assert phase in REACHED[next(iter(kind), "")]
            await campaign.update(kind, {"die_in": phase, "before": before})
            assert campaign.verdict.troubles == [], f"{'before' if before else 'after'} {phase}"
        for before in (True, False):
            await campaign.update(
                GOOD, {"die_in": "cancelled", "before": before, "ask": campaign.cancel, "step_s": 3.0}
            )
            assert campaign.verdict.troubles == [], f"{'before' if before else 'after'} cancelled"
        assert campaign.verdict.kills == len(TRANSITIONS) + 2
        assert campaign.verdict.committed == 1 + sum(phase not in KIND_FOR for phase, _ in TRANSITIONS)
        assert campaign.at_stake > 0


def random_cuts(dice: random.Random) -> Iterator[dict[str, Any]]:
    """At a write or sync, at a step of the agent's own, at any time, and at any step of a start, by turns."""
    while True:
        yield {"moment": "write", "count": dice.randint(1, 250)}
        yield {"moment": "sync", "count": dice.randint(1, 60)}
        yield {"die_at": dice.randint(1, 160), "after_s": 4.0}
        yield {"after_s": dice.uniform(0, 2)}
        moment: Moment = dice.choice(("write", "sync"))
        yield {"boot": True, "moment": moment, "count": dice.randint(1, 30)}


@needs_fuse
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [1, 2])
async def test_the_power_may_go_at_any_moment(tmp_path: Path, mode: Mode, seed: int) -> None:
    dice = random.Random(seed)
    cuts, kinds = random_cuts(dice), itertools.cycle(KINDS)
    async with power_loss_campaign(tmp_path, mode, seed=seed) as campaign:
        while campaign.verdict.kills < 36:
            kind = next(kinds)
            lives = list(itertools.islice(cuts, dice.randint(1, 3)))
            await campaign.update(kind, *lives)
            assert campaign.verdict.troubles == [], f"{kind} {lives}"
        assert campaign.verdict.committed > 5
        assert len(campaign.verdict.kills_by_phase) > 3


@needs_fuse
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("moment", "counts"), [("sync", range(1, 16)), ("write", range(1, 60, 4))])
async def test_the_power_may_go_at_any_step_of_a_start(
    tmp_path: Path, mode: Mode, moment: Moment, counts: range
) -> None:
    """Of the very first ones, of those that find a probation, and of those that find a version that has to go."""
    starts = [{"boot": True, "moment": moment, "count": count} for count in counts]
    async with power_loss_campaign(tmp_path, mode) as campaign:
        await campaign.update(GOOD, *starts)
        await campaign.update(GOOD, *starts[::3])
        await campaign.update({"watch": "die"}, *starts[::3])
        await campaign.update(GOOD, {"die_in": "probation"}, *starts[:1])
        assert campaign.verdict.troubles == []
        assert campaign.verdict.rolled_back >= 1


@needs_fuse
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("moment", "counts"), [("sync", range(1, 8)), ("write", range(5, 90, 7))])
async def test_the_power_may_go_while_people_go_back(tmp_path: Path, mode: Mode, moment: Moment, counts: range) -> None:
    async with power_loss_campaign(tmp_path, mode) as campaign:
        await campaign.update(GOOD)
        await campaign.update(GOOD)
        for count in counts:
            await campaign.go_back(moment, count)
            assert campaign.verdict.troubles == [], f"{moment} {count}"
        assert 0 < campaign.backs < len(counts)


async def test_a_wish_is_off_the_disk_before_it_is_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a loss of power after the exchange has it granted again, and what had to go serves once more."""
    async with world(tmp_path) as around, around.device.running(None) as client:
        folder = around.device.root / "requests"
        there: list[list[Path]] = []

        async def roll_back(_slot: str, _by: str) -> str:
            there.append(list(folder.glob("*.json")))
            return "gone back"

        monkeypatch.setattr(client, "roll_back", roll_back)
        answer = await asyncio.to_thread(RequestFolder(folder).ask, Request("rollback", "pose", "anna"), 10.0)
        assert answer.good
        assert there == [[]]


# --- the disk itself --------------------------------------------------------------------------------------------------


def names(remains: list[Remains]) -> set[str]:
    return {one.path for one in remains}


def outcomes(tree: Tree, fate: Fate) -> set[frozenset[str]]:
    """All sets of names that a loss of power can leave."""
    return {frozenset(names(tree.survivors(fate, random.Random(seed)))) for seed in range(200)}


def installing(mode: Mode) -> Tree:
    """A version that is made in one folder and moved to another, both of them safe."""
    tree = Tree(mode)
    for folder in ("staging", "sha256"):
        tree.make_folder(folder)
    tree.sync_names(tree.root)
    tree.make_folder("staging/x")
    file = tree.create("staging/x/model")
    tree.write(file, 0, b"weights")
    tree.sync(file)
    return tree


def test_in_strict_mode_a_folder_needs_a_sync_of_its_own() -> None:
    strict, journalled = installing("strict"), installing("journalled")
    assert outcomes(strict, "drop") == {frozenset({"staging", "sha256"})}
    assert outcomes(journalled, "drop") == {frozenset({"staging", "sha256", "staging/x", "staging/x/model"})}
    strict.sync_names(strict.folder("staging/x"))
    assert outcomes(strict, "drop") == {frozenset({"staging", "sha256"})}  # its own name is not safe
    strict.sync_names(strict.folder("staging"))
    assert outcomes(strict, "drop") == outcomes(journalled, "drop")


@pytest.mark.parametrize("mode", MODES)
def test_a_rename_between_folders_is_whole_or_did_not_happen(mode: Mode) -> None:
    tree = installing(mode)
    for folder in ("staging/x", "staging"):
        tree.sync_names(tree.folder(folder))
    tree.rename("staging/x", "sha256/v")
    before, after = {"staging/x", "staging/x/model"}, {"sha256/v", "sha256/v/model"}
    always = {"staging", "sha256"}
    assert outcomes(tree, "some") == {frozenset(always | before), frozenset(always | after)}
    tree.sync_names(tree.folder("sha256"))
    assert outcomes(tree, "some") == {frozenset(always | after)}
    assert tree.unsynced() == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_link_that_is_replaced_names_the_old_or_the_new(mode: Mode) -> None:
    tree = Tree(mode)
    tree.make_symlink("current", "old")
    tree.sync_names(tree.root)
    tree.make_symlink(".new", "new")
    tree.rename(".new", "current")

    def target(seed: int) -> str:
        remains = {one.path: one.content for one in tree.survivors("some", random.Random(seed))}
        link = remains["current"]
        assert isinstance(link, Symlink)
        return link.target

    assert {target(seed) for seed in range(50)} == {"old", "new"}


def test_what_survives_comes_back_as_it_was(tmp_path: Path) -> None:
    tree = installing("journalled")
    tree.make_symlink("link", "staging/x")
    tree.sync_names(tree.root)
    save(tmp_path, tree.survivors("drop", random.Random(1)))
    assert (tmp_path / "link" / "model").read_bytes() == b"weights"
    again = load(tmp_path)
    assert isinstance(again.cache["sha256"], Folder)
    assert names(Tree("strict", again).survivors("drop", random.Random(1))) == {
        "staging", "sha256", "link", "staging/x", "staging/x/model",
    }  # fmt: skip
    assert (tmp_path / "staging/x/model").stat().st_mtime_ns == tree.file("staging/x/model").mtime_ns
