"""Configuration of the commands that try models on files and scenes, and watch over nobody."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.config.load import load_config
from agent.config.paths import resource_dir
from agent.config.schema import AgentConfig

SMALL = "pose-nano.yaml"
NOTE = (
    "note: no pose model is configured (pose.model), so pose-nano is taken, which knows simulated people; "
    "for real ones: --config configs/posenet.yaml, or an RTMO model"
)


def load_trial_config(files: Sequence[Path], *, env: Mapping[str, str]) -> AgentConfig:
    """As `load_config`; where it names no pose model, the shipped pose-nano with its thresholds, and a note on standard error.

    `run` does without: nobody is watched by a model that nobody chose. Raises ConfigError.
    """
    config = load_config(files, env=env)
    if config.pose.model is not None or config.pose.estimator != "rtmo":
        return config
    print(NOTE, file=sys.stderr)
    return load_config([resource_dir("configs") / SMALL, *files], env=env)
