"""The release tools on real files, with a device that follows over HTTP: ceremonies, rotations, lost keys, cut-off publications."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from fakes.bundles import make_bundle
from fakes.intruder import plant, restore
from tuf.api.metadata import Metadata, Root, Targets

from agent.errors import ConfigError, DataError, TransientError, TrustError
from agent.update.archive import unpack
from agent.update.faults import UntrustedError
from agent.update.trust import Trust
from ota.release import publish as publishing
from ota.release.files import locked
from ota.release.keys import KeyRing, PublicKey, Role, create_key, read_public
from ota.release.pack import Wishes
from ota.release.pin import Pin
from ota.release.publish import publish, renew
from ota.release.repository import Layout, Periods, Repository, Signing
from ota.release.roots import Change, add_signatures, change_keys, create_repository, newest_root, remember
from ota.release.targets import add_release, renew_targets, withdraw

NOW = datetime.now(UTC)
ROLES: tuple[Role, ...] = ("root", "targets", "snapshot", "timestamp")
THRESHOLDS: dict[Role, int] = {"root": 2}


class NoPassphrases:
    """Keys of tests are not encrypted unless the test is about that."""

    def new(self, title: str) -> bytes:
        raise AssertionError(title)

    def known(self, file: Path) -> Iterator[bytes]:
        yield from ()


class Site:
    """A repository folder, its keys by holder, and a device that follows it over HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = Repository(folder / "repository")
        self.offline, self.online = folder / "offline", folder / "online"
        self.publics = [create_key(self.offline, role, None) for role in ("root", "root", "root", "targets")]
        self.publics += [create_key(self.online, role, None) for role in ("snapshot", "timestamp")]
        handler = partial(_Quiet, directory=str(folder / "repository"))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def signing(self, *places: Path, now: datetime | None = None, periods: Periods | None = None) -> Signing:
        ring = KeyRing(places or (self.offline, self.online), NoPassphrases())
        return Signing(ring, now or datetime.now(UTC), periods or Periods())

    def ceremony(self) -> None:
        staged = create_repository(self.repository, self.signing(), self.publics, THRESHOLDS)
        assert all(one.complete for one in staged)
        publish(self.repository, self.signing(self.online))

    def device(self, name: str = "device", root: int = 1) -> Trust:
        content = (self.repository.metadata / f"{root}.root.json").read_bytes()
        return Trust(self.folder / name, f"http://127.0.0.1:{self.server.server_address[1]}", content)

    def release(self, version: str = "1.0.0", *places: Path) -> str:
        bundle = make_bundle(self.folder / f"bundle-{version}", golden=False, version=version)
        packed, staged = add_release(self.repository, self.signing(*(places or (self.offline,))), bundle, Wishes())
        assert staged.complete
        return packed.release.path

    def publish(self) -> list[str]:
        return publish(self.repository, self.signing(self.online)).written

    def keyid(self, role: Role) -> str:
        return self.repository_root().roles[role].keyids[0]

    def repository_root(self) -> Root:
        state = self.repository.published()
        assert state
        return state.root.signed


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def opened(site: Site) -> Site:
    site.ceremony()
    return site


# --- keys -------------------------------------------------------------------------------------------------------------


def test_private_keys_are_private_and_public_halves_are_not_secret(tmp_path: Path) -> None:
    public = create_key(tmp_path / "keys", "root", b"long passphrase")
    pem = tmp_path / "keys" / f"{public.stem}.pem"
    assert stat.S_IMODE(pem.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert pem.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    half = (tmp_path / "keys" / f"{public.stem}.json").read_text()
    assert read_public(tmp_path / "keys" / f"{public.stem}.json") == public
    assert "PRIVATE" not in half


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    public = create_key(tmp_path, "timestamp", None)
    pem = tmp_path / f"{public.stem}.pem"
    pem.chmod(0o640)
    with pytest.raises(ConfigError, match=r"others can read or write it \(mode 0640\).*chmod 600"):
        KeyRing([tmp_path], NoPassphrases())


def test_credentials_of_systemd_are_guarded_by_their_folder(tmp_path: Path) -> None:
    public = create_key(tmp_path, "timestamp", None)
    (tmp_path / f"{public.stem}.pem").chmod(0o440)
    (tmp_path / f"{public.stem}.json").unlink()
    assert KeyRing([tmp_path], NoPassphrases(), tmp_path).publics == [public]


def test_a_private_key_beside_the_public_half_of_another(tmp_path: Path) -> None:
    one, other = create_key(tmp_path, "root", None), create_key(tmp_path, "root", None)
    (tmp_path / f"{one.stem}.pem").replace(tmp_path / f"{other.stem}.pem")
    with pytest.raises(ConfigError, match="is not the key that"):
        KeyRing([tmp_path], NoPassphrases()).signers([other.keyid])


class Phrases(NoPassphrases):
    def __init__(self, *phrases: bytes) -> None:
        self.phrases = phrases

    def known(self, file: Path) -> Iterator[bytes]:
        yield from self.phrases


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    public = create_key(tmp_path, "root", b"right")
    with pytest.raises(ConfigError, match="no passphrase given opens this key"):
        KeyRing([tmp_path], Phrases(b"wrong")).signers([public.keyid])
    (signer,) = KeyRing([tmp_path], Phrases(b"wrong", b"right")).signers([public.keyid, "another"])
    assert signer.public_key.keyid == public.keyid


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key(tmp_path: Path, content: bytes) -> None:
    public = create_key(tmp_path, "root", None)
    (tmp_path / f"{public.stem}.pem").write_bytes(content)
    with pytest.raises(ConfigError, match="no private key"):
        KeyRing([tmp_path], NoPassphrases()).signers([public.keyid])


def test_a_missing_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such key file or folder"):
        KeyRing([tmp_path / "nowhere"], NoPassphrases())


# --- ceremony and releases --------------------------------------------------------------------------------------------


def test_from_the_ceremony_to_the_device(opened: Site, tmp_path: Path) -> None:
    path = opened.release()
    written = opened.publish()
    assert [name.rpartition(".")[0].rpartition(".")[2] or name for name in written][1:] == [
        "targets",
        "snapshot",
        "metadata/timestamp",
    ]
    device = opened.device()
    target = device.find(path)
    assert (target.release.slot, target.release.number) == ("pose", 1)
    file = opened.repository.targets / target.url.partition("/targets/")[2]
    device.verify(file, target)
    unpack(file, tmp_path / "out", target.release)
    assert opened.repository.releases()[0].file == file


def test_online_keys_do_for_publishing_and_for_nothing_else(opened: Site) -> None:
    bundle = make_bundle(opened.folder / "bundle", golden=False)
    with pytest.raises(DataError, match="none of the keys given may sign targets"):
        add_release(opened.repository, opened.signing(opened.online), bundle, Wishes())


def test_offline_keys_publish_nothing(opened: Site) -> None:
    opened.release()
    with pytest.raises(TrustError, match="snapshot 2: too few signatures"):
        publish(opened.repository, opened.signing(opened.offline))
    assert opened.repository.releases() == []


def test_root_signers_who_never_meet(site: Site) -> None:
    """Each holder has one key on a machine of his own, and the folder goes round."""
    holders = [create_key(site.folder / f"holder{number}", "root", None) for number in range(3)]
    publics = [*holders, *(public for public in site.publics if public.role != "root")]
    first = site.signing(site.folder / "holder0", site.offline)
    staged = create_repository(site.repository, first, publics, THRESHOLDS)
    assert [one.complete for one in staged] == [False, True]
    assert "1, needs 2" in staged[0].text
    with pytest.raises(TrustError, match="root 1: too few signatures"):
        publish(site.repository, site.signing(site.online))
    staged = add_signatures(site.repository, site.signing(site.folder / "holder2"))
    assert staged[0].complete
    publish(site.repository, site.signing(site.online))
    site.device().refresh()


def test_two_signers_of_targets(site: Site) -> None:
    second = create_key(site.folder / "second", "targets", None)
    create_repository(site.repository, site.signing(site.offline, site.online, site.folder / "second"),
                      [*site.publics, second], {"root": 2, "targets": 2})  # fmt: skip
    site.publish()
    bundle = make_bundle(site.folder / "bundle", golden=False)
    packed, staged = add_release(site.repository, site.signing(site.offline), bundle, Wishes())
    assert not staged.complete
    with pytest.raises(TrustError, match="targets 2: too few signatures"):
        site.publish()
    (staged,) = add_signatures(site.repository, site.signing(site.folder / "second"))
    assert staged.complete
    site.publish()
    site.device().find(packed.release.path)


def test_a_list_that_was_changed_at_the_server_is_not_signed_along(opened: Site) -> None:
    opened.release("1.0.0")
    opened.publish()
    copied = shutil.copytree(opened.repository.folder, opened.folder / "copy")
    planted = make_bundle(opened.folder / "planted", golden=False, version="6.6.6")
    unsigned = plant(opened.repository.folder, opened.online, planted, opened.folder).release.path
    device = opened.device()
    with pytest.raises(UntrustedError, match="signature"):
        device.find(unsigned)
    with pytest.raises(TrustError, match="not as it was signed"):
        opened.release("1.1.0")
    with pytest.raises(TrustError, match="not as it was signed"):
        renew_targets(opened.repository, opened.signing(opened.offline))
    with pytest.raises(TrustError, match="not as it was signed"):
        change_keys(opened.repository, opened.signing(), Change((), [("root", opened.keyid("root"))]))

    restore(opened.repository.folder, copied)  # docs/ota.md, "Lost and stolen keys"
    new = opened.folder / "new"
    for role in ("snapshot", "timestamp"):
        change = Change([create_key(new, role, None)], [(role, opened.keyid(role))])
        assert all(one.complete for one in change_keys(opened.repository, opened.signing(opened.offline), change))
    path = opened.release("1.2.0")
    publish(opened.repository, opened.signing(new))
    assert device.find(path).release.version == "1.2.0"
    with pytest.raises(DataError, match="no target"):
        device.find(unsigned)


def test_a_forged_chain_of_roots_gets_nothing_signed_along(opened: Site, tmp_path: Path) -> None:
    """The thief's first root names his own key for targets and the operator's, which is public."""
    remembered = Repository(opened.repository.folder, Pin(opened.offline))
    remember(remembered)
    thief = Site(tmp_path / "thief")
    thief.publics.append(next(public for public in opened.publics if public.role == "targets"))
    thief.ceremony()
    planted = thief.release("6.6.6")
    thief.publish()
    shutil.rmtree(opened.repository.folder)
    shutil.copytree(thief.repository.folder, opened.repository.folder)
    thief.server.shutdown()
    thief.server.server_close()

    bundle = make_bundle(opened.folder / "bundle", golden=False, version="1.0.0")
    for work in (
        lambda: add_release(remembered, opened.signing(opened.offline), bundle, Wishes()),
        lambda: renew_targets(remembered, opened.signing(opened.offline)),
        lambda: change_keys(remembered, opened.signing(), Change()),
        lambda: add_signatures(remembered, opened.signing()),
    ):
        with pytest.raises(TrustError, match=r"root 1 is not the one that .*trusted-root.json remembers"):
            work()
    _, staged = add_release(opened.repository, opened.signing(opened.offline), bundle, Wishes())
    signed = opened.repository.staged.read("targets", Targets, staged.version)
    assert planted in signed.signed.targets, "what it is good for: nothing else would have noticed"


def test_an_older_copy_than_the_holder_of_the_keys_has_seen_is_refused(opened: Site) -> None:
    remembered = Repository(opened.repository.folder, Pin(opened.offline))
    assert "trusted-root.json: root 1 is remembered" in remember(remembered)
    copied = shutil.copytree(opened.repository.folder, opened.folder / "copy")
    change_keys(remembered, opened.signing(), Change())
    opened.publish()
    assert remember(remembered) == ""
    renew_targets(remembered, opened.signing(opened.offline))
    restore(opened.repository.folder, copied)
    with pytest.raises(TrustError, match=r"lacks root 2 that .* remembers"):
        renew_targets(remembered, opened.signing(opened.offline))


def test_the_first_root_is_remembered_before_it_is_let_out(site: Site, tmp_path: Path) -> None:
    remembered = Repository(site.repository.folder, Pin(site.offline))
    create_repository(remembered, site.signing(site.offline), site.publics, THRESHOLDS)
    remember(remembered)
    thief = Site(tmp_path / "thief")
    thief.server.server_close()
    create_repository(thief.repository, thief.signing(), thief.publics, THRESHOLDS)
    shutil.copytree(thief.repository.staged.folder, site.repository.staged.folder, dirs_exist_ok=True)
    with pytest.raises(TrustError, match="root 1 is not the one"):
        add_signatures(remembered, site.signing())


def test_what_somebody_else_staged_is_not_built_on(opened: Site) -> None:
    path = opened.release("1.0.0")
    version = opened.repository.staged_version("targets", 1)
    staged = opened.repository.staged.read("targets", Targets, version)
    staged.signed.targets["pose/planted.tar.zst"] = staged.signed.targets[path]
    opened.repository.staged.write(staged)
    with pytest.raises(TrustError, match=f"targets {version} carries no good signature"):
        opened.release("1.1.0")
    with pytest.raises(TrustError, match="carries no good signature"):
        change_keys(opened.repository, opened.signing(), Change((), [("root", opened.keyid("root"))]))


def stage_root(site: Site, thief: PublicKey) -> None:
    """What whoever can write into `staged/` is able to do without any key: the next root, which names one of his own."""
    root = Metadata(copy.deepcopy(site.repository_root()))
    root.signed.version += 1
    root.signed.add_key(thief.key, "targets")
    site.repository.staged.write(root)


def test_a_root_that_somebody_else_staged_is_not_built_on(opened: Site, tmp_path: Path) -> None:
    stage_root(opened, create_key(tmp_path / "thief", "targets", None))
    new = create_key(opened.folder / "new", "timestamp", None)
    rotation = Change([new], [("timestamp", opened.keyid("timestamp"))])
    for work in (
        lambda: change_keys(opened.repository, opened.signing(), rotation),
        lambda: change_keys(opened.repository, opened.signing(), Change()),
        lambda: renew_targets(opened.repository, opened.signing()),
        opened.release,
        lambda: newest_root(opened.repository),
    ):
        with pytest.raises(TrustError, match=r"root 2 carries no good signature \(hint: look at it, then .*--staged"):
            work()
    add_signatures(opened.repository, opened.signing())  # who has looked at it may say so
    assert all(one.complete for one in change_keys(opened.repository, opened.signing(), rotation))


def test_a_key_that_only_a_planted_root_names_signs_no_list(opened: Site, tmp_path: Path) -> None:
    thief = create_key(tmp_path / "thief", "targets", None)
    stage_root(opened, thief)
    state = opened.repository.published()
    assert state
    assert state.targets
    planted = Metadata(copy.deepcopy(state.targets.signed))
    planted.signed.version += 1
    (signer,) = KeyRing([tmp_path / "thief"], NoPassphrases()).signers([thief.keyid])
    planted.sign(signer)
    opened.repository.staged.write(planted)
    with pytest.raises(TrustError, match="targets 2 carries no good signature"):
        opened.release()
    (opened.repository.staged.metadata / "2.root.json").unlink()
    with pytest.raises(TrustError, match="targets 2: too few signatures"):
        opened.publish()


def test_a_threshold_above_the_number_of_keys(site: Site) -> None:
    with pytest.raises(DataError, match="root: a threshold of 4 needs as many keys, there are 3"):
        create_repository(site.repository, site.signing(), site.publics, {"root": 4})


def test_a_second_ceremony_does_not_overwrite_the_first(opened: Site) -> None:
    with pytest.raises(DataError, match="there is a repository already"):
        create_repository(opened.repository, opened.signing(), opened.publics, THRESHOLDS)


def test_numbers_only_rise(opened: Site) -> None:
    first = opened.release("1.0.0")
    opened.publish()
    withdraw(opened.repository, opened.signing(opened.offline), [first])
    opened.publish()
    with pytest.raises(DataError, match="no target"):
        opened.device().find(first)
    second = opened.release("0.9.0")
    opened.publish()
    assert opened.device().find(second).release.number == 2  # withdrawing 1 did not free its number


def test_several_releases_in_one_publication(opened: Site) -> None:
    paths = [opened.release("1.0.0"), opened.release("1.1.0")]
    opened.publish()
    device = opened.device()
    assert [device.find(path).release.number for path in paths] == [1, 2]


def test_the_same_version_is_not_signed_twice(opened: Site) -> None:
    path = opened.release("1.0.0")
    opened.publish()
    bundle = opened.folder / "bundle-1.0.0"
    signing = opened.signing(opened.offline)
    with pytest.raises(DataError, match="signed already"):
        add_release(opened.repository, signing, bundle, Wishes())
    add_release(opened.repository, signing, bundle, Wishes(), again=True)
    opened.publish()
    assert opened.device().find(path).release.number == 2
    other = make_bundle(opened.folder / "other", golden=False, version="1.0.0", licence="MIT")
    with pytest.raises(DataError, match="with other bytes"):
        add_release(opened.repository, signing, other, Wishes(), again=True)


def test_carried_over_on_a_stick(opened: Site, tmp_path: Path) -> None:
    """The release machine never sees the server: a copy of metadata/ goes there, staged/ comes back."""
    stick = Repository(tmp_path / "stick")
    shutil.copytree(opened.repository.metadata, stick.metadata)
    bundle = make_bundle(tmp_path / "bundle", golden=False)
    packed, _ = add_release(stick, opened.signing(opened.offline), bundle, Wishes())
    publish(opened.repository, opened.signing(opened.online), Layout(stick.staged.folder))
    opened.device().find(packed.release.path)
    with pytest.raises(DataError, match="nothing is staged"):
        publish(opened.repository, opened.signing(opened.online), Layout(stick.staged.folder))


def test_made_from_an_old_copy(opened: Site, tmp_path: Path) -> None:
    stick = Repository(tmp_path / "stick")
    shutil.copytree(opened.repository.metadata, stick.metadata)
    renew_targets(stick, opened.signing(opened.offline))
    opened.release()
    opened.publish()
    with pytest.raises(DataError, match="nothing is staged"):
        publish(opened.repository, opened.signing(opened.online), Layout(stick.staged.folder))


def test_other_bytes_than_signed_are_not_published(opened: Site) -> None:
    opened.release()
    (file,) = opened.repository.staged.targets.rglob("*.zst")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(TrustError, match="not the bytes that are signed"):
        opened.publish()
    file.unlink()
    with pytest.raises(DataError, match="its bytes are missing"):
        opened.publish()
    assert opened.repository.releases() == []


# --- a publication that is cut off ------------------------------------------------------------------------------------


class CutOffError(BaseException):
    """The power is gone."""


def test_a_publication_cut_off_at_any_point_leaves_a_whole_repository(
    opened: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a release and new keys for every role but the root at once, the worst of cases."""
    first = opened.release("1.0.0")
    opened.publish()
    before = opened.folder / "before"
    change = Change([create_key(opened.online, role, None) for role in ("snapshot", "timestamp")])
    remove: list[tuple[Role, str]] = [(role, opened.keyid(role)) for role in ("snapshot", "timestamp")]
    change_keys(opened.repository, opened.signing(opened.offline), Change(change.add, remove))
    second = opened.release("2.0.0")
    shutil.copytree(opened.repository.folder, before)
    for cut in range(20):
        shutil.rmtree(opened.repository.folder)
        shutil.copytree(before, opened.repository.folder)
        old_device = opened.device(f"old{cut}")
        old_device.refresh()
        with monkeypatch.context() as patch:
            done = _cut_off_after(patch, cut, opened)
        fresh = opened.device(f"new{cut}")
        for device in (old_device, fresh):  # each finds a repository that holds, old or new
            assert device.find(first).release.version == "1.0.0"
        if done:
            assert fresh.find(second).release.version == "2.0.0"
            assert cut >= 5
            return
        _again(opened)
        assert old_device.find(second).release.version == "2.0.0"
    pytest.fail("never came to the end")


def _again(site: Site) -> None:
    """A second try goes through, unless the first one had got as far as to be done."""
    with contextlib.suppress(DataError):
        site.publish()


def _cut_off_after(patch: pytest.MonkeyPatch, count: int, site: Site) -> bool:
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CutOffError

    write, copy = Repository.write, publishing.copy_durably

    def cut_write(self: Repository, metadata: object) -> Path:
        step()
        return write(self, metadata)  # type: ignore[arg-type]

    def cut_copy(source: Path, file: Path) -> None:
        step()
        copy(source, file)

    patch.setattr(Repository, "write", cut_write)
    patch.setattr(publishing, "copy_durably", cut_copy)
    try:
        site.publish()
    except CutOffError:
        return False
    return True


def test_two_publications_at_once(opened: Site) -> None:
    opened.release()
    with locked(opened.repository.folder), pytest.raises(TransientError, match="another process"):
        opened.publish()


# --- expiry and renewal -----------------------------------------------------------------------------------------------


def test_a_timer_renews_what_is_half_gone_and_nothing_else(opened: Site) -> None:
    opened.release()  # staged things are not for the timer to let out

    def after(days: float) -> list[str]:
        return renew(opened.repository, opened.signing(opened.online, now=NOW + timedelta(days=days))).written

    assert after(1) == []
    assert after(1.6) == ["metadata/timestamp.json"]
    assert after(1.7) == []
    assert after(7.1) == ["metadata/2.snapshot.json", "metadata/timestamp.json"]
    assert opened.repository.releases() == []


def test_what_is_signed_offline_is_warned_of_in_time(opened: Site) -> None:
    def warnings(days: float) -> tuple[str, bool]:
        done = renew(opened.repository, opened.signing(opened.online, now=NOW + timedelta(days=days)))
        return "\n".join(done.warnings), done.expired

    assert warnings(140) == ("", False)
    text, expired = warnings(160)
    assert "targets expires on" in text
    assert "sign --renew" in text
    assert not expired
    text, expired = warnings(181)
    assert "targets has EXPIRED" in text
    assert expired


def test_renewed_targets_and_root_hold_longer(opened: Site) -> None:
    later = NOW + timedelta(days=100)
    renew_targets(opened.repository, opened.signing(opened.offline, now=later))
    change_keys(opened.repository, opened.signing(opened.offline, now=later), Change())
    opened.publish()
    state = opened.repository.published()
    assert state
    assert state.targets
    assert state.root.signed.version == 2
    assert state.root.signed.expires > NOW + timedelta(days=460)
    assert state.targets.signed.expires > NOW + timedelta(days=270)
    opened.device().refresh()


def test_expired_targets_are_not_published(opened: Site) -> None:
    opened.release()
    with pytest.raises(TrustError, match="targets 2 expired"):
        publish(opened.repository, opened.signing(opened.online, now=NOW + timedelta(days=200)))


# --- keys that change -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_rotation(opened: Site, role: Role) -> None:
    path = opened.release()
    opened.publish()
    devices = [opened.device("seen"), opened.device("unseen")]
    devices[0].refresh()
    place = opened.offline if role in {"root", "targets"} else opened.online
    new = create_key(place, role, None)
    old = opened.keyid(role)
    staged = change_keys(opened.repository, opened.signing(opened.offline), Change([new], [(role, old[:8])]))
    assert all(one.complete for one in staged)
    opened.publish()
    for device in devices:
        assert device.find(path).release.number == 1
    assert old not in opened.repository_root().roles[role].keyids
    for file in place.glob(f"{role}-{old[:8]}.*"):
        file.unlink()
    opened.release("2.0.0")  # and it goes on without the old key
    opened.publish()
    for device in devices:
        assert device.find("pose/tiny-2.0.0.tar.zst").release.number == 2


def test_a_lost_root_key_is_replaced_by_the_others(opened: Site) -> None:
    """Two of three are enough to put a new one in its place."""
    lost = opened.keyid("root")
    for file in opened.offline.glob(f"root-{lost[:8]}.*"):
        file.unlink()
    new = create_key(opened.offline, "root", None)
    (staged, *_) = change_keys(opened.repository, opened.signing(opened.offline), Change([new], [("root", lost)]))
    assert staged.complete
    opened.publish()
    opened.device().refresh()


def test_two_of_three_root_keys_lost_is_the_end_of_the_repository(opened: Site) -> None:
    """No way round it: devices need a new root of trust by hand. The tools say what is missing."""
    kept = opened.keyid("root")
    for file in opened.offline.glob("root-*"):
        if kept[:8] not in file.name:
            file.unlink()
    new: list[PublicKey] = [create_key(opened.offline, "root", None) for _ in range(2)]
    (staged, *_) = change_keys(opened.repository, opened.signing(opened.offline), Change(new))
    assert not staged.complete
    assert "of the root before it 1, needs 2" in staged.text
    with pytest.raises(TrustError, match="root 2: too few signatures"):
        opened.publish()


def test_a_lost_targets_key(opened: Site) -> None:
    """The root holders name a new one; the list is signed anew with it, the old key is not needed."""
    path = opened.release()
    opened.publish()
    lost = opened.keyid("targets")
    for file in opened.offline.glob("targets-*"):
        file.unlink()
    new = create_key(opened.offline, "targets", None)
    staged = change_keys(opened.repository, opened.signing(opened.offline), Change([new], [("targets", lost)]))
    assert [one.role for one in staged] == ["root", "targets"]
    assert all(one.complete for one in staged)
    opened.publish()
    assert opened.device().find(path).release.number == 1


def test_a_stolen_targets_key_is_worth_nothing_after_its_revocation(opened: Site, tmp_path: Path) -> None:
    path = opened.release()
    opened.publish()
    stolen = tmp_path / "thief"
    stolen.mkdir()
    old = opened.keyid("targets")
    for file in list(opened.offline.glob(f"targets-{old[:8]}.*")):
        shutil.move(file, stolen)
    new = create_key(opened.offline, "targets", None)
    change_keys(opened.repository, opened.signing(opened.offline), Change([new], [("targets", old)]))
    opened.publish()
    device = opened.device()
    device.refresh()
    bundle = make_bundle(tmp_path / "evil", golden=False, version="6.6.6")
    with pytest.raises(DataError, match="none of the keys given"):
        add_release(opened.repository, opened.signing(stolen), bundle, Wishes())
    assert device.find(path).release.number == 1


def test_a_key_that_is_not_there_is_not_revoked(opened: Site) -> None:
    with pytest.raises(DataError, match="targets has no key 'ffff"):
        change_keys(opened.repository, opened.signing(opened.offline), Change((), [("targets", "ffffffff")]))


def test_the_last_key_of_a_role_is_not_revoked(opened: Site) -> None:
    with pytest.raises(DataError, match="a threshold of 1 needs as many keys, there are 0"):
        change_keys(
            opened.repository, opened.signing(opened.offline), Change((), [("timestamp", opened.keyid("timestamp"))])
        )


def test_a_replaced_server_goes_on_from_the_files(opened: Site, tmp_path: Path) -> None:
    """The repository is its files: on another machine, with new online keys, devices notice nothing."""
    path = opened.release()
    opened.publish()
    device = opened.device()
    device.refresh()
    shutil.rmtree(opened.online)
    new = [create_key(opened.online, role, None) for role in ("snapshot", "timestamp")]
    remove: list[tuple[Role, str]] = [(role, opened.keyid(role)) for role in ("snapshot", "timestamp")]
    change_keys(opened.repository, opened.signing(opened.offline), Change(new, remove))
    opened.publish()
    assert device.find(path).release.number == 1


def test_a_tampered_repository_is_noticed_by_the_tools(opened: Site) -> None:
    file = opened.repository.metadata / "1.root.json"
    content = json.loads(file.read_bytes())
    content["signed"]["expires"] = "2099-01-01T00:00:00Z"
    file.write_text(json.dumps(content))
    with pytest.raises(TrustError, match="root 1: too few signatures"):
        opened.repository.published()


def test_a_device_refuses_a_list_that_a_stranger_published(opened: Site, tmp_path: Path) -> None:
    """The whole server taken over, online keys included, and a list of the thief's own."""
    evil = Site(tmp_path / "evil")
    evil.ceremony()
    evil.release("6.6.6")
    evil.publish()
    device = opened.device()
    device.refresh()
    for file in evil.repository.metadata.glob("*.json"):
        shutil.copy(file, opened.repository.metadata / file.name)
    with pytest.raises(UntrustedError) as caught:
        device.find("pose/tiny-6.6.6.tar.zst")
    assert caught.value.reason == "signature"
    evil.server.shutdown()
    evil.server.server_close()
