"""Hostile repositories: each attack that TUF names, over real HTTP against the device's client.

docs/ota.md has the table of attacks with the tests here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.downloads import endless, say_nothing, status, trickle
from fakes.tuf_repository import TufRepository, TufServer, release, serving_tuf
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile
from yarl import URL

from agent.errors import AccessError, DataError, TransientError
from agent.update.faults import UntrustedError
from agent.update.trust import Trust
from agent.update.trust_fetch import FetchLimits, _next_place

QUICK = FetchLimits(connect_s=2.0, stall_s=0.5, stall_bytes=2048, total_s=1.5)
GOOD = b"a good model"
PATH = release().path


class Site:
    """A repository with one release, its server, and a device that has seen it once."""

    def __init__(self, repository: TufRepository, server: TufServer, folder: Path) -> None:
        self.repository = repository
        self.server = server
        self.folder = folder
        self.device = self.new_device("device")

    def new_device(self, name: str) -> Trust:
        return Trust(self.folder / name, self.server.url(), self.repository.root_bytes(), limits=QUICK)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    repository = TufRepository()
    repository.add(release(), GOOD)
    repository.publish()
    with serving_tuf(repository) as server:
        site = Site(repository, server, tmp_path)
        assert site.device.find(PATH).length == len(GOOD)
        yield site


def refused(device: Trust, reason: str, path: str = PATH) -> str:
    with pytest.raises(UntrustedError) as caught:
        device.find(path)
    assert caught.value.reason == reason, str(caught.value)
    return str(caught.value)


def stranger() -> list[CryptoSigner]:
    return [CryptoSigner.generate_ed25519()]


# --- arbitrary software: the server's owner without the offline keys ---------------------------------------------------


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_metadata_signed_by_a_stranger(site: Site, role: str) -> None:
    repository = site.repository
    repository.add(release(version="6.6.6", number=9), b"evil")
    repository.signers[role] = stranger()
    repository.publish()
    refused(site.device, "signature", "action-fight/action-model-6.6.6.tar.zst")
    assert "6.6.6" not in str(site.device._record.load().files.get("targets.json"))


def test_a_root_signed_by_a_stranger(site: Site) -> None:
    site.repository.rotate("root")
    site.repository.root_signers = []  # the keys of the root before it do not agree
    site.repository.publish("root")
    refused(site.device, "signature")


def test_a_root_that_only_the_old_keys_signed(site: Site) -> None:
    old = site.repository.rotate("root")
    site.repository.root.version += 1
    site.repository.lay_out("root", old)
    refused(site.device, "signature")


def test_online_keys_in_wrong_hands_sign_no_targets(site: Site) -> None:
    """Whoever has the server has these two keys: he can put nothing on the list."""
    repository = site.repository
    repository.add(release(version="6.6.6", number=9), b"evil")
    repository.targets.version += 1
    repository.lay_out("targets", [*repository.signers["snapshot"], *repository.signers["timestamp"]])
    repository.snapshot.meta["targets.json"] = repository._meta("targets")
    repository.publish("snapshot", "timestamp")
    refused(site.device, "signature", "action-fight/action-model-6.6.6.tar.zst")


def test_unsigned_metadata(site: Site) -> None:
    site.repository.publish("timestamp")
    site.repository.lay_out("timestamp", [])
    refused(site.device, "signature")


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_one_of_two_keys_is_not_enough(tmp_path: Path, role: str) -> None:
    repository = TufRepository(thresholds={role: 2})
    repository.add(release(), GOOD)
    repository.publish()
    with serving_tuf(repository) as server:
        trust = Trust(tmp_path / "device", server.url(), repository.root_bytes(), limits=QUICK)
        assert trust.find(PATH).release == release()
        one = repository.signers[role][:1]
        repository.publish(role)
        repository.lay_out(role, [*one, *one])  # the same key twice counts once
        if role in {"targets", "snapshot"}:
            follow(repository, role)
        refused(trust, "signature")


def follow(repository: TufRepository, role: str) -> None:
    """The roles that name `role` name its newest file."""
    if role == "targets":
        repository.snapshot.meta["targets.json"] = repository._meta("targets")
        repository.publish("snapshot", "timestamp")
    else:
        repository.timestamp.snapshot_meta = repository._meta("snapshot")
        repository.publish("timestamp")


def test_a_key_that_was_revoked_no_longer_counts(site: Site) -> None:
    stolen = site.repository.rotate("targets")
    site.repository.publish("root", "targets", "snapshot", "timestamp")
    assert site.device.find(PATH).length == len(GOOD)
    site.repository.signers["targets"] = stolen
    site.repository.publish()
    refused(site.device, "signature")


def test_a_key_of_one_role_does_not_sign_for_another(site: Site) -> None:
    site.repository.publish("timestamp")
    site.repository.lay_out("timestamp", site.repository.signers["snapshot"])
    refused(site.device, "signature")


def test_other_bytes_than_the_signed_ones(site: Site, tmp_path: Path) -> None:
    """A malicious mirror: metadata untouched, another file in its place."""
    target = site.device.find(PATH)
    file = tmp_path / "download"
    file.write_bytes(GOOD)
    site.device.verify(file, target)
    file.write_bytes(b"a evil model")
    with pytest.raises(UntrustedError) as caught:
        site.device.verify(file, target)
    assert caught.value.reason == "hash"
    file.write_bytes(GOOD + b"!")
    with pytest.raises(UntrustedError) as caught:
        site.device.verify(file, target)
    assert caught.value.reason == "length"


# --- rollback ---------------------------------------------------------------------------------------------------------


def test_an_old_timestamp_is_served_again(site: Site) -> None:
    old = site.repository.state()
    site.repository.publish()
    site.device.refresh()
    site.repository.files = old
    refused(site.device, "rollback")


def test_a_new_timestamp_names_an_old_snapshot(site: Site) -> None:
    repository = site.repository
    before = repository.timestamp.snapshot_meta
    repository.publish()
    site.device.refresh()
    repository.timestamp.snapshot_meta = before
    repository.publish("timestamp")
    refused(site.device, "rollback")


def test_a_new_snapshot_names_old_targets(site: Site) -> None:
    repository = site.repository
    before = repository.snapshot.meta["targets.json"]
    repository.publish()
    site.device.refresh()
    repository.snapshot.meta["targets.json"] = before
    repository.publish("snapshot", "timestamp")
    refused(site.device, "rollback")


def test_a_new_snapshot_leaves_a_role_out(site: Site) -> None:
    repository = site.repository
    repository.snapshot.meta["more.json"] = MetaFile(1)
    repository.publish("snapshot", "timestamp")
    site.device.refresh()
    del repository.snapshot.meta["more.json"]
    repository.publish("snapshot", "timestamp")
    refused(site.device, "rollback")


def test_an_old_root_under_a_new_number(site: Site) -> None:
    repository = site.repository
    repository.publish("root")
    site.device.refresh()
    repository.files["/metadata/3.root.json"] = repository.files["/metadata/1.root.json"]
    refused(site.device, "rollback")


def test_fast_forward_is_undone_by_new_keys(site: Site) -> None:
    """Stolen online keys drive the versions up, so that honest ones look old; the owner gives the roles new keys and starts low."""
    repository = site.repository
    repository.snapshot.version = repository.timestamp.version = 10**6
    repository.publish()
    site.device.refresh()
    repository.rotate("snapshot")
    repository.rotate("timestamp")
    repository.snapshot.version = repository.timestamp.version = 1
    repository.publish("root", "snapshot", "timestamp")
    assert site.device.find(PATH).length == len(GOOD)


def test_fast_forward_is_no_way_to_lower_targets(site: Site) -> None:
    """Without new keys in a root, low numbers stay refused."""
    repository = site.repository
    repository.timestamp.version = 10**6
    repository.publish("timestamp")
    site.device.refresh()
    repository.timestamp.version = 3
    repository.publish("timestamp")
    refused(site.device, "rollback")


# --- freeze -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_expired_metadata(site: Site, role: str) -> None:
    site.repository.expire(role)
    site.repository.publish()
    assert "expired" in refused(site.device, "expired")


def test_an_expired_root(site: Site) -> None:
    site.repository.expire("root")
    site.repository.publish("root")
    refused(site.device, "expired")


def test_an_expired_root_on_the_way_to_a_good_one(site: Site) -> None:
    site.repository.expire("root")
    site.repository.publish("root")
    site.repository.root.expires = site.repository.in_days(10)
    site.repository.publish("root")
    assert site.device.find(PATH).length == len(GOOD)


def test_everything_held_back_until_it_expires(tmp_path: Path) -> None:
    """Indefinite freeze: a device that sees yesterday's repository for ever notices when its timestamp has expired."""
    repository = TufRepository()
    repository.add(release(), GOOD)
    repository.timestamp.expires = repository.in_days(1.5 / 86_400)
    repository.publish()
    with serving_tuf(repository) as server:
        trust = Trust(tmp_path, server.url(), repository.root_bytes(), limits=QUICK)
        trust.refresh()
        time.sleep(2.2)
        refused(trust, "expired")


# --- mix and match ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["targets", "snapshot"])
def test_a_file_of_another_time_under_the_asked_name(site: Site, role: str) -> None:
    """Well signed, and not what the newer metadata names."""
    repository = site.repository
    old = repository.files[repository.address(role)]
    repository.publish()
    repository.files[repository.address(role)] = old
    fresh = site.new_device("fresh")
    refused(fresh, "mix-and-match")


@pytest.mark.parametrize("role", ["targets", "snapshot"])
def test_versions_that_do_not_fit_without_hashes(site: Site, role: str) -> None:
    """Hashes are optional in TUF: the version alone has to give it away."""
    repository = site.repository
    version = repository.part(role).version + 1
    repository.publish()
    stale = TufRepository.signed(repository, role)
    repository.part(role).version += 1
    repository.files[repository.address(role)] = stale  # says the version before
    if role == "targets":
        repository.snapshot.meta["targets.json"] = MetaFile(version + 1)
        repository.publish("snapshot", "timestamp")
    else:
        repository.timestamp.snapshot_meta = MetaFile(version + 1)
        repository.publish("timestamp")
    refused(site.new_device("fresh"), "mix-and-match")


def test_a_root_that_skips_a_number(site: Site) -> None:
    site.repository.root.version = 4
    site.repository.files["/metadata/2.root.json"] = site.repository.signed("root")
    refused(site.device, "mix-and-match")


@pytest.mark.parametrize(
    ("role", "other"), [("timestamp", "snapshot"), ("snapshot", "targets"), ("targets", "snapshot")]
)
def test_metadata_of_another_role(site: Site, role: str, other: str) -> None:
    repository = site.repository
    repository.publish()
    repository.files[repository.address(role)] = repository.files[repository.address(other)]
    with pytest.raises(UntrustedError) as caught:
        site.new_device("fresh").find(PATH)
    assert caught.value.reason in {"format", "mix-and-match", "signature", "length"}


# --- endless data, slow retrieval, broken answers ---------------------------------------------------------------------


@pytest.mark.parametrize("file", ["/metadata/timestamp.json", "/metadata/2.root.json", "/metadata/3.snapshot.json"])
def test_endless_data(site: Site, file: str) -> None:
    site.repository.publish()
    site.server.behaviours[file] = endless
    assert "endless data" in refused(site.device, "length")


def test_more_targets_than_the_snapshot_says(site: Site) -> None:
    repository = site.repository
    repository.publish()
    repository.files[repository.address("targets")] += b" " * 100
    refused(site.device, "length")


@pytest.mark.parametrize("behaviour", [trickle, say_nothing])
@pytest.mark.parametrize("file", ["/metadata/timestamp.json", "/metadata/2.root.json"])
def test_slow_retrieval(site: Site, file: str, behaviour: Callable[..., None]) -> None:
    """A byte now and then, or none: given up, and a matter for a later try."""
    site.repository.publish("root", "timestamp")
    site.server.behaviours[file] = behaviour
    with pytest.raises(TransientError, match="slow answer"):
        site.device.find(PATH)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"null", b"<html>log in</html>", b'{"signed": {"_type": "timestamp"}, "signatures": []}', b"[" * 100_000, b"\xff\xfe"],
    ids=["empty", "no fields", "null", "html", "half", "deep", "no text"],
)  # fmt: skip
def test_what_is_no_metadata(site: Site, content: bytes) -> None:
    site.repository.publish("timestamp")
    site.repository.files["/metadata/timestamp.json"] = content[:16_000]
    refused(site.device, "format")


@pytest.mark.parametrize(
    ("code", "kind"), [(500, TransientError), (404, TransientError), (403, AccessError), (401, AccessError)]
)
def test_a_server_that_does_not_answer_well_is_no_attack(site: Site, code: int, kind: type[Exception]) -> None:
    site.server.behaviours["/metadata/timestamp.json"] = status(code)
    with pytest.raises(kind, match=str(code)):
        site.device.find(PATH)


def test_a_downgrade_to_an_unencrypted_place_is_refused() -> None:
    """By the rule that `agent.transfer` has as well."""

    class Answer:
        headers = {"Location": "http://elsewhere/metadata/timestamp.json"}  # noqa: RUF012

    with pytest.raises(Exception, match="from https to http"):
        _next_place(Answer(), URL("https://here/metadata/timestamp.json"))  # type: ignore[arg-type]


# --- wrong software ---------------------------------------------------------------------------------------------------


def test_a_target_that_is_not_on_the_list(site: Site) -> None:
    with pytest.raises(DataError, match=r"no target 'action-fight/other-1.0.0.tar.zst'"):
        site.device.find("action-fight/other-1.0.0.tar.zst")


def test_a_target_that_was_withdrawn(site: Site) -> None:
    del site.repository.targets.targets[PATH]
    site.repository.publish()
    with pytest.raises(DataError, match="withdrawn"):
        site.device.find(PATH)


def test_a_release_under_the_name_of_another_slot(site: Site) -> None:
    """The path is what the server names; what is signed with it must be what it says."""
    site.repository.add(release("pose"), b"pose", path="action-fight/pose-model-1.0.0.tar.zst")
    site.repository.publish()
    with pytest.raises(DataError, match=r"should be 'pose/pose-model-1.0.0.tar.zst'"):
        site.device.find("action-fight/pose-model-1.0.0.tar.zst")


@pytest.mark.parametrize("custom", [{}, {"format": 2}, {"format": 1, "slot": "action/fight"}])
def test_a_target_that_is_no_release(site: Site, custom: dict[str, object]) -> None:
    site.repository.add(release(), GOOD, path="action-fight/x-1.tar.zst", custom=custom or {"a": 1})
    site.repository.publish()
    with pytest.raises(DataError, match="is no release"):
        site.device.find("action-fight/x-1.tar.zst")
