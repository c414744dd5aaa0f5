"""Multi-person PoseNet through LiteRT, as the pose estimator `posenet` of the Recognizer agent."""

from __future__ import annotations

from agent.config.schema import PoseConfig
from agent.errors import ConfigError, ConfigProblem
from agent.ports import PoseEstimator

from recognizer_posenet_litert.estimator import PoseNetEstimator
from recognizer_posenet_litert.options import PoseNetOptions, parse_options

__all__ = ["PoseNetEstimator", "PoseNetOptions", "create"]


def create(config: PoseConfig) -> PoseEstimator:
    """The entry point: an estimator as the section `pose` of the configuration describes it.

    Uses model (a .tflite file), device (auto or cpu), threads, score_threshold, max_people and options
    (see PoseNetOptions). Raises ConfigError for what is wrong there, ModelError for a file that cannot serve.
    """
    problems = []
    if config.model is None:
        problems.append(
            ConfigProblem(
                "posenet needs a model", path="pose.model", hint="the path of a PoseNet .tflite without decoder"
            )
        )
    if config.device not in {"auto", "cpu"}:
        problems.append(
            ConfigProblem(f"posenet cannot run on {config.device!r}", path="pose.device", hint="write auto or cpu")
        )
    options, wrong = parse_options(config.options)
    problems.extend(wrong)
    if problems or config.model is None or options is None:
        raise ConfigError(problems)
    return PoseNetEstimator(
        config.model,
        threads=config.threads,
        score_threshold=config.score_threshold,
        max_people=config.max_people,
        options=options,
    )
