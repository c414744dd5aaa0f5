"""Webhooks: signatures, secrets, status codes one by one, and receivers that misbehave."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hmac
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from fakes.sinks import record
from fakes.webhooks import Answer, code, garbage, hang, receiving, reset, slow_body, slow_headers, verify
from hypothesis import given
from hypothesis import strategies as st

from agent.config.delivery import TlsConfig
from agent.errors import AccessError, BusyError, ConfigError, RejectedError, TransientError, UnexplainedError
from agent.net import tls_client
from agent.sinks.answers import judge, retry_after_s
from agent.sinks.secrets import read_secret
from agent.sinks.signature import parse_secret, signed_headers
from agent.sinks.webhook import WebhookSink

KEY = bytes(range(32))
OLD_KEY = bytes(range(100, 124))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
OLD_SECRET = "whsec_" + base64.b64encode(OLD_KEY).decode()


# --- signature --------------------------------------------------------------------------------------------------------


def test_the_signature_is_that_of_the_published_example() -> None:
    key = parse_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed_headers([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(key=st.binary(min_size=24, max_size=64), body=st.binary(max_size=200), moment=st.integers(0, 1 << 33))
def test_another_implementation_agrees_on_every_body(key: bytes, body: bytes, moment: int) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    headers = signed_headers([parse_secret(secret)], "0189-a", moment, body)
    assert verify(headers, body, secret, moment)
    assert not verify(headers, body + b" ", secret, moment)
    assert not verify(
        headers, body, "whsec_" + base64.b64encode(key[::-1] + b"x" * (key == key[::-1])).decode(), moment
    )
    assert not verify(headers | {"webhook-timestamp": str(moment + 1)}, body, secret, moment)
    assert not verify(headers | {"webhook-id": "0189-b"}, body, secret, moment)


def test_while_keys_change_either_verifies() -> None:
    headers = signed_headers([KEY, OLD_KEY], "a", 1, b"{}")
    assert len(headers["webhook-signature"].split(" ")) == 2
    assert verify(headers, b"{}", SECRET, 1)
    assert verify(headers, b"{}", OLD_SECRET, 1)


def test_the_manuals_ten_lines_verify_it(repo_dir: Path) -> None:
    manual = (repo_dir / "docs/sinks.md").read_text(encoding="utf-8")
    code = manual.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"base64": base64, "hmac": hmac}
    exec(compile(code, "docs/sinks.md", "exec"), names)
    headers = signed_headers([OLD_KEY, KEY], "a", 1000, b"{}")
    assert names["verify"](headers, b"{}", SECRET, 1000)
    assert not names["verify"](headers, b"{} ", SECRET, 1000)
    assert not names["verify"](headers, b"{}", SECRET, 1301)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "ä", "a\nb"])
def test_an_id_that_could_move_the_borders_of_the_signed_text_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="id"):
        signed_headers([KEY], name, 1, b"{}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "starts with"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS!", "base64"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "24 to 64"),
        ("whsec_" + base64.b64encode(b"x" * 65).decode(), "24 to 64"),
    ],
)
def test_a_secret_that_is_none_is_refused_and_not_repeated(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_secret(text)
    assert text[6:] not in str(caught.value)


# --- secrets ----------------------------------------------------------------------------------------------------------


def secret_file(folder: Path, text: str = SECRET + "\n", mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_secret_that_only_the_agent_can_read_is_read(tmp_path: Path, mode: int) -> None:
    assert read_secret(secret_file(tmp_path, mode=mode), "key", None) == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o610])
def test_a_secret_that_others_can_read_is_refused_unless_systemd_guards_it(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path, mode=mode)
    with pytest.raises(ConfigError, match=r"sinks\.a\.secret_files.*others can read.*chmod 600") as caught:
        read_secret(path, "sinks.a.secret_files", None)
    assert SECRET not in str(caught.value)
    assert read_secret(path, "key", tmp_path) == KEY
    with pytest.raises(ConfigError):
        read_secret(path, "key", tmp_path.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = secret_file(tmp_path)
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="another user"):
        read_secret(path, "key", None)


@pytest.mark.parametrize("text", ["", "password", SECRET * 200, "whsec_äöü", SECRET + "\n" + SECRET])
def test_a_file_that_holds_no_secret_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_secret(secret_file(tmp_path, text), "key", None)
    assert not text or text[:20] not in str(caught.value)


def test_no_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_secret(tmp_path / "none", "key", None)
    with pytest.raises(ConfigError):
        read_secret(tmp_path, "key", None)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="not a file"):
        read_secret(tmp_path / "pipe", "key", None)


# --- status codes -----------------------------------------------------------------------------------------------------


def verdict(status: int, retry_after: str = "") -> type[Exception] | None:
    try:
        judge(status, retry_after, 0.0)
    except (TransientError, RejectedError) as error:
        return type(error) if str(status) in str(error) else None
    return None


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        ((200, 201, 202, 204, 299), None),
        ((400, 410, 413, 415, 422), RejectedError),
        ((401, 403, 404, 405, 407), AccessError),
        ((301, 302, 303, 307, 308, 300, 304), AccessError),
        ((408, 425, 429), TransientError),
        ((502, 503, 504, 520, 599, 999), TransientError),
        ((500, 501, 402, 406, 409, 418, 451), UnexplainedError),
    ],
)
def test_each_status_has_its_meaning(statuses: tuple[int, ...], error: type[Exception] | None) -> None:
    assert {status: verdict(status) for status in statuses} == dict.fromkeys(statuses, error)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_time_that_the_receiver_names_is_kept(status: int) -> None:
    with pytest.raises(BusyError) as caught:
        judge(status, "17", 0.0)
    assert caught.value.retry_after_s == 17


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 301])
def test_a_named_time_changes_nothing_where_waiting_does_not_help(status: int) -> None:
    assert verdict(status, "17") is verdict(status)


def test_retry_after_in_all_its_forms() -> None:
    now = dt.datetime(2026, 11, 26, 12, 0, 0, tzinfo=dt.UTC)
    later = format_datetime(now + dt.timedelta(seconds=90), usegmt=True)
    assert retry_after_s(later, now.timestamp()) == 90
    assert retry_after_s(later, now.timestamp() + 100) == 0
    assert retry_after_s(" 5 ", 0.0) == 5
    for text in ("", "-1", "1.5", "soon", "Thu, 99 Foo 2026 00:00:00 GMT", "١٢", "Wed, 26 Nov"):
        assert retry_after_s(text, 0.0) is None, text


@given(text=st.text(max_size=80))
def test_no_header_breaks_it(text: str) -> None:
    value = retry_after_s(text, 1.7e9)
    assert value is None or value >= 0


# --- over the wire ----------------------------------------------------------------------------------------------------


async def test_the_event_arrives_as_it_is_with_a_signature_that_verifies() -> None:
    async with receiving() as receiver:
        sink = WebhookSink(receiver.url, [KEY, OLD_KEY], timeout_s=5)
        event = record(7, text="Größe")
        assert await sink.deliver([event]) == 1
        await sink.close()
    ((headers, body),) = receiver.seen
    assert body == event.payload
    assert json.loads(body)["id"] == headers["webhook-id"] == event.event_id
    assert headers["content-type"] == "application/cloudevents+json"
    assert headers["user-agent"].startswith("recognizer-agent/")
    assert verify(headers, body, SECRET, time.time())
    assert verify(headers, body, OLD_SECRET, time.time())
    assert not {"cookie", "authorization"} & headers.keys()


async def test_an_event_that_comes_again_has_the_same_id_and_a_new_time() -> None:
    now_s = 1000.0
    async with receiving() as receiver:
        receiver.answers.append(code(503))
        sink = WebhookSink(receiver.url, [KEY], timeout_s=5, clock_s=lambda: now_s)
        with pytest.raises(TransientError):
            await sink.deliver([record(1)])
        now_s = 2000.0
        await sink.deliver([record(1)])
        await sink.close()
    first, second = (headers for headers, _ in receiver.seen)
    assert first["webhook-id"] == second["webhook-id"]
    assert (first["webhook-timestamp"], second["webhook-timestamp"]) == ("1000", "2000")
    assert verify(second, receiver.seen[1][1], SECRET, now_s)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (hang, TransientError),
        (slow_headers, TransientError),
        (reset, TransientError),
        (garbage, TransientError),
        (code(500), UnexplainedError),
        (code(503, Retry_After="30"), BusyError),
        (code(429, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"), BusyError),
        (code(302, Location="http://127.0.0.1:1/elsewhere"), AccessError),
        (code(401), AccessError),
        (code(422), RejectedError),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_receiver_that_misbehaves_is_left_after_a_while_and_tried_again(
    answer: Answer, error: type[Exception]
) -> None:
    async with receiving() as receiver:
        receiver.answers.append(answer)
        sink = WebhookSink(receiver.url, [KEY], timeout_s=1.0)
        began_s = time.monotonic()
        with pytest.raises(error) as caught:
            await sink.deliver([record(1)])
        assert time.monotonic() - began_s < 4
        for private in ("T0KEN", "K3Y", SECRET[6:], "a secret of the receiver", "elsewhere"):
            assert private not in str(caught.value) + repr(caught.value.__cause__)
        assert await sink.deliver([record(1)]) == 1
        await sink.close()
    assert len(receiver.seen) == 2, "no retry of its own, no redirect followed"


async def test_a_body_without_end_does_not_matter_once_the_status_is_known() -> None:
    async with receiving() as receiver:
        receiver.answers.append(slow_body)
        sink = WebhookSink(receiver.url, [KEY], timeout_s=5)
        began_s = time.monotonic()
        assert await sink.deliver([record(1)]) == 1
        assert await sink.deliver([record(2)]) == 1
        assert time.monotonic() - began_s < 4
        await sink.close()


async def test_nobody_there_a_wrong_name_and_a_wrong_protocol_are_transient() -> None:
    async with receiving() as receiver:
        https = receiver.url.replace("http:", "https:")
        nobody = receiver.url.replace(str(receiver.port), "1")
        for url in (nobody, "http://nowhere.invalid/x", https):
            sink = WebhookSink(url, [KEY], timeout_s=5)
            with pytest.raises(TransientError) as caught:
                await sink.deliver([record(1)])
            assert "T0KEN" not in str(caught.value)
            await sink.close()


async def test_connections_are_used_again() -> None:
    ports = set()

    async def remember(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername")[1])
        return web.Response(text="ok")

    async with receiving() as receiver:
        receiver.always = remember
        sink = WebhookSink(receiver.url, [KEY], timeout_s=5)
        for sequence in range(1, 11):
            await sink.deliver([record(sequence)])
        await sink.close()
    assert len(ports) == 1


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """authority(name, signer) -> certificate and key, signed by itself or by `signer`; made with OpenSSL."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl")

    def make(name: str, host: str = "127.0.0.1") -> tuple[Path, Path]:
        certificate, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        command = [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{host}", "-keyout", str(key), "-out", str(certificate),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        return certificate, key

    return make


async def test_tls_with_an_authority_of_its_own_and_a_client_certificate(
    authority: Callable[..., tuple[Path, Path]],
) -> None:
    certificate, key = authority("receiver")
    mine, my_key = authority("box")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=mine)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    async with receiving(context) as receiver:
        good = tls_client(TlsConfig(ca_file=certificate, cert_file=mine, key_file=my_key), "sinks.a.tls")
        sink = WebhookSink(receiver.url, [KEY], timeout_s=5, tls=good)
        assert await sink.deliver([record(1)]) == 1
        await sink.close()

        nameless = WebhookSink(
            receiver.url, [KEY], timeout_s=5, tls=tls_client(TlsConfig(ca_file=certificate), "sinks.a.tls")
        )
        with pytest.raises(TransientError):
            await nameless.deliver([record(2)])
        await nameless.close()

        stranger = WebhookSink(receiver.url, [KEY], timeout_s=5)
        with pytest.raises(AccessError, match="self-signed certificate"):
            await stranger.deliver([record(2)])
        await stranger.close()


async def test_a_certificate_for_another_host_needs_a_person(authority: Callable[..., tuple[Path, Path]]) -> None:
    certificate, key = authority("elsewhere", "10.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with receiving(context) as receiver:
        sink = WebhookSink(receiver.url, [KEY], timeout_s=5, tls=tls_client(TlsConfig(ca_file=certificate), "tls"))
        with pytest.raises(AccessError, match="IP address mismatch"):
            await sink.deliver([record(1)])
        await sink.close()


def test_tls_files_that_are_none_are_named(tmp_path: Path) -> None:
    nothing = tmp_path / "none.pem"
    with pytest.raises(ConfigError, match=r"sinks\.a\.tls\.ca_file"):
        tls_client(TlsConfig(ca_file=nothing), "sinks.a.tls")
    with pytest.raises(ConfigError, match=r"sinks\.a\.tls\.cert_file"):
        tls_client(TlsConfig(cert_file=nothing, key_file=nothing), "sinks.a.tls")


async def test_nothing_private_is_logged() -> None:
    with structlog.testing.capture_logs() as entries:
        async with receiving() as receiver:
            receiver.answers.extend([code(500), reset, code(401)])
            sink = WebhookSink(receiver.url, [KEY], timeout_s=5)
            for _ in range(3):
                with pytest.raises(TransientError):
                    await sink.deliver([record(1)])
            await sink.close()
    text = repr(entries)
    assert "T0KEN" not in text
    assert SECRET[6:] not in text


async def test_close_during_a_delivery_ends_it() -> None:
    async with receiving() as receiver:
        receiver.answers.append(hang)
        sink = WebhookSink(receiver.url, [KEY], timeout_s=30)
        task = asyncio.create_task(sink.deliver([record(1)]))
        while not receiver.seen:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        await sink.close()
        assert task.cancelled()
