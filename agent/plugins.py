"""Plug-ins by entry point: list, load, and say clearly what is wrong with one."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from agent.config.delivery import PluginSinkConfig
from agent.config.schema import CameraConfig, PoseConfig, ServiceConfig
from agent.errors import ConfigError, ConfigProblem, ModelError, RecognizerError
from agent.ports import ActionClassifier, EventSink, PoseEstimator, VideoSource
from agent.types import FloatArray, People


class Group(StrEnum):
    """Entry point groups, with the signature of what they name."""

    POSE = "recognizer_agent.pose_estimators"  # create(config: PoseConfig) -> PoseEstimator
    ACTION = "recognizer_agent.action_classifiers"  # create(name: str, config: ServiceConfig) -> ActionClassifier
    SOURCE = "recognizer_agent.sources"  # create(config: CameraConfig) -> VideoSource
    SINK = "recognizer_agent.sinks"  # create(name: str, config: PluginSinkConfig) -> EventSink


_CONFIG_KEYS = {
    Group.POSE: "pose.estimator", Group.ACTION: "services.*.classifier", Group.SOURCE: "cameras.*.source",
    Group.SINK: "sinks.*.plugin",
}  # fmt: skip

_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Plugin:
    """One installed plug-in. target: `module:function`; package, version: the distribution that brings it."""

    group: Group
    name: str
    target: str
    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} ({self.package} {self.version})"


def installed(group: Group | None = None) -> tuple[Plugin, ...]:
    """What is installed, sorted by group and name; nothing is imported."""
    found = {
        _describe(one, entry)
        for one in (Group if group is None else (group,))
        for entry in importlib.metadata.entry_points(group=one.value)
    }
    return tuple(sorted(found, key=lambda plugin: (plugin.group, plugin.name, plugin.package)))


def load(group: Group, name: str, path: str = "") -> Callable[..., Any]:
    """The factory `name` of `group`. path: the configuration key to name in errors.

    Raises ConfigError (unknown, or two packages claim the name), ModelError (it cannot be imported or called).
    """
    known = installed(group)
    matches = [plugin for plugin in known if plugin.name == name]
    where = path or _CONFIG_KEYS[group]
    if not matches:
        names = ", ".join(str(plugin) for plugin in known) or "none"
        problem = f"no plug-in {name!r} in {group.value}; installed: {names}"
        raise ConfigError(
            [ConfigProblem(problem, path=where, hint="install the package that brings it, or pick another")]
        )
    if len(matches) > 1:
        problem = f"two packages bring a plug-in {name!r}: {', '.join(plugin.package for plugin in matches)}"
        raise ConfigError([ConfigProblem(problem, path=where, hint="uninstall one of them")])
    plugin = matches[0]
    entry = importlib.metadata.EntryPoint(plugin.name, plugin.target, plugin.group.value)
    try:
        factory = entry.load()
    except (Exception, SystemExit) as error:
        raise ModelError(f"plug-in {plugin} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(factory):
        raise ModelError(f"plug-in {plugin}: {plugin.target} is a {type(factory).__name__}, not a function")
    return factory  # type: ignore[no-any-return]  # callable() leaves Any


def create_pose_estimator(config: PoseConfig) -> PoseEstimator:
    """The estimator that `config.estimator` names. Raises what `load` and the plug-in raise, ModelError for a wrong type."""
    made = _call(Group.POSE, config.estimator, load(Group.POSE, config.estimator, "pose.estimator"), config)
    if not isinstance(made, PoseEstimator):
        raise _wrong_type(Group.POSE, config.estimator, made, "PoseEstimator")
    return made


def check_pose_estimator(config: PoseConfig) -> None:
    """Whether the estimator is there and takes this configuration, as far as its factory can tell without opening a model: by a function
    of the same arguments, the factory's attribute `check`, if it has one. Raises what `load` and that function raise."""
    _check(load(Group.POSE, config.estimator, "pose.estimator"), config)


def check_action_classifier(service: str, config: ServiceConfig) -> None:
    """Likewise for the classifier of the service `service`."""
    _check(load(Group.ACTION, config.classifier, f"services.{service}.classifier"), service, config)


def _check(factory: Callable[..., Any], *arguments: object) -> None:
    check = getattr(factory, "check", None)
    if check is not None:
        check(*arguments)


def create_action_classifier(service: str, config: ServiceConfig) -> ActionClassifier:
    """The classifier of the service `service`. Raises as `create_pose_estimator`."""
    factory = load(Group.ACTION, config.classifier, f"services.{service}.classifier")
    made = _call(Group.ACTION, config.classifier, factory, service, config)
    if not isinstance(made, ActionClassifier):
        raise _wrong_type(Group.ACTION, config.classifier, made, "ActionClassifier")
    return made


def create_source(name: str, config: CameraConfig) -> VideoSource:
    """A source of the plug-in `name`. Raises as `create_pose_estimator`."""
    made = _call(Group.SOURCE, name, load(Group.SOURCE, name, f"cameras.{config.id}.source"), config)
    if not all(callable(getattr(made, method, None)) for method in ("open", "read", "close")):
        raise _wrong_type(Group.SOURCE, name, made, "VideoSource")
    return made  # type: ignore[no-any-return]  # checked above; the Protocol is not a run-time one


def create_sink(name: str, config: PluginSinkConfig) -> EventSink:
    """The sink `name`, of the plug-in that `config.plugin` names. Raises as `create_pose_estimator`."""
    factory = load(Group.SINK, config.plugin, f"sinks.{name}.plugin")
    made = _call(Group.SINK, config.plugin, factory, name, config)
    if not isinstance(made, EventSink):
        raise _wrong_type(Group.SINK, config.plugin, made, "EventSink")
    return made


def check_people(model: str, answers: Sequence[object]) -> list[People]:
    """What the estimator `model` returned for some pictures, looked at before anything counts on it. Raises ModelError."""
    for answer in answers:
        if not isinstance(answer, People):
            raise ModelError(f"{model} returned a {type(answer).__name__}, expected People")
        for array in (answer.boxes, answer.keypoints, answer.keypoint_scores, answer.scores):
            if array.dtype.kind not in "fiu":
                raise ModelError(f"{model} returned People with values of type {array.dtype}, expected numbers")
    return list(answers)  # type: ignore[arg-type]  # looked at one by one


def check_probabilities(model: str, answer: object, shape: tuple[int, int]) -> FloatArray:
    """What the classifier `model` returned, looked at in the same way. shape: (B, K). Raises ModelError."""
    try:
        rows = np.asarray(answer, np.float32)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{model} returned no numbers: {error}") from error
    if rows.shape != shape:
        raise ModelError(f"{model} returned probabilities of shape {rows.shape}, expected {shape}")
    if not ((rows >= -_ROUNDING) & (rows <= 1 + _ROUNDING)).all():  # nor is NaN one
        raise ModelError(f"{model} returned {rows.tolist()}, expected probabilities from 0 to 1")
    return rows.clip(0, 1)  # the rules take what is outside for no verdict


def _call(group: Group, name: str, factory: Callable[..., Any], *arguments: object) -> Any:
    try:
        return factory(*arguments)
    except RecognizerError:
        raise
    except (Exception, SystemExit) as error:  # a plug-in's bug is not the agent's: name whose it is
        raise ModelError(f"plug-in {name!r} of {group.value} failed: {type(error).__name__}: {error}") from error


def _wrong_type(group: Group, name: str, made: object, port: str) -> ModelError:
    return ModelError(f"plug-in {name!r} of {group.value} made a {type(made).__name__}, which is no {port}")


def _describe(group: Group, entry: importlib.metadata.EntryPoint) -> Plugin:
    package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
    return Plugin(group, entry.name, entry.value, package, version)
