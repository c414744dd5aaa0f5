"""Compression and signature: undone by the standard tools alone, the same bytes each time, nothing gained nothing changed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import os
import zlib
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agent.config.delivery import MqttConfig
from agent.errors import ConfigError, DataError
from agent.mqtt.seal import Seal, is_signed, unpack
from agent.ports import Envelope

KEY = b"0123456789abcdef0123456789abcdef"
PLAIN = Envelope(
    "application/cloudevents+json", utf8=True, expiry_s=60, user_properties=(("id", "e1"), ("lane", "alarm"))
)
EVENT = json.dumps({"id": "e1", "data": {f"field_{n}": n for n in range(60)}}).encode()
UNDO = {"deflate": zlib.decompress, "gzip": gzip.decompress}


def property_of(envelope: Envelope, name: str) -> str:
    return dict(envelope.user_properties).get(name, "")


@pytest.mark.parametrize("compression", ["deflate", "gzip"])
def test_a_compressed_event_is_smaller_and_says_how_to_undo_it(compression: str) -> None:
    payload, envelope = Seal(compression)(EVENT, PLAIN)
    assert len(payload) < len(EVENT) / 2
    assert UNDO[compression](payload) == EVENT
    assert unpack(payload, property_of(envelope, "content-encoding")) == EVENT
    assert property_of(envelope, "content-encoding") == compression
    assert (envelope.content_type, envelope.utf8, envelope.expiry_s) == (PLAIN.content_type, False, 60)
    assert envelope.user_properties[:2] == PLAIN.user_properties


@given(st.binary(max_size=2000), st.sampled_from(["none", "deflate", "gzip"]), st.booleans())
def test_whatever_is_sealed_can_be_opened_and_is_never_larger(content: bytes, compression: str, signed: bool) -> None:
    seal = Seal(compression, KEY if signed else None, "box")
    payload, envelope = seal(content, PLAIN)
    assert (payload, envelope) == seal(content, PLAIN)
    assert (payload, envelope) == Seal(compression, KEY if signed else None, "box")(content, PLAIN)
    encoding = property_of(envelope, "content-encoding")
    assert unpack(payload, encoding) == content
    if encoding:
        assert len(payload) + len("content-encoding") + len(encoding) + 5 < len(content)
        assert len(content) >= 256
    else:
        assert payload == content
        assert envelope.utf8
    signature = property_of(envelope, "signature")
    assert bool(signature) is signed
    if signed:
        assert is_signed(content, signature, KEY)


def test_the_signature_is_one_that_another_library_checks() -> None:
    _, envelope = Seal("gzip", KEY, "gate-1")(EVENT, PLAIN)
    signature = property_of(envelope, "signature")
    checked = jwt.PyJWS().decode_complete(signature, KEY, algorithms=["HS256"], detached_payload=EVENT)
    assert checked["header"] == {"alg": "HS256", "b64": False, "crit": ["b64"], "kid": "gate-1"}
    for key, content in ((b"x" * 32, EVENT), (KEY, EVENT + b" ")):
        assert not is_signed(content, signature, key)
        with pytest.raises(jwt.InvalidSignatureError):
            jwt.PyJWS().decode_complete(signature, key, algorithms=["HS256"], detached_payload=content)


@pytest.mark.parametrize("signature", ["", "..", "x", "a..b", "bnVsbA..", "e30..x", "\u00e9..\u00e9"])
def test_nonsense_is_no_signature(signature: str) -> None:
    assert not is_signed(EVENT, signature, KEY)


def test_a_header_that_no_parser_gets_through_is_no_signature() -> None:
    header = base64.urlsafe_b64encode(b"[" * 30_000).rstrip(b"=")
    mac = base64.urlsafe_b64encode(hmac.digest(KEY, header + b"." + EVENT, hashlib.sha256)).rstrip(b"=")
    for made in (mac, b"AAAA"):
        assert not is_signed(EVENT, (header + b".." + made).decode(), KEY)


def test_a_signature_of_another_library_is_checked_and_another_algorithm_refused() -> None:
    for algorithm, good in (("HS256", True), ("HS384", False)):
        key = KEY + KEY
        token = jwt.PyJWS().encode(EVENT, key, algorithm=algorithm, is_payload_detached=True)
        assert is_signed(EVENT, token, key) is good
    assert not is_signed(EVENT, jwt.PyJWS().encode(EVENT, KEY, algorithm="HS256"), KEY)


def test_what_cannot_be_undone_is_a_data_error() -> None:
    packed = zlib.compress(b"x" * 1000)
    for payload, encoding, match in (
        (packed, "br", "not known"),
        (b"nonsense", "deflate", "damaged"),
        (packed[:-3], "deflate", "cut short"),
        (zlib.compress(b"x" * 10_000_000), "deflate", "more than"),
    ):
        with pytest.raises(DataError, match=match):
            unpack(payload, encoding, 1_000_000)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(KEY + b"\n")
    file.chmod(0o600)
    seal = Seal.of(MqttConfig(signing_key_file=file), "box")
    assert is_signed(EVENT, property_of(seal(EVENT, PLAIN)[1], "signature"), KEY)
    for mode in (0o604, 0o620, 0o602):
        file.chmod(mode)
        with pytest.raises(ConfigError, match=r"signing_key_file.*others"):
            Seal.of(MqttConfig(signing_key_file=file), "box")
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(ConfigError, match="32"):
        Seal.of(MqttConfig(signing_key_file=file), "box")
    with pytest.raises(ConfigError, match="cannot read"):
        Seal.of(MqttConfig(signing_key_file=tmp_path / "absent"), "box")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_bytes(KEY)
    file.chmod(0o600)
    os.chown(file, 12345, 12345)
    with pytest.raises(ConfigError, match="another user"):
        Seal.of(MqttConfig(signing_key_file=file), "box")


def test_mqtt_3_1_1_cannot_say_that_something_is_compressed_or_signed(tmp_path: Path) -> None:
    for key, value in (("compression", "gzip"), ("signing_key_file", str(tmp_path / "key"))):
        with pytest.raises(ValidationError, match="need protocol 5"):
            MqttConfig.model_validate({"protocol": "3.1.1", key: value})
