"""YAML files of the measurements (bars, plans of scenes) as models, with every error where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from agent.config.schema import Section
from agent.errors import ConfigError, ConfigProblem

Document = TypeVar("Document", bound=Section)


def read_document(path: Path, model: type[Document]) -> Document:
    """The file as a `model`. Raises ConfigError: unreadable, no YAML (with its line), or not what the model wants (keys)."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([ConfigProblem(f"cannot be read: {error.strerror}", str(path))]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError([ConfigProblem(f"not YAML: {error}", str(path), mark.line + 1 if mark else 0)]) from error
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ConfigError([
            ConfigProblem(problem["msg"], str(path), path=".".join(map(str, problem["loc"])))
            for problem in error.errors()
        ]) from error  # fmt: skip
