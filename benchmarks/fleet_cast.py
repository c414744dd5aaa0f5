"""Who takes part in `fleet_story.py`: the devices, the releases good and bad, and the plans by which they are let out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes.brokers import free_port
from fakes.candidates import crashing, crashing_beside, elsewhere, slower, slower_beside

DEVICES = ("gate-1", "gate-2", "gate-3")
SHIPPED = "pose-nano-int8"
PICTURE_PX = 320
"""Width and height. Square pictures leave the right of the model's input empty, which its golden answers do not: see crashing_beside."""
EMPTY_FROM_COLUMN = 544
SHADOW_S = 12
PROBATION_S = 8
LATE_PROBATION_S = 90
IN_GROUPS = {"groups": [{"name": "canary", "count": 1}, {"name": "rest"}], "roll_back": "group"}
WHATEVER_HAPPENS = {
    "groups": [{"name": "everyone", "success_percent": 1, "error_percent": 100}], "roll_back": "none",
}  # fmt: skip
"""The plan of somebody who wants it on as many devices as he can get."""
CROWDED = ("--latency-ratio", 6)
"""Of a good release: its times are taken while three agents share two cores."""


@dataclass(frozen=True)
class Bad:
    """A release that must not come to stay. reasons: words that the server may hear, one of them. honest: its golden answers are its own
    (there are none to be had of a model that crashes)."""

    name: str
    version: str
    reasons: frozenset[str]
    kills_agent: bool = False
    honest: bool = True


BAD = (
    Bad("slower", "9.1.0", frozenset({"slower"})),
    Bad("worse", "9.2.0", frozenset({"worse"})),
    Bad("crashing", "9.3.0", frozenset({"crash"}), honest=False),
    Bad("crashing on live pictures", "9.4.0", frozenset({"restart"}), kills_agent=True),
    Bad("slower once in use", "9.5.0", frozenset({"slower", "unhealthy"})),  # where it costs a whole core: unhealthy
)
CHANGES = (
    slower(40), elsewhere(60.0), crashing, crashing_beside(EMPTY_FROM_COLUMN), slower_beside(EMPTY_FROM_COLUMN, 20),
)  # fmt: skip
"""What was done to each of BAD."""
LATE = BAD[-1]
PLANTED = Bad("put on the list", "9.6.0", frozenset({"trust"}))
UNSIGNED = Bad("not signed", "9.9.0", frozenset({"trust"}))


def document_of(folder: Path, number: int, fps: int, *, fleet_port: int, broker_port: int) -> dict[str, Any]:
    """The configuration of the device whose token and root lie in `folder`. number: makes its pictures others than those of the rest."""
    server = f"http://127.0.0.1:{fleet_port}"
    picture = f"scenario=mixed&people=4&width={PICTURE_PX}&height={PICTURE_PX}"
    return {
        "device_id": folder.name, "state_dir": str(folder / "state"), "pose": {"threads": 1},
        "cameras": [{"id": "yard", "source": f"sim://?{picture}&seed={number}&fps={fps}", "blind_after_s": 0}],
        "services": {
            "fight": {"enabled": False}, "fall": {"rules": {"alert_threshold": 0.99, "normal_threshold": 0.1}}
        },
        "mqtt": {"port": broker_port}, "evidence": {"enabled": False}, "http": {"port": free_port()},
        "health": {"probe_interval_s": 1, "publish_interval_s": 1, "governor": {"enabled": False}},
        "update": {
            "enabled": True, "server": server, "repository": f"{server}/repository",
            "root_file": str(folder / "root.json"), "token_file": str(folder / "token"),
            "poll_min_s": 1, "reserve_bytes": 0, "shadow_s": SHADOW_S, "probation_s": PROBATION_S,
        },
    }  # fmt: skip
