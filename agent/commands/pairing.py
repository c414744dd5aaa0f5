"""Whether tracking and the action models go with the pose model: each may be good for itself, and the box sees nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.config.paths import resource_dir
from agent.config.schema import AgentConfig
from agent.errors import ModelError
from agent.runtime.bundle import MANIFEST, read_bundle
from agent.runtime.selfcheck import card_baseline


def mismatches(config: AgentConfig) -> Iterator[str]:
    """What does not go with the pose model, each with its key. Reads the manifest that comes with it, loads no model."""
    model = config.pose.model
    if model is None:
        return
    starts_at, usual = config.tracking.track_threshold + config.tracking.new_margin, _usual_score(model)
    if usual is not None and starts_at > usual:
        yield (
            f"tracking.track_threshold: tracks start at a score of {starts_at:g} (with new_margin), {model.name} gives people "
            f"{usual:g} on average: many are never tracked (hint: lower it; pose-nano goes with all of "
            f"{resource_dir('configs') / 'pose-nano.yaml'})"
        )
    shipped = resource_dir("models")
    if model not in {shipped / "pose-nano", shipped / "pose-nano-int8"}:
        return
    for name, service in config.services.items():
        if service.enabled and service.model == shipped / "fight-stgcn":
            yield (
                f"services.{name}.model: fight-stgcn knows people as other estimators see them, and misses most real fights "
                f"through {model.name} (hint: shipped:fight-stgcn-nano)"
            )


def _usual_score(model: Path) -> float | None:
    """Mean score of a person, as the bundle's card has it; None where nothing says so."""
    if not (model / MANIFEST).is_file():
        return None
    try:
        return card_baseline(read_bundle(model)).get("person_confidence")
    except ModelError:  # said where the model is loaded
        return None
