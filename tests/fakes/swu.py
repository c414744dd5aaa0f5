"""A signed `.swu` image for SWUpdate: a cpio archive with a description that SWUpdate's Debian build accepts."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

OPENSSL = shutil.which("openssl")
HARDWARE = "board:1.0"


def make_swu(folder: Path, payload: bytes, installed: Path) -> tuple[bytes, Path]:
    """The image, which puts `payload` into the file `installed`, and the certificate that it is signed for."""
    certificate, key = folder / "signer.pem", folder / "signer.key"
    _openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=signer", "-keyout", str(key),
        "-out", str(certificate), "-addext", "extendedKeyUsage=emailProtection", "-addext", "keyUsage=digitalSignature",
    )  # fmt: skip
    description, signature = folder / "sw-description", folder / "sw-description.sig"
    digest = hashlib.sha256(payload).hexdigest()
    description.write_text(
        'software = { version = "1.0.0"; hardware-compatibility: [ "1.0" ];'
        f' files: ( {{ filename = "payload"; path = "{installed}"; type = "rawfile"; sha256 = "{digest}"; }} ); }}\n'
    )
    _openssl(
        "cms", "-sign", "-in", str(description), "-out", str(signature), "-signer", str(certificate), "-inkey", str(key),
        "-outform", "DER", "-nosmimecap", "-binary",
    )  # fmt: skip
    files = (
        (description.name, description.read_bytes()),
        (signature.name, signature.read_bytes()),
        ("payload", payload),
    )
    entries = [_cpio(number, name, content) for number, (name, content) in enumerate(files, 1)]
    return b"".join(entries) + _cpio(0, "TRAILER!!!", b""), certificate


def _openssl(*arguments: str) -> None:
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *arguments], check=True, capture_output=True)


def _cpio(number: int, name: str, content: bytes) -> bytes:
    """An entry of the `crc` format: eight-digit hexadecimal fields, names and contents padded to four bytes."""
    fields = (number, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, sum(content) & 0xFFFFFFFF)
    head = "070702" + "".join(f"{field:08x}" for field in fields) + name + "\0"
    padded = head.encode() + b"\0" * (-len(head) % 4)
    return padded + content + b"\0" * (-len(content) % 4)
