"""Signing keys in files: Ed25519, PKCS#8 PEM, 0600, those of the offline roles encrypted with a passphrase.

<role>-<first 8 digits of the key id>.pem    the private key
<role>-<first 8 digits of the key id>.json   its public half: what other people get, and what a root names
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.exceptions import KeyMismatchError
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from agent.durable import write_durably
from agent.errors import ConfigError, ConfigProblem
from agent.private_files import read_private

Role = Literal["root", "targets", "snapshot", "timestamp"]
ROLES: tuple[Role, ...] = get_args(Role)
OFFLINE: frozenset[Role] = frozenset({"root", "targets"})
"""Their keys never lie on a server."""


class Passphrases(Protocol):
    """Where passphrases come from."""

    def new(self, title: str) -> bytes:
        """For a key that is being made. Raises ConfigError."""
        ...

    def known(self, file: Path) -> Iterator[bytes]:
        """What may open `file`, one after the other."""
        ...


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half with the role that it was made for."""

    role: Role
    key: Key

    @property
    def keyid(self) -> str:
        return str(self.key.keyid)

    @property
    def stem(self) -> str:
        """Of its files."""
        return f"{self.role}-{self.keyid[:8]}"


def create_key(folder: Path, role: Role, passphrase: bytes | None) -> PublicKey:
    """A new key in `folder` (made if need be, 0700). passphrase: None = not encrypted. Raises OSError."""
    private = Ed25519PrivateKey.generate()
    public = PublicKey(role, SSlibKey.from_crypto(private.public_key()))
    encryption: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(folder / f"{public.stem}.pem", pem, 0o600)
    content = {"role": role, "keyid": public.keyid, "key": public.key.to_dict()}
    write_durably(folder / f"{public.stem}.json", json.dumps(content, indent=2).encode() + b"\n")
    return public


def read_public(file: Path) -> PublicKey:
    """A public half that `create_key` wrote. Raises ConfigError."""
    try:
        content = json.loads(file.read_bytes())
        role, keyid = content["role"], content["keyid"]
        key = Key.from_dict(keyid, content["key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "the .json file beside a key that `recognizer-fleet keys create` made"
        raise ConfigError([ConfigProblem(f"no public key: {error}", file=str(file), hint=hint)]) from error
    if role not in ROLES:
        raise ConfigError([ConfigProblem(f"role {role!r} is none of {', '.join(ROLES)}", file=str(file))])
    return PublicKey(role, key)


class KeyRing:
    """The private keys that are here. places: key files, or folders with them; credentials: systemd's folder, if there is one.

    Raises ConfigError: a place is missing, a file is open to others, or no key.
    """

    def __init__(self, places: Sequence[Path], passphrases: Passphrases, credentials: Path | None = None) -> None:
        self._passphrases = passphrases
        self._files: dict[str, tuple[Path, bytes, PublicKey]] = {}
        self._opened: dict[str, CryptoSigner] = {}
        for place in places:
            for file in _key_files(place):
                content = read_secret(file, credentials)
                public = self._public(file, content)
                self._files[public.keyid] = (file, content, public)

    @property
    def publics(self) -> list[PublicKey]:
        """Of all keys here, by role and key id."""
        return sorted((public for _, _, public in self._files.values()), key=lambda public: public.stem)

    def signers(self, keyids: Iterable[str]) -> list[CryptoSigner]:
        """Of those of `keyids` that are here. Raises ConfigError when one cannot be opened."""
        return [self._signer(keyid) for keyid in dict.fromkeys(keyids) if keyid in self._files]

    def _signer(self, keyid: str) -> CryptoSigner:
        if keyid not in self._opened:
            file, content, public = self._files[keyid]
            private = self._private(file, content)
            try:
                self._opened[keyid] = CryptoSigner(private, cast("SSlibKey", public.key))
            except KeyMismatchError as error:
                problem = f"is not the key that {file.stem}.json beside it names"
                raise ConfigError([ConfigProblem(problem, file=str(file))]) from error
        return self._opened[keyid]

    def _public(self, file: Path, content: bytes) -> PublicKey:
        beside = file.with_suffix(".json")
        if beside.exists():
            return read_public(beside)
        role = file.stem.partition("-")[0]
        if role not in ROLES:
            hint = "<role>-<key id>.pem, as `recognizer-fleet keys create` names it"
            raise ConfigError(
                [ConfigProblem("the name of the key file does not begin with a role", str(file), hint=hint)]
            )
        return PublicKey(role, SSlibKey.from_crypto(self._private(file, content).public_key()))

    def _private(self, file: Path, content: bytes) -> Ed25519PrivateKey:
        try:
            return _ed25519(content, None, file)
        except TypeError:  # encrypted
            pass
        for passphrase in self._passphrases.known(file):
            try:
                return _ed25519(content, passphrase, file)
            except ValueError:  # not this one
                continue
        hint = "--passphrase-file FILE, or a terminal to ask at"
        raise ConfigError([ConfigProblem("no passphrase given opens this key", file=str(file), hint=hint)])


def read_secret(file: Path, credentials: Path | None) -> bytes:
    """A file for its owner alone, without white space around it. Raises ConfigError."""
    try:
        return read_private(file, credentials).encode()
    except PermissionError as error:
        raise ConfigError([ConfigProblem(str(error), file=str(file), hint=f"chmod 600 {file}")]) from error
    except (OSError, ValueError) as error:
        raise ConfigError([ConfigProblem(f"cannot be read: {error}", file=str(file))]) from error


def _key_files(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(place.glob("*.pem"))
    if not place.is_file():
        raise ConfigError([ConfigProblem("no such key file or folder", file=str(place))])
    return [place]


def _ed25519(content: bytes, passphrase: bytes | None, file: Path) -> Ed25519PrivateKey:
    """Raises TypeError (encrypted), ValueError (wrong passphrase), ConfigError."""
    try:
        private = load_pem_private_key(content, passphrase)
    except ValueError as error:
        if passphrase is None:
            raise ConfigError([ConfigProblem("no private key in PEM", file=str(file))]) from error
        raise
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError([ConfigProblem("no Ed25519 key", file=str(file))])
    return private
