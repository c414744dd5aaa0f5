"""Logging: what a line holds, that no secret gets out by any way, and the live level."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from agent.config.schema import LogConfig
from agent.observe.logging import configure_logging, mask_text, mask_value, set_level


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Logging set up as JSON into a buffer, everything put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    buffer = io.StringIO()
    configure_logging(LogConfig(format="auto"), buffer, {})
    yield buffer
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_event_and_facts(stream: io.StringIO) -> None:
    structlog.get_logger("agent.x").info("camera_connected", camera="gate", attempt=3)
    (line,) = lines(stream)
    assert line["event"] == "camera_connected"
    assert (line["level"], line["logger"], line["camera"], line["attempt"]) == ("info", "agent.x", "gate", 3)
    assert str(line["time"]).endswith("Z")
    assert list(line)[:3] == ["time", "level", "event"]


def test_standard_library_records_and_warnings_take_the_same_way(stream: io.StringIO) -> None:
    logging.getLogger("some.library").warning("cannot reach %s", "rtsp://u:pw@cam/1")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("old call", DeprecationWarning, stacklevel=1)
    first, second = lines(stream)
    assert first["event"] == "cannot reach rtsp://***@cam/1"
    assert "old call" in str(second["event"])


def test_tracebacks_are_text_and_masked(stream: io.StringIO) -> None:
    def capture() -> None:
        raise OSError("open rtsp://admin:hunter2@10.0.0.9/s failed, password=hunter2")

    try:
        capture()
    except OSError:
        structlog.get_logger().exception("capture_failed", camera="gate")
    (line,) = lines(stream)
    assert "Traceback" in str(line["exception"])
    assert "hunter2" not in stream.getvalue()


def test_level_changes_while_running(stream: io.StringIO) -> None:
    log = structlog.get_logger("agent.y")
    log.debug("unseen")
    set_level("debug")
    log.debug("seen")
    set_level("error")
    log.warning("unseen")
    logging.getLogger("library").warning("unseen")
    assert [line["event"] for line in lines(stream)] == ["seen"]


def test_chatty_libraries_are_quiet_until_debug(stream: io.StringIO) -> None:
    logging.getLogger("aiohttp.access").info("GET /")
    set_level("debug")
    logging.getLogger("aiohttp.access").info("GET /metrics")
    assert [line["event"] for line in lines(stream)] == ["GET /metrics"]


def test_configuring_again_does_not_double_the_lines(stream: io.StringIO) -> None:
    configure_logging(LogConfig(), stream, {})
    structlog.get_logger().info("once")
    assert len(lines(stream)) == 1


def test_console_format_is_readable_text(stream: io.StringIO) -> None:
    configure_logging(LogConfig(format="console"), stream, {})
    structlog.get_logger().info("camera_connected", source="rtsp://a:b@c/d", token="abc")
    text = stream.getvalue()
    assert "camera_connected" in text
    assert "rtsp://***@c/d" in text
    assert "abc" not in text
    assert "\x1b[" not in text


def test_under_the_journal_lines_carry_their_priority(stream: io.StringIO, tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as journal:
        status = os.fstat(journal.fileno())
        configure_logging(LogConfig(), journal, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        structlog.get_logger().error("bad")
        structlog.get_logger().info("good")
        journal.seek(0)
        first, second = journal.read().splitlines()
    assert first.startswith('<3>{"time"')
    assert second.startswith('<6>{"time"')


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("rtsp://user:pass@cam:554/s?x=1", "rtsp://***@cam:554/s?x=1"),
        ("rtsp://user:p@ss@cam/s", "rtsp://***@cam/s"),
        ("rtsp://user:p/a?s#s@cam/s", "rtsp://***@cam/s"),
        ("rtsp://token@cam/s then mqtts://a:b@broker", "rtsp://***@cam/s then mqtts://***@broker"),
        ("http://cam/s?token=abc&w=1", "http://cam/s?token=***&w=1"),
        ("http://cam/a@b", "http://cam/a@b"),
        ("Authorization: Bearer eyJhbGciOi.J9", "Authorization: ***"),
        ("sent GatewayToken 0123456789abcdef", "sent GatewayToken ***"),
        ("password='a b c' user=x", "password=*** user=x"),
        ("mqtt_password=abc client_secret: abc", "mqtt_password=*** client_secret: ***"),
        ("rtsp://cam/user=admin_password=abc_channel=1.sdp", "rtsp://cam/user=admin_password=***"),
        ("rtspsrc user-id=u user-pw=abc ! fakesink", "rtspsrc user-id=u user-pw=*** ! fakesink"),
        ("X-Api-Key: abc, api_key=abc, passphrase=abc", "X-Api-Key: ***, api_key=***, passphrase=***"),
        (r"{\"password\": \"a b\", \"n\": 1}", r"{\"password\": ***, \"n\": 1}"),
        ("no passwords: 3, password_file=/etc/p", "no passwords: 3, password_file=/etc/p"),
        ("mail me@example.org", "mail me@example.org"),
        ("Basic problems and a bearer of news", "Basic problems and a bearer of news"),
    ],
)
def test_credentials_in_text_are_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "password: not set", "passwd: not found (hint: mqtt.password_file)", "password: required", "Password: wrong.",
        "token: expired, ask for a new one", "agent.yaml:4:mqtt.password: Input should be a valid string",
        "mqtt.password: unknown key (hint: did you mean 'password_file'?)", "secret: required key is missing",
        "mqtt.password_file: cannot read the password: [Errno 13] Permission denied: '/x'",
        "mqtt.password: the environment variable PW is not set", "passphrase: must not be empty", "api_key: not a valid value",
        "update.token_file: /etc/fleet-token: others can read or write it (mode 0644) (hint: chmod 600 /etc/fleet-token)",
        "--token-file: newdata/admin-token: No such file or directory", "--token-file: box-1.token: Permission denied (hint: x)",
        "gateway_token_file: gateway-token: [Errno 2] No such file or directory: 'gateway-token'", "a/token: Is a directory",
        "gateway_token_file: /etc/token: shorter than 32 characters", "update.token_file: t/token: it belongs to another user",
        "/etc/token: not a file", "/etc/token: not plain text", "/etc/token: larger than 4096 bytes", "x/token: holds no token",
        "update.token_file: /etc/token: empty, or more than one word", "/keys/passphrase: should hold one line, the passphrase",
        "/etc/mqtt-password: others can read or write it (mode 0640)", "/etc/pager-secret: a secret starts with 'whsec_'",
        "/etc/pager-secret: what follows 'whsec_' is not base64", "/etc/secret: expected 24 to 64 bytes in base64, got 3",
    ],
)  # fmt: skip
def test_what_a_message_says_of_a_password_can_be_read(text: str) -> None:
    assert mask_text(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("password: hunter2", "password: ***"),
        ("password: not", "password: ***"),
        ("password: nothing is set", "password: *** is set"),
        ("password: not-set", "password: ***"),
        ("password: wrong1", "password: ***"),
        ("password: wrong.horse", "password: ***"),
        ("password: required@host", "password: ***"),
        ('password: "wrong"', "password: ***"),
        ("password:wrong", "password:***"),
        ("password=wrong", "password=***"),
        ("password = not set", "password = *** set"),
        ("http://cam/s?password=not&w=1", "http://cam/s?password=***&w=1"),
        ("postgresql://u:not@db/fleet host=db password=required", "postgresql://***@db/fleet host=db password=***"),
        ("password: not set: hunter2, password: hunter2", "password: not set: hunter2, password: ***"),
        ("fleet-token: hunter2", "fleet-token: ***"),
        ("X-Auth-Token: others", "X-Auth-Token: ***"),
        ("/etc/fleet-token: hunter2 is in it", "/etc/fleet-token: *** is in it"),
        ("/etc/fleet-token: others-can-read", "/etc/fleet-token: ***"),
        ("/update/token: correct horse battery", "/update/token: *** horse battery"),
        ("token: no horse, token: a secret", "token: *** horse, token: *** secret"),
        ("token:permission denied", "token:*** denied"),
        ("/etc/token: not a file, token: hunter2", "/etc/token: not a file, token: ***"),
    ],
)
def test_what_may_be_a_password_is_masked_beside_prose(text: str, masked: str) -> None:
    assert mask_text(text) == masked


def test_secrets_are_masked_by_key_however_deep() -> None:
    value = {
        "mqtt": {"password": "x", "username": "u", "tls": [{"key_file": "k", "api_key": "y"}]},
        "auth_token": "z",
        "cookie": "c",
        "password_file": "/etc/p",
        "tokens_per_s": 5,
        "password": "",
    }
    assert mask_value(value) == {
        "mqtt": {"password": "***", "username": "u", "tls": [{"key_file": "k", "api_key": "***"}]},
        "auth_token": "***",
        "cookie": "***",
        "password_file": "/etc/p",
        "tokens_per_s": 5,
        "password": "",
    }


def test_objects_and_bytes_are_masked_through_their_text() -> None:
    assert mask_value(OSError("rtsp://a:b@c")) == "rtsp://***@c"
    assert mask_value(b"rtsp://a:b@c") == "rtsp://***@c"
    assert mask_value({1, 2}) in ([1, 2], [2, 1])


def test_default_stream_is_stderr(capsys: pytest.CaptureFixture[str], stream: io.StringIO) -> None:
    configure_logging(LogConfig(), None, {})
    structlog.get_logger().warning("here")
    assert json.loads(capsys.readouterr().err)["event"] == "here"
    assert sys.stdout is not sys.stderr
