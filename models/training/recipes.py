"""What differs between the services: windows, who is in them, how long and on what they train."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.config.schema import Component, ServiceConfig, WindowConfig

WINDOW = WindowConfig(length=100, stride=50, rate_hz=30.0, people=4, min_track_frames=10, min_mean_score=0.1)
"""As in the shipped configuration, but for the stride, which there is 15 (docs/adr/0006): windows to train on need not overlap so
much; and for `min_joints` and `forget_left_s`: networks learn of people who walk out, too."""
SHORT_TRACKS = WINDOW.model_copy(update={"min_track_frames": 4, "min_mean_score": 0.05, "channels": 4})
"""For fights: in a clinch tracks break all the time, and a doubtful pose is better than nobody; and where poses fail, the picture
still changes."""

_TRAINED_ON = (
    "length",
    "stride",
    "rate_hz",
    "people",
    "channels",
    "min_track_frames",
    "min_mean_score",
    "partial_at_end",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Hyper-parameters of one service's model. members: networks averaged in one graph."""

    service: str
    negative: str
    selection: dict[Component, float]
    steps: int
    members: int
    pretraining_steps: int = field(default=1200, kw_only=True)
    learning_rate: float
    window: WindowConfig = WINDOW
    width: int = 16
    wide: bool = False
    """See `network.Statistics`."""
    drop: float = 0.3
    weight_decay: float = 0.02
    batch: int = 16
    ema: float = 0.97
    simulated: float = 0.4
    """Share of the training windows that come from simulated scenes; the rest are real, but for motion-capture falls
    (`train.SYNTHETIC_BESIDE_SCENES`)."""
    doubt_of_made: float = 0.0
    """Smoothing of the labels of simulated windows while networks train. They are exact; but networks that are sure of them judge
    the clips of real fights worse (docs/models.md)."""
    calibration_simulated: float = 0.45
    """Weight of simulated windows in the calibration."""
    trees: int = 0
    """Of the forest that judges beside the networks; 0 = none. The other figures of it are those of `forest.grow`."""
    leaf: float = 2.0
    features: float = 0.2
    forest_simulated: float = 0.4
    forest_weight: float = 0.5

    def pretraining(self) -> Recipe:
        """The same network on made windows alone, of which there are many."""
        return replace(self, steps=self.pretraining_steps, batch=32, learning_rate=4e-3)

    @property
    def digest(self) -> str:
        """Eight hex digits of everything above: what tables of figures and a bundle's manifest agree on.

        What only the running agent is told of its windows is no part of it, nor is what its configuration learns later.
        """
        trained = ", ".join(f"{name}={getattr(self.window, name)!r}" for name in _TRAINED_ON)
        known = repr(self).replace(repr(self.window), f"WindowConfig({trained})")
        return hashlib.sha256(known.encode()).hexdigest()[:8]

    def service_config(self) -> ServiceConfig:
        """As the agent would configure it."""
        return ServiceConfig(model=Path(f"{self.service}-stgcn"), window=self.window, selection=self.selection)


RECIPES = {
    "fight": Recipe(
        service="fight",
        negative="other",
        selection={"movement": 0.4, "interaction": 0.4, "position": 0.1, "persistence": 0.1},
        steps=240,
        members=3,
        learning_rate=2e-3,
        window=SHORT_TRACKS,
        wide=True,
        doubt_of_made=0.05,
        trees=150,
        forest_weight=0.3,
    ),
    "fall": Recipe(
        service="fall",
        negative="other",
        selection={
            "height_change": 0.35, "posture_angle": 0.25, "movement": 0.2, "persistence": 0.15, "position": 0.05,
        },
        steps=500,
        members=2,
        learning_rate=2e-3,
        batch=24,
        simulated=0.6,
    ),
}  # fmt: skip
