"""A configuration that came over the air: what it may say, and what it must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config.layer import KEPT_HERE, lay_over
from agent.config.load import load_config
from agent.config.reload import compare
from agent.config.schema import AgentConfig
from agent.errors import ConfigError


@pytest.fixture
def operators(tmp_path: Path) -> AgentConfig:
    file = tmp_path / "agent.yaml"
    file.write_text(
        "device_id: gate-1\nmqtt: {password: geheim}\ncameras: [{id: yard, source: clip.mp4}]\n"
        "sinks: {archive: {type: file, path: archive.jsonl}}\n"
    )
    return load_config([file], env={})


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    return tmp_path / "configuration.yaml"


def test_what_a_reload_applies_may_be_sent(operators: AgentConfig, sent: Path) -> None:
    sent.write_text(
        "services: {fight: {rules: {alert_threshold: 0.9}}}\nhealth: {publish_interval_s: 5}\nlog: {level: debug}\n"
    )
    changed = lay_over(operators, sent)
    assert changed.services["fight"].rules.alert_threshold == 0.9
    assert changed.services["fight"].rules.normal_threshold == operators.services["fight"].rules.normal_threshold
    difference = compare(operators, changed)
    assert set(difference.live) == {"services.fight.rules.alert_threshold", "health.publish_interval_s", "log.level"}
    assert difference.restart == ()
    assert changed.mqtt.password == "geheim"
    assert lay_over(operators, sent) == changed


def test_an_empty_one_changes_nothing(operators: AgentConfig, sent: Path) -> None:
    sent.write_text("# nothing\n")
    assert lay_over(operators, sent) == operators


@pytest.mark.parametrize(
    ("text", "path", "why"),
    [
        ("update: {enabled: false}", "update", "belongs to the device"),
        ("update: {poll_min_s: 1}", "update", "belongs to the device"),
        ("cameras: []", "cameras", "belongs to the device"),
        ("commands: {unsigned_role: admin}", "commands", "belongs to the device"),
        ("device_id: gate-2", "device_id", "needs a restart"),
        ("state_dir: /tmp", "state_dir", "needs a restart"),
        ("mqtt: {host: attacker.example}", "mqtt.host", "needs a restart"),
        ("mqtt: {password: x}", "mqtt.password", "needs a restart"),
        ("pose: {model: /tmp/x}", "pose.model", "needs a restart"),
        ("services: {fight: {model: /tmp/x}}", "services.fight.model", "needs a restart"),
        ("services: {new: {model: /tmp/x}}", "services.new", "no such entry"),
        ("sinks: {archive: {path: /etc}}", "sinks.archive.path", "needs a restart"),
        ("sinks: {out: {type: webhook, url: 'https://attacker.example'}}", "sinks.out", "no such entry"),
        ("mqtt: none", "mqtt", "needs a restart"),
        (
            "services: {fight: {rules: {alert_threshold: 2}}}",
            "services.fight.rules.alert_threshold",
            "less than or equal to 1",
        ),
        ("services: {fight: {rules: {alert: 2}}}", "services.fight.rules.alert", "unknown key"),
        ("log: {level: '${HOME}'}", "log.level", "environment variable HOME is not set"),
        ("surprise: 1", "surprise", "unknown key"),
        ("log: {level: [", "", "not valid YAML"),
    ],
)
def test_what_must_not_be_sent_is_named_with_its_line(
    operators: AgentConfig, sent: Path, text: str, path: str, why: str
) -> None:
    sent.write_text(f"# sent\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        lay_over(operators, sent)
    problem = caught.value.problems[0]
    assert problem.path == path
    assert why in problem.message
    assert problem.line >= 2


def test_no_secret_section_can_be_reached(operators: AgentConfig) -> None:
    """Whatever the schema gains: only live keys, and these never under what belongs to the device."""
    assert set(AgentConfig.model_fields) > KEPT_HERE
    live = [name for name, info in AgentConfig.model_fields.items() if isinstance(info.json_schema_extra, dict)]
    assert set(live) <= KEPT_HERE, "a live key of the top level could be sent: is that meant?"


def test_a_large_file_is_not_read(operators: AgentConfig, sent: Path) -> None:
    sent.write_text("#" * 300_000)
    with pytest.raises(ConfigError, match="larger than"):
        lay_over(operators, sent)
