"""`sim://`: a simulated camera as a video source, with the truth about what it shows."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from urllib.parse import parse_qsl, urlsplit

from agent.capture.base import NS_PER_S, GuardedSource
from agent.errors import ConfigError, ConfigProblem, SourceError
from agent.ports import StreamInfo
from agent.simulation.background import PLACES
from agent.simulation.scene import SimulatedScene, build_scene
from agent.simulation.scripts import MAX_PEOPLE, SCENARIOS, build_script
from agent.simulation.values import Interval
from agent.types import ImageArray

_CHOICES = {"scenario": SCENARIOS, "place": PLACES}
_RANGES = {
    "seed": (0, 2**31 - 1), "people": (1, MAX_PEOPLE), "width": (64, 1920), "height": (64, 1080), "fps": (1, 60),
    "seconds": (0.1, 86_400),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SimulatedCamera:
    """What `sim://?name=value&...` may say.

    scenario: one of `scripts.SCENARIOS`; people: about how many, 1-12; width, height: px; live: pictures come in real
    time for ever, else as fast as they are read, `seconds` of them (0 = one length of the script); place, night: as in
    `build_scene`, empty and None follow from the seed.
    """

    seed: int = 0
    people: int = 4
    scenario: str = SCENARIOS[0]
    width: int = 640
    height: int = 480
    fps: float = 30.0
    live: bool = True
    seconds: float = 0.0
    place: str = ""
    night: bool | None = None


def parse_simulated(url: str, camera_id: str = "sim") -> SimulatedCamera:
    """Read the `sim://` URL of a camera. Raises ConfigError that names every bad parameter and lists what is valid."""
    split = urlsplit(url)
    problems: list[ConfigProblem] = []

    def object_to(message: str, hint: str) -> None:
        problems.append(ConfigProblem(message=f"camera {camera_id!r}: sim:// {message}", path="cameras", hint=hint))

    if split.netloc or split.path.strip("/"):
        object_to(f"has no place for {split.netloc + split.path!r}", "write sim://?name=value&...")
    values: dict[str, object] = {}
    for name, text in parse_qsl(split.query, keep_blank_values=True):
        reader = _READERS.get(name)
        if reader is None:
            object_to(f"has no parameter {name!r}", f"valid: {', '.join(_READERS)}")
        elif name in values:
            object_to(f"parameter {name!r} stands twice", "give it once")
        else:
            try:
                values[name] = reader(name, text)
            except ValueError as error:
                object_to(f"parameter {name}={text!r}", str(error))
    if "seconds" in values and values.get("live", True) and not problems:
        object_to("is live and has no end, seconds has no meaning", "add live=no or drop seconds")
    if problems:
        raise ConfigError(problems)
    return SimulatedCamera(**values)  # type: ignore[arg-type]  # the readers return each field's type


class SimulatedSource(GuardedSource):
    """A VideoSource that draws its pictures.

    Live, a picture shows the scene at its time: when drawing takes too long, pictures are left out as by a slow camera,
    and scene time runs on while the source is closed. Not live, every picture comes, from 0 at each opening.
    """

    def __init__(self, camera: SimulatedCamera, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        super().__init__()
        self.camera = camera
        self.live = camera.live
        self._clock = clock
        self._build = threading.Lock()
        self._drawing = threading.Lock()
        self._scene: SimulatedScene | None = None
        self._origin_ns: int | None = None
        self._first: int | None = None
        self._last = -1

    @property
    def scene(self) -> SimulatedScene:
        """Script, camera and truth; made on first use (a second or so). While the source is being read it belongs to the
        reader's thread: scripts make their episodes as they are asked. Another thread asks a script of its own,
        `build_script(camera.scenario, seed=camera.seed, people=camera.people)`, which is the same."""
        with self._build:
            if self._scene is None:
                self._scene = _build(self.camera)
            return self._scene

    @property
    def origin_ns(self) -> int | None:
        """`clock()` at scene time 0 of a live source, None before it was first opened: an event at time t of that clock
        is at (t - origin_ns) / 1e9 s of `scene`. Not live, scene time is presentation time."""
        return self._origin_ns

    def intervals(self, start_s: float, end_s: float) -> tuple[Interval, ...]:
        """What the script has happen in this part of scene time. From any thread, also while pictures are read."""
        with self._drawing:
            return self.scene.script.intervals(start_s, end_s)

    def _open(self) -> StreamInfo:
        scene = self.scene
        if self.live and self._origin_ns is None:
            self._origin_ns = self._clock()
        self._last = self._now() - 1 if self.live else -1
        self._first = self._last + 1
        frames = 0 if self.live else self._frame_count()
        return StreamInfo(scene.width, scene.height, self.camera.fps, frames, live=self.live)

    def _grab(self) -> int | None:
        if self._first is None:
            raise SourceError("sim://: not open")
        following = self._last + 1
        if self.live:
            following = max(following, self._now())
            self._wait_for(following)
        elif following >= self._frame_count():
            return None
        self._last = following
        return round((following - self._first) * NS_PER_S / self.camera.fps)

    def _retrieve(self) -> ImageArray:
        if self._first is None or self._last < self._first:
            raise SourceError("sim://: nothing was read")
        with self._drawing:
            return self.scene.shot(self._last / self.camera.fps).image

    def _release(self) -> None:
        self._first = None

    def _now(self) -> int:
        """Number of the newest picture that is due."""
        return math.floor((self._clock() - (self._origin_ns or 0)) * self.camera.fps / NS_PER_S)

    def _wait_for(self, number: int) -> None:
        due_ns = (self._origin_ns or 0) + math.ceil(number * NS_PER_S / self.camera.fps)
        while (left_ns := due_ns - self._clock()) > 0:
            if self._closing.wait(left_ns / NS_PER_S):
                raise SourceError("the source was closed")

    def _frame_count(self) -> int:
        return max(1, round((self.camera.seconds or self.scene.script.length_s) * self.camera.fps))


def _build(camera: SimulatedCamera) -> SimulatedScene:
    script = build_script(camera.scenario, seed=camera.seed, people=camera.people)
    return build_scene(
        script, seed=camera.seed, width=camera.width, height=camera.height, place=camera.place, night=camera.night
    )


def _number(name: str, text: str) -> int | float:
    low, high = _RANGES[name]
    whole = isinstance(getattr(_DEFAULTS, name), int)
    hint = f"a {'whole number' if whole else 'number'} from {low} to {high}"
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise ValueError(hint) from None
    if not low <= value <= high:
        raise ValueError(hint)
    return value


def _choice(name: str, text: str) -> str:
    if text not in _CHOICES[name]:
        raise ValueError(f"one of {', '.join(_CHOICES[name])}")
    return text


def _yes_or_no(name: str, text: str) -> bool:  # noqa: ARG001  readers are called alike
    if text not in ("yes", "no"):
        raise ValueError("yes or no")
    return text == "yes"


_DEFAULTS = SimulatedCamera()
_READERS: dict[str, Callable[[str, str], object]] = {
    field.name: _choice if field.name in _CHOICES else _number if field.name in _RANGES else _yes_or_no
    for field in fields(SimulatedCamera)
}
