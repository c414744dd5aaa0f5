"""From YAML files to an `AgentConfig`: layers, `${ENV}`, and every problem at once with file, line and hint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent.config.documents import Layer, Location, Place, problem_of
from agent.config.paths import PulledModels, models_dir, resource_dir
from agent.config.schema import AgentConfig
from agent.errors import ConfigError, ConfigProblem

Places = dict[Location, Place]


def load_config(files: Sequence[Path] = (), *, env: Mapping[str, str], need_pulled_models: bool = True) -> AgentConfig:
    """The shipped `configs/default.yaml` with `files` laid over it, last one wins.

    Mappings merge key by key, everything else (lists too) is replaced whole; a `cpu_model` goes with the `model` that it
    stands in for. Raises ConfigError with all problems; one of them is a `catalogue:` model that has not been pulled, unless
    need_pulled_models is False.
    """
    return load_with_places(files, env=env, need_pulled_models=need_pulled_models)[0]


def load_with_places(
    files: Sequence[Path] = (), *, env: Mapping[str, str], need_pulled_models: bool = True
) -> tuple[AgentConfig, Places]:
    """As `load_config`, with the file and line of every key."""
    layers = [Layer(path, env) for path in (resource_dir("configs") / "default.yaml", *files)]
    merged: Any = {}
    places: Places = {}
    problems: list[ConfigProblem] = []
    for layer in layers:
        tree = layer.read()
        problems += layer.problems
        places = _laid_over(places, layer.places)
        merged = _merge(merged, tree)
    try:
        pulled = _pulled_models(merged, files, env, required=need_pulled_models)
        config = AgentConfig.model_validate(merged, context=pulled)
    except ValidationError as error:
        named = {problem.path for problem in problems}  # a variable that is not set needs no second complaint
        found = [problem_of(item, places, AgentConfig) for item in error.errors(include_url=False)]
        problems += [problem for problem in found if problem.path not in named]
    if problems:
        raise ConfigError(problems)
    return config, places


def located(problem: ConfigProblem, places: Places) -> ConfigProblem:
    """`problem`, which somebody has with the key `problem.path`, with the place of the nearest key that stands in a file."""
    parts = tuple(problem.path.split("."))
    place = next((places[parts[:n]] for n in range(len(parts), 0, -1) if parts[:n] in places), Place("", 0))
    return replace(problem, file=problem.file or place.file, line=problem.line or place.line)


def _pulled_models(
    tree: dict[str, Any], files: Sequence[Path], env: Mapping[str, str], *, required: bool
) -> PulledModels:
    state_dir = tree.get("state_dir") or AgentConfig.model_fields["state_dir"].default
    try:
        return PulledModels(models_dir(state_dir, env), required, tuple(files))
    except ValueError:  # validation says what is wrong with state_dir; that nothing is in it is no news then
        return PulledModels(Path(), required=False)


def _laid_over(below: Places, above: Places) -> Places:
    """Places of two layers together: with a list that is replaced goes what stood in it, or errors would be looked for there."""
    lists = {where[:n] for where in above for n, part in enumerate(where) if isinstance(part, int)}
    kept = {where: place for where, place in below.items() if not any(where[:n] in lists for n in range(len(where)))}
    return kept | above


def _merge(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        if "model" in above:  # another model: its stand-in would be served in its place, unasked
            below = {key: value for key, value in below.items() if key != "cpu_model"}
        return below | {key: _merge(below.get(key), value) for key, value in above.items()}
    return above
