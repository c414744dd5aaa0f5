"""Who may sign what: the first root of a repository, and every change of its keys. Results are staged; `publish` lets them out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuf.api.metadata import Metadata, Root, Targets

from agent.errors import DataError, TrustError
from ota.release.keys import ROLES, PublicKey, Role
from ota.release.repository import NUMBERS, Repository, Signing, State, count, is_signed, missing, numbers

_LOOK = "hint: look at it, then `recognizer-fleet sign --staged`; or delete it"


@dataclass(frozen=True, slots=True)
class Staged:
    """What was written. complete: it has the signatures that it needs; text: what it has, for people."""

    role: Role
    version: int
    complete: bool
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """Of a root: keys to add, keys to remove (role, and the key id or its beginning), thresholds. Empty = only a new expiry."""

    add: Sequence[PublicKey] = ()
    remove: Sequence[tuple[Role, str]] = ()
    thresholds: Mapping[Role, int] | None = None


def create_repository(
    repository: Repository, signing: Signing, publics: Sequence[PublicKey], thresholds: Mapping[Role, int]
) -> list[Staged]:
    """Root 1 and an empty targets 1. publics: every key that root 1 names, by the roles they were made for.

    Raises DataError (there is a repository, a role has fewer keys than its threshold), ConfigError, OSError.
    """
    require_new(repository)
    root = Root(version=1, expires=signing.until("root"), consistent_snapshot=True)
    for role in ROLES:
        for public in publics:
            if public.role == role:
                root.add_key(public.key, role)
        _set_threshold(root, role, thresholds.get(role, 1))
    metadata = Metadata(root)
    signing.sign(metadata, "root", metadata)
    targets = Metadata(Targets(version=1, expires=signing.until("targets"), unrecognized_fields={NUMBERS: {}}))
    signing.sign(targets, "targets", metadata)
    repository.staged.write(metadata)
    repository.staged.write(targets)
    return [staged_root(metadata, None), staged_targets(metadata, targets)]


def change_keys(repository: Repository, signing: Signing, change: Change) -> list[Staged]:
    """The next root, signed with the keys here that the root before it or itself names.

    When it takes signatures from the targets metadata, that is signed anew by those that are here, old and new.
    Raises DataError, TrustError (the published list is not as it was signed; nobody has signed what is staged), ConfigError, OSError.
    """
    state = require_published(repository)
    metadata = _next_root(repository, state.root)
    root = metadata.signed
    root.expires = signing.until("root")
    for public in change.add:
        root.add_key(public.key, public.role)
    for role, keyid in change.remove:
        _revoke(root, role, keyid)
    for role in ROLES:
        _set_threshold(root, role, (change.thresholds or {}).get(role, root.roles[role].threshold))
    metadata.signatures.clear()
    signing.sign(metadata, "root", state.root, metadata)
    repository.staged.write(metadata)
    staged = [staged_root(metadata, state.root)]
    targets = next_targets(repository)
    if not is_signed(metadata, "targets", _newest_targets(repository, state)):
        targets.signed.expires = signing.until("targets")
        targets.signatures.clear()
        signing.sign(targets, "targets", state.root, metadata)
        repository.staged.write(targets)
        staged.append(staged_targets(metadata, targets))
    return staged


def add_signatures(repository: Repository, signing: Signing) -> list[Staged]:
    """Sign what is staged with the keys here, beside the signatures that it has. Raises DataError when nothing is staged."""
    published = repository.published()
    before = published.root if published else None
    root, staged = _root_as_it_lies(repository, published), []
    if before is None or root.signed.version > before.signed.version:
        signing.sign(root, "root", before, root)
        repository.staged.write(root)
        staged.append(staged_root(root, before))
    version = repository.staged_version("targets", _version(published))
    if version:
        targets = repository.staged.read("targets", Targets, version)
        signing.sign(targets, "targets", before, root)
        repository.staged.write(targets)
        staged.append(staged_targets(root, targets))
    if not staged:
        raise DataError(f"{repository.staged.folder}: nothing is staged")
    return staged


def next_targets(repository: Repository) -> Metadata[Targets]:
    """The targets metadata to be changed: what is staged already, or a copy of the published one with the next version.

    Raises TrustError (that one is not as it was signed), DataError."""
    state = repository.published()
    newest = _newest_targets(repository, state)
    if newest.signed.version > _version(state):
        return newest
    targets = Metadata(copy.deepcopy(newest.signed))
    targets.signed.version += 1
    targets.signed.unrecognized_fields[NUMBERS] = numbers(targets.signed)
    return targets


def newest_root(repository: Repository) -> Metadata[Root]:
    """The staged root, else the published one. Raises TrustError (none of the published root keys has signed it), DataError."""
    state = repository.published()
    root = _root_as_it_lies(repository, state)
    if not _may_be_built_on(state, root):
        raise TrustError(f"{repository.staged.folder}: root {root.signed.version} carries no good signature ({_LOOK})")
    return root


def remember(repository: Repository) -> str:
    """Keep the newest root that holds beside the keys; what to say when it is the first. Raises OSError, TrustError, DataError."""
    state = repository.published()
    root = state.root if state is not None else newest_root(repository)
    if not repository.pin.keep(root):
        return ""
    return f"{repository.pin.file}: root {root.signed.version} is remembered; what does not follow it will be refused"


def require_new(repository: Repository) -> None:
    """Raises DataError when there is one."""
    if repository.versions("root") or repository.staged.versions("root"):
        raise DataError(f"{repository.folder}: there is a repository already")


def require_published(repository: Repository) -> State:
    """What clients see. Raises DataError when that is nothing."""
    state = repository.published()
    if state is None:
        hint = "`recognizer-fleet keys ceremony`, then `publish`; or bring metadata/ here from where it is published"
        raise DataError(f"{repository.folder}: nothing is published there yet (hint: {hint})")
    return state


def staged_root(root: Metadata[Root], before: Metadata[Root] | None) -> Staged:
    """How far the signatures of a root are."""
    result = root.signed.get_root_verification_result(
        before.signed if before else None, root.signed_bytes, root.signatures
    )
    return Staged("root", root.signed.version, result.verified, missing(root, before))


def staged_targets(root: Metadata[Root], targets: Metadata[Targets]) -> Staged:
    """How far the signatures of targets metadata are."""
    complete = is_signed(root, "targets", targets)
    return Staged("targets", targets.signed.version, complete, count(root, "targets", targets))


def _version(state: State | None) -> int:
    return state.targets.signed.version if state and state.targets else 0


def _newest_targets(repository: Repository, state: State | None) -> Metadata[Targets]:
    version = repository.staged_version("targets", _version(state))
    if version:
        return _staged_targets(repository, state, version)
    state = state or require_published(repository)
    if state.targets is None:
        raise DataError(f"{repository.folder}: has no targets metadata (hint: `recognizer-fleet publish`)")
    # It comes from the server: what was put in there must not be signed along.
    if not is_signed(state.root, "targets", state.targets):
        signed = (
            f"targets {state.targets.signed.version}, good signatures: {count(state.root, 'targets', state.targets)}"
        )
        hint = "somebody has changed it: bring back a copy of metadata/, and rotate the online keys"
        raise TrustError(f"{repository.folder}: the published list is not as it was signed: {signed} (hint: {hint})")
    return state.targets


def _staged_targets(repository: Repository, state: State | None, version: int) -> Metadata[Targets]:
    """What is staged lies beside what is published: somebody who may sign must have signed what is built on."""
    targets = repository.staged.read("targets", Targets, version)
    for root in (_root_as_it_lies(repository, state), *([state.root] if state is not None else [])):
        result = root.signed.get_verification_result("targets", targets.signed_bytes, targets.signatures)
        if result.signed and _may_be_built_on(state, root):
            return targets
    raise TrustError(f"{repository.staged.folder}: targets {version} carries no good signature ({_LOOK})")


def _root_as_it_lies(repository: Repository, state: State | None) -> Metadata[Root]:
    """The staged root, whoever laid it there, else the published one. Raises TrustError (not the one remembered), DataError."""
    version = repository.staged_version("root", state.root.signed.version if state else 0)
    if not version:
        return require_published(repository).root
    root = repository.staged.read("root", Root, version)
    if state is None and (known := repository.pin.read()) is not None:
        repository.pin.require(known, root)
    return root


def _may_be_built_on(state: State | None, root: Metadata[Root]) -> bool:
    """Has a published root key signed `root`? Whoever can write into `staged/` could lay down one that names his own keys."""
    if state is None:
        return True  # none is published yet
    return bool(state.root.signed.get_verification_result("root", root.signed_bytes, root.signatures).signed)


def _next_root(repository: Repository, published: Metadata[Root]) -> Metadata[Root]:
    newest = newest_root(repository)
    if newest.signed.version > published.signed.version:
        return newest
    root = Metadata(copy.deepcopy(published.signed))
    root.signed.version += 1
    return root


def _revoke(root: Root, role: Role, keyid: str) -> None:
    keyids = root.roles[role].keyids
    full = [known for known in keyids if known.startswith(keyid)]
    if len(full) != 1:
        known = ", ".join(key[:8] for key in keyids)
        raise DataError(f"{role} has {'no' if not full else 'more than one'} key {keyid!r} (it has {known})")
    root.revoke_key(full[0], role)


def _set_threshold(root: Root, role: Role, threshold: int) -> None:
    found = len(root.roles[role].keyids)
    if not 1 <= threshold <= found:
        raise DataError(f"{role}: a threshold of {threshold} needs as many keys, there are {found}")
    root.roles[role].threshold = threshold
