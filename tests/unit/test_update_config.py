"""The section `update` of the configuration, and where tokens come from."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent.config.update import MaintenanceWindow, UpdateConfig
from agent.errors import ConfigError
from agent.update.tokens import authorization

MONDAY = datetime(2026, 11, 23).astimezone()


@pytest.mark.parametrize(
    ("day", "clock", "is_open"),
    [
        (23, "22:29", False),
        (23, "22:30", True),
        (24, "03:59", True),
        (24, "04:00", False),
        (24, "23:00", False),
        (22, "23:00", False),
    ],
)
def test_a_window_past_midnight_belongs_to_the_day_it_begins_on(day: int, clock: str, is_open: bool) -> None:
    window = MaintenanceWindow(weekdays=("monday",), start="22:30", end="04:00")
    hours, minutes = map(int, clock.split(":"))
    assert window.contains(MONDAY.replace(day=day, hour=hours, minute=minutes)) is is_open


def test_a_window_within_a_day() -> None:
    config = UpdateConfig(maintenance=(MaintenanceWindow(start="02:00", end="04:00"),))
    assert [config.open_at(MONDAY.replace(hour=hour)) for hour in (1, 2, 3, 4)] == [False, True, True, False]
    assert UpdateConfig().open_at(MONDAY)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"enabled": True}, "enabled without server, repository, root_file"),
        ({"server": "ftp://fleet"}, "expected http"),
        ({"server": "https://name:secret@fleet"}, "token_file"),
        ({"repository": "https://fleet/?a=1"}, "without query"),
        ({"poll_min_s": 10, "poll_max_s": 5}, "must not exceed"),
        ({"token_file": "/a", "gateway_token_file": "/b"}, "keep one"),
        ({"maintenance": [{"start": "2:00", "end": "04:00"}]}, "pattern"),
        ({"maintenance": [{"start": "02:00", "end": "02:00"}]}, "must differ"),
        ({"keep": 1}, "greater than or equal to 2"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        UpdateConfig.model_validate(fields)


def test_tokens_are_read_from_private_files_only(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret-word\n")
    file.chmod(0o600)
    assert authorization(UpdateConfig(token_file=file), None) == "TargetToken secret-word"
    assert authorization(UpdateConfig(gateway_token_file=file), None) == "GatewayToken secret-word"
    assert authorization(UpdateConfig(), None) == ""
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"update\.token_file.*others can read.*chmod 600") as caught:
        authorization(UpdateConfig(token_file=file), None)
    assert "secret-word" not in str(caught.value)
    assert authorization(UpdateConfig(token_file=file), tmp_path) == "TargetToken secret-word"  # systemd's credentials


@pytest.mark.parametrize("content", ["", "two words", "\x00\xff"])
def test_a_token_is_one_word(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content, encoding="latin-1")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"update\.token_file"):
        authorization(UpdateConfig(token_file=file), None)
