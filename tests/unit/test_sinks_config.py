"""The section `sinks`: what it takes, what it refuses, and what a message about it does not repeat."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from agent.config.delivery import FileSinkConfig, PluginSinkConfig, WebhookSinkConfig
from agent.config.load import load_config
from agent.config.reload import compare
from agent.errors import ConfigError
from agent.sinks.build import build_sink
from agent.sinks.file import FileSink
from agent.sinks.webhook import WebhookSink

GOOD = """\
sinks:
  pager:
    type: webhook
    url: https://alerts.example/hook?key=K3Y
    secret_files: [pager.secret, old.secret]
    lanes: [alarm]
    tls: {ca_file: ca.pem}
  lines: {type: file, kinds: [fight, fall], path: out/events.jsonl}
  archive: {type: plugin, plugin: kafka, options: {topic: events}, backoff: {max_s: 10}}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "agent.yaml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config([written(folder, text)], env={})
    return [str(problem) for problem in caught.value.problems]


def test_each_type_has_its_keys(tmp_path: Path) -> None:
    sinks = load_config([written(tmp_path, GOOD)], env={}).sinks
    pager, lines, archive = sinks["pager"], sinks["lines"], sinks["archive"]
    assert isinstance(pager, WebhookSinkConfig)
    assert pager.secret_files == (tmp_path / "pager.secret", tmp_path / "old.secret")
    assert pager.tls is not None
    assert pager.tls.ca_file == tmp_path / "ca.pem"
    assert (pager.lanes, pager.kinds, pager.backoff.max_s) == (("alarm",), None, 300)
    assert isinstance(lines, FileSinkConfig)
    assert (lines.kinds, lines.path) == (("fight", "fall"), "out/events.jsonl")
    assert isinstance(archive, PluginSinkConfig)
    assert (archive.options, archive.backoff.max_s) == ({"topic": "events"}, 10)
    assert "K3Y" not in repr(sinks)


def test_a_wrong_key_is_named_at_its_place(tmp_path: Path) -> None:
    text = GOOD.replace("    lanes:", "    lane:").replace("path: out/", "pth: out/")
    first, second = problems(tmp_path, text)
    place = tmp_path / "agent.yaml"
    assert first == f"{place}:6:sinks.pager.lane: unknown key (hint: did you mean 'lanes'?)"
    assert second == f"{place}:8:sinks.lines.pth: unknown key (hint: did you mean 'path'?)"


def test_a_missing_key_is_named_under_the_sink(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "sinks:\n  file: {type: webhook, url: 'https://x/'}\n")
    assert problem == f"{tmp_path / 'agent.yaml'}:2:sinks.file.secret_files: required key is missing (hint: add it)"


def test_an_unknown_type_says_which_there_are(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "sinks: {a: {type: mail}}\n")
    assert "'webhook', 'file', 'plugin'" in problem


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/T0KEN",
        "https://user:T0KEN@x/",
        "https://",
        "x.example/T0KEN",
        "https://x/#T0KEN",
        "https://x /T0KEN",
        "",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    text = f"sinks: {{a: {{type: webhook, url: '{url}', secret_files: [s]}}}}\n"
    (problem,) = problems(tmp_path, text)
    assert "sinks.a.url" in problem
    assert "T0KEN" not in problem


@pytest.mark.parametrize("keys", ["lanes: []", "lanes: [state]", "kinds: []", "give_up_after: -1", "path: events.db"])
def test_limits(tmp_path: Path, keys: str) -> None:
    found = problems(tmp_path, f"sinks: {{a: {{type: file, {keys}}}}}\n")
    assert all(":1:sinks.a." in problem for problem in found)


def test_two_sinks_cannot_share_a_file(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "sinks: {a: {type: file}, b: {type: file}}\n")
    assert "two sinks write to the same file 'events.jsonl'" in problem


def test_a_change_waits_for_a_restart(tmp_path: Path) -> None:
    old = load_config([written(tmp_path, GOOD)], env={})
    new = load_config([written(tmp_path, GOOD.replace("[alarm]", "[event]"))], env={})
    assert compare(old, new).restart == ("sinks",)


def test_sinks_are_built_from_it(tmp_path: Path) -> None:
    text = GOOD.replace("    tls: {ca_file: ca.pem}\n", "")
    config = load_config([written(tmp_path, text)], env={})
    with pytest.raises(ConfigError, match=r"sinks\.pager\.secret_files: .*pager\.secret: No such file"):
        build_sink("pager", config.sinks["pager"], state_dir=tmp_path)
    for name in ("pager.secret", "old.secret"):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text("whsec_" + base64.b64encode(name.ljust(32).encode()).decode())
    assert isinstance(build_sink("pager", config.sinks["pager"], state_dir=tmp_path), WebhookSink)
    assert isinstance(build_sink("lines", config.sinks["lines"], state_dir=tmp_path), FileSink)
    with pytest.raises(ConfigError, match=r"sinks\.archive\.plugin: no plug-in 'kafka'"):
        build_sink("archive", config.sinks["archive"], state_dir=tmp_path)
