"""`model: catalogue:NAME`: resolved in the folder of pulled models, refused with a hint where it is not pulled."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent.cli import build_parser
from agent.config.load import load_config
from agent.config.paths import models_dir
from agent.config.schema import PoseConfig
from agent.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    config = tmp_path / "agent.yaml"
    config.write_text("state_dir: state\npose:\n  model: catalogue:rtmo-s\n")
    return config


def test_it_lies_below_the_state_folder(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "models" / "pulled" / "rtmo-s"
    folder.mkdir(parents=True)
    assert load_config([file], env={}).pose.model == folder


def test_or_where_the_variable_says(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared" / "pulled" / "rtmo-s"
    folder.mkdir(parents=True)
    assert load_config([file], env={"RECOGNIZER_MODELS": str(tmp_path / "shared")}).pose.model == folder


def test_a_service_may_have_one_too(tmp_path: Path) -> None:
    (tmp_path / "models" / "pulled" / "fights").mkdir(parents=True)
    file = tmp_path / "agent.yaml"
    file.write_text(f"state_dir: {tmp_path}\nservices: {{fight: {{model: 'catalogue:fights'}}}}\n")
    assert load_config([file], env={}).services["fight"].model == tmp_path / "models" / "pulled" / "fights"


def test_what_is_not_pulled_is_named_with_its_line_and_the_command(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([file], env={})
    (problem,) = caught.value.problems
    assert str(problem) == (
        f"{file}:3:pose.model: catalogue:rtmo-s: this model is not on this machine yet "
        f"(hint: recognizer-agent models pull rtmo-s --config {file})"
    )


def test_the_command_names_every_file_and_can_be_typed_as_it_stands(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "north wing.yaml"
    other.write_text("log: {level: debug}\n")
    with pytest.raises(ConfigError) as caught:
        load_config([file, other], env={})
    (problem,) = caught.value.problems
    arguments = build_parser().parse_args(shlex.split(problem.hint)[1:])
    assert (arguments.name, arguments.config) == ("rtmo-s", [file, other])


def test_the_command_that_pulls_it_reads_the_same_file(file: Path, tmp_path: Path) -> None:
    config = load_config([file], env={}, need_pulled_models=False)
    assert config.pose.model == tmp_path / "state" / "models" / "pulled" / "rtmo-s"


@pytest.mark.parametrize("name", ["", "../../etc", "a/b", ".hidden"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(f"pose: {{model: 'catalogue:{name}'}}\n")
    with pytest.raises(ConfigError, match="not a name of the catalogue"):
        load_config([file], env={}, need_pulled_models=False)


def test_without_a_configuration_file_there_is_no_folder_to_look_in() -> None:
    with pytest.raises(ValidationError, match="only a configuration file can name a pulled model"):
        PoseConfig.model_validate({"model": "catalogue:rtmo-s"})


def test_the_folder_of_models(tmp_path: Path) -> None:
    assert models_dir(tmp_path, {}) == tmp_path / "models"
    assert models_dir(tmp_path, {"RECOGNIZER_MODELS": ""}) == tmp_path / "models"
    assert models_dir(tmp_path, {"RECOGNIZER_MODELS": "/srv/models"}) == Path("/srv/models")
