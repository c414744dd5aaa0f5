"""A throw-away certificate authority: certificates of any name, time and signer, as PEM files."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
PLAIN = NoEncryption()


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, mode 0600."""

    cert: Path
    key: Path

    def put(self, other: Pair) -> None:
        """The files of `other` take the place of these, as a renewal does it: each in one step."""
        for mine, theirs in ((self.cert, other.cert), (self.key, other.key)):
            part = mine.with_suffix(".part")
            part.write_bytes(theirs.read_bytes())
            part.chmod(0o600)
            part.replace(mine)


class Authority:
    """`ca` is its certificate; `issue` signs others."""

    def __init__(self, folder: Path, name: str = "fleet ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        basic = x509.BasicConstraints(ca=True, path_length=None)
        builder = self._builder(self._name, self._key, (-1, 2)).add_extension(basic, critical=True)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(
        self,
        file: str,
        *common: str,
        names: tuple[str, ...] = (),
        days: tuple[float, float] = (-1, 2),
        usage: x509.ObjectIdentifier | None = None,
        self_signed: bool = False,
        passphrase: str = "",
    ) -> Pair:
        """common: names of its subject; names: DNS names and addresses that it is for; days: from now, when it begins and ends."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one) for one in common or (file,)])
        builder = self._builder(subject, key, days, issuer=subject if self_signed else self._name)
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_general(one) for one in names]), critical=False
            )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        certificate = builder.sign(key if self_signed else self._key, hashes.SHA256())
        pair = Pair(self._folder / f"{file}.pem", self._folder / f"{file}.key")
        pair.cert.write_bytes(certificate.public_bytes(Encoding.PEM))
        protection: KeySerializationEncryption = BestAvailableEncryption(passphrase.encode()) if passphrase else PLAIN
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
        return pair

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        days: tuple[float, float],
        issuer: x509.Name | None = None,
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
        )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
