"""Plug-ins, with packages that are really installed: a folder on the path with its metadata."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes.graphs import rtmo_graph, stgcn_graph

from agent.config.delivery import PluginSinkConfig
from agent.config.schema import CameraConfig, PoseConfig, ServiceConfig
from agent.errors import ConfigError, ModelError
from agent.plugins import (
    _CONFIG_KEYS,
    Group,
    create_action_classifier,
    create_pose_estimator,
    create_sink,
    create_source,
    installed,
    load,
)
from agent.ports import ActionClassifier
from agent.pose.rtmo import RtmoEstimator
from agent.recognition import function_of

GOOD = """
class Estimator:
    name, max_batch = "stick figures", 1
    def __init__(self, config): self.config = config
    def estimate(self, images): return []
    def close(self): pass

class Source:
    def __init__(self, config): self.config = config
    def open(self): pass
    def read(self): pass
    def close(self): pass

class Sink:
    max_batch = 1
    def __init__(self, name, config): self.name, self.config = name, config
    async def deliver(self, records): return 1
    async def close(self): pass

not_callable = 3
def wrong(*_): return "a string"
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """install(package, code, {group: {name: attribute}}) makes a distribution that importlib.metadata finds."""

    def do(package: str, code: str, entries: dict[Group, dict[str, str]]) -> None:
        folder = tmp_path / package
        info = folder / f"{package}-1.2.dist-info"
        info.mkdir(parents=True)
        (folder / f"{package}_code.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = []
        for group, names in entries.items():
            lines += [f"[{group.value}]", *(f"{name} = {package}_code:{target}" for name, target in names.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, f"{package}_code", raising=False)
        importlib.invalidate_caches()

    return do


def test_the_built_in_ones_are_plug_ins_like_any_other() -> None:
    names = {(plugin.group, plugin.name) for plugin in installed()}
    assert {(Group.POSE, "rtmo"), (Group.ACTION, "stgcn")} <= names
    assert {plugin.group for plugin in installed(Group.POSE)} == {Group.POSE}


def test_listing_names_package_and_version_and_imports_nothing(install: Callable[..., None]) -> None:
    install("sticks", "raise RuntimeError('imported')", {Group.POSE: {"sticks": "Estimator"}})
    (plugin,) = [plugin for plugin in installed(Group.POSE) if plugin.name == "sticks"]
    assert (plugin.package, plugin.version, plugin.target) == ("sticks", "1.2", "sticks_code:Estimator")
    assert str(plugin) == "sticks (sticks 1.2)"


def test_the_architecture_page_says_how_each_group_is_named_and_what_it_is_given(repo_dir: Path) -> None:
    page = (repo_dir / "docs" / "architecture.md").read_text(encoding="utf-8")
    arguments = {
        Group.SOURCE: "config: CameraConfig", Group.POSE: "config: PoseConfig",
        Group.ACTION: "name: str, config: ServiceConfig", Group.SINK: "name: str, config: PluginSinkConfig",
    }  # fmt: skip
    for group in Group:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{group.value}` |")]
        assert f" | `{_CONFIG_KEYS[group]}`" in row
        assert f"`create({arguments[group]}) -> " in row


def test_the_configured_ones_are_made(tmp_path: Path) -> None:
    estimator = create_pose_estimator(PoseConfig(model=rtmo_graph(tmp_path / "r.onnx"), device="cpu"))
    assert isinstance(estimator, RtmoEstimator)
    service = ServiceConfig(model=stgcn_graph(tmp_path / "s.onnx"), device="cpu", options={"labels": ["no", "fight"]})
    assert isinstance(create_action_classifier("fight", service), ActionClassifier)


def test_a_foreign_estimator_and_source_are_made_with_their_configuration(install: Callable[..., None]) -> None:
    install("sticks", GOOD, {Group.POSE: {"sticks": "Estimator"}, Group.SOURCE: {"sticks": "Source"}})
    config = PoseConfig(estimator="sticks", options={"colour": "red"})
    assert create_pose_estimator(config).config is config  # type: ignore[attr-defined]
    camera = CameraConfig(id="a", source="sticks:1")
    assert create_source("sticks", camera).config is camera  # type: ignore[attr-defined]


def test_a_foreign_sink_is_made_with_its_name_and_configuration(install: Callable[..., None]) -> None:
    install("sticks", GOOD, {Group.SINK: {"sticks": "Sink", "text": "wrong"}})
    config = PluginSinkConfig(type="plugin", plugin="sticks", options={"colour": "red"})
    sink = create_sink("archive", config)
    assert (sink.name, sink.config) == ("archive", config)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="made a str, which is no EventSink"):
        create_sink("archive", PluginSinkConfig(type="plugin", plugin="text"))
    with pytest.raises(ConfigError, match=r"sinks\.archive\.plugin: no plug-in 'none' in recognizer_agent\.sinks"):
        create_sink("archive", PluginSinkConfig(type="plugin", plugin="none"))


def test_an_unknown_name_lists_the_known_ones(install: Callable[..., None]) -> None:
    install("sticks", GOOD, {Group.POSE: {"sticks": "Estimator"}})
    with pytest.raises(ConfigError) as caught:
        create_pose_estimator(PoseConfig(estimator="rtm0"))
    text = str(caught.value)
    assert text.startswith("pose.estimator: no plug-in 'rtm0'")
    assert "rtmo (recognizer-agent " in text
    assert "sticks (sticks 1.2)" in text
    with pytest.raises(ConfigError, match=r"services\.fight\.classifier: no plug-in 'none'"):
        create_action_classifier("fight", ServiceConfig(model=Path("m"), classifier="none"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("raise OSError('libtpu.so: cannot open')", "OSError: libtpu.so: cannot open"),
        ("def", "SyntaxError: "),
        ("", "AttributeError: "),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
    ],
)
def test_an_import_that_fails_names_package_and_reason(install: Callable[..., None], code: str, reason: str) -> None:
    install("broken", code, {Group.POSE: {"broken": "Estimator"}})
    with pytest.raises(ModelError, match=r"plug-in broken \(broken 1\.2\) cannot be loaded: ") as caught:
        load(Group.POSE, "broken")
    assert reason in str(caught.value)


def test_things_that_are_not_what_they_should_be_are_refused(install: Callable[..., None]) -> None:
    names = {"number": "not_callable", "text": "wrong"}
    install("odd", GOOD, {Group.POSE: names, Group.ACTION: {"text": "wrong"}, Group.SOURCE: {"text": "wrong"}})
    with pytest.raises(ModelError, match="odd_code:not_callable is a int, not a function"):
        load(Group.POSE, "number")
    with pytest.raises(ModelError, match="made a str, which is no PoseEstimator"):
        create_pose_estimator(PoseConfig(estimator="text"))
    with pytest.raises(ModelError, match="made a str, which is no ActionClassifier"):
        create_action_classifier("x", ServiceConfig(model=Path("m"), classifier="text"))
    with pytest.raises(ModelError, match="made a str, which is no VideoSource"):
        create_source("text", CameraConfig(id="a", source="text:1"))


def test_two_packages_with_the_same_name_are_not_guessed_between(install: Callable[..., None]) -> None:
    install("one", GOOD, {Group.POSE: {"same": "Estimator"}})
    install("two", GOOD, {Group.POSE: {"same": "Estimator"}})
    with pytest.raises(ConfigError, match="two packages bring a plug-in 'same': one, two"):
        load(Group.POSE, "same")


ANSWERS = """
import numpy as np
from agent.types import People

def estimator(config): return Estimator()
def classifier(name, config): return Classifier()

class Estimator:
    name, max_batch = "odd", 1
    def estimate(self, images): return [{answer} for _ in images]
    def close(self): pass

class Classifier:
    name, labels, input_shape = "odd", ("normal", "fight"), (1, 2, 17, 3)
    def classify(self, batch): return [{answer} for _ in batch]
    def close(self): pass
"""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("None", "odd returned a NoneType, expected People"),
        ("{'boxes': []}", "odd returned a dict, expected People"),
        ("People(np.full((1, 4), 'a'), np.zeros((1, 17, 2)), np.zeros((1, 17)), np.zeros(1))", "values of type <U1"),
    ],
)
def test_an_estimator_that_answers_something_else_is_a_model_error(
    install: Callable[..., None], answer: str, reason: str
) -> None:
    install("odd", ANSWERS.replace("{answer}", answer), {Group.POSE: {"odd": "estimator"}})
    estimate = function_of(create_pose_estimator(PoseConfig(estimator="odd")))
    with pytest.raises(ModelError, match=reason):
        estimate([np.zeros((4, 4, 3), np.uint8)])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("[0.9]", r"shape \(1, 1\), expected \(1, 2\)"),
        ("0.9", r"shape \(1,\), expected \(1, 2\)"),
        ("[0.1, 0.2, 0.7]", r"shape \(1, 3\), expected \(1, 2\)"),
        ("[float('nan'), 0.9]", r"returned \[\[nan, 0\.8.*expected probabilities from 0 to 1"),
        ("[-4.0, 5.0]", "expected probabilities from 0 to 1"),
        ("['a', 'b']", "odd returned no numbers"),
    ],
)
def test_a_classifier_that_answers_no_probabilities_is_a_model_error(
    install: Callable[..., None], answer: str, reason: str
) -> None:
    install("odd", ANSWERS.replace("{answer}", answer), {Group.ACTION: {"odd": "classifier"}})
    classify = function_of(create_action_classifier("fight", ServiceConfig(model=Path("m"), classifier="odd")))
    with pytest.raises(ModelError, match=reason):
        classify([np.zeros((1, 2, 17, 3), np.float32)])


def test_a_classifier_may_answer_with_plain_lists(install: Callable[..., None]) -> None:
    install("odd", ANSWERS.replace("{answer}", "[0.25, 0.75]"), {Group.ACTION: {"odd": "classifier"}})
    classifier = create_action_classifier("fight", ServiceConfig(model=Path("m"), classifier="odd"))
    (row,) = function_of(classifier, ("fight", "normal"))([np.zeros((1, 2, 17, 3), np.float32)])
    assert row.tolist() == [0.75, 0.25]


def test_what_rounding_leaves_outside_is_no_less_sure(install: Callable[..., None]) -> None:
    install("odd", ANSWERS.replace("{answer}", "[-0.0005, 1.0005]"), {Group.ACTION: {"odd": "classifier"}})
    classifier = create_action_classifier("fight", ServiceConfig(model=Path("m"), classifier="odd"))
    (row,) = function_of(classifier, ("fight", "normal"))([np.zeros((1, 2, 17, 3), np.float32)])
    assert row.tolist() == [1, 0]
