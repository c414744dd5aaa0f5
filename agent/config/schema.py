"""The configuration as frozen pydantic models: every key, its unit, its default and its limits.

A leaf module beside `types`: the pure parts take these models as their parameters, so a figure stands in one place.
Unknown keys are refused. Units are in the names. Which keys may change while running is marked `live=True`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from agent.config.delivery import (
    CommandsConfig,
    FileSinkConfig,
    MqttConfig,
    OutboxConfig,
    SinkConfig,
)
from agent.config.paths import ConfigPath, SourceText
from agent.config.sections import LIVE, BackoffConfig, Name, NonNegative, Positive, Probability, Section
from agent.config.update import UpdateConfig

# --- capture ----------------------------------------------------------------------------------------------------------


class CameraConfig(Section):
    """One camera, file, folder or pipeline."""

    id: Name
    source: SourceText = Field(min_length=1)
    """rtsp:// http(s):// URL, /dev/videoN or an index, a video file, a folder of videos, `gst:<pipeline>`, `sim://` (docs/simulation.md),
    or what a plug-in brings: `NAME://`, the name of an entry point in the group `recognizer_agent.sources`. In the password of a URL
    write `%` as `%25`, `/` as `%2F`, `?` as `%3F`, `#` as `%23`, `@` as `%40`."""
    enabled: bool = True
    priority: int = Field(default=0, ge=0, le=100, json_schema_extra=LIVE)
    """Higher = shed later when the governor has to slow down."""
    pace: bool = False
    """Files only: play at the recorded speed, newest frame wins, as a live camera would."""
    loop: bool = False
    """Files only: start again at the end."""
    max_fps: NonNegative = Field(default=0.0, json_schema_extra=LIVE)
    """Upper bound on frames handed to the pipeline per second (live sources); 0 = as they come."""
    services: tuple[Name, ...] | None = None
    """Services that watch this camera; absent = all."""
    reconnect: BackoffConfig = BackoffConfig()
    read_timeout_s: Positive = 10.0
    frozen_after_s: NonNegative = 10.0
    """Identical pictures for this long = frozen; 0 = do not look."""
    blind_after_s: NonNegative = 5.0
    """Black or uniform picture for this long = blind; 0 = do not look."""
    moved_after_s: NonNegative = 60.0
    """Another view than the camera used to have for this long, at least half a minute = moved; 0 = do not look. Cameras only, not files."""


# --- models -----------------------------------------------------------------------------------------------------------

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|tensorrt(:\d+)?)$")]


class BatchConfig(Section):
    """Dynamic batching across cameras."""

    max_size: int = Field(default=8, ge=1, le=64)
    max_wait_ms: NonNegative = 10.0


class PoseConfig(Section):
    """The pose estimator."""

    estimator: Name = "rtmo"
    """Name of an entry point in the group `recognizer_agent.pose_estimators`."""
    model: ConfigPath | None = None
    """Bundle folder or model file; `shipped:NAME` for one that comes with the agent, `catalogue:NAME` for a pulled one."""
    cpu_model: ConfigPath | None = None
    """Estimator `rtmo`: what stands in for `model` where only the CPU can serve, such as the same weights in 8 bits. A file that names
    `model` without it drops the one of the files below."""
    device: Device = "auto"
    threads: int = Field(default=0, ge=0, le=256)
    """Intra-op threads on the CPU; 0 = one per core."""
    score_threshold: Probability = 0.3
    """People below this score are dropped before tracking's own thresholds see them."""
    max_people: int = Field(default=50, ge=1, le=500)
    batch: BatchConfig = BatchConfig()
    engine_cache: ConfigPath | None = None
    """Folder of built engines; absent = `<state_dir>/engines`."""
    options: dict[str, Any] = {}
    """Handed to the estimator as they are."""


class TrackingConfig(Section):
    """ByteTrack (Zhang et al. 2022), upstream values."""

    variant: Literal["upstream", "palace"] = "upstream"
    """`palace`: the ByteTrack-cpp reference: no score fusion, IoU against the last updated box (see docs)."""
    track_threshold: Probability = 0.6
    low_threshold: Probability = 0.1
    new_margin: Probability = 0.1
    """A new track starts at `track_threshold + new_margin`."""
    match_threshold: Probability = 0.9
    """First association: accept 1 - IoU x score up to this."""
    second_match_threshold: Probability = 0.5
    unconfirmed_match_threshold: Probability = 0.7
    buffer_frames: int = Field(default=30, ge=1)
    """Frames a lost track is kept at 30 fps; scaled by fps / 30."""
    duplicate_iou_distance: Probability = 0.15
    min_box_area_px: NonNegative = 100.0
    max_aspect_ratio: Positive = 1.6
    """Boxes wider than this x their height are left out of the output unless `keep_wide`."""
    keep_wide: bool = False
    """Keep them: a person on the ground is one. The shipped configuration says true, upstream drops them."""
    keypoint_weight: Probability = 0.0
    """Weight of 1 - OKS in the first association's cost; IoU has the rest. 0 = plain ByteTrack."""


# --- action -----------------------------------------------------------------------------------------------------------


class WindowConfig(Section):
    """Sliding window over a camera's tracks."""

    length: int = Field(default=100, ge=2, le=1000)
    """T: time steps of the tensor."""
    stride: int = Field(default=50, ge=1, le=1000)
    """Time steps between two windows."""
    rate_hz: NonNegative = 0.0
    """0 = one time step per frame. Else tracks are resampled to this rate, so that a slowed camera keeps its motion. A model that says
    at which rate it was trained takes no other."""
    people: int = Field(default=4, ge=1, le=32)
    """M."""
    channels: Literal[2, 3, 4] = 3
    """x, y and score of each key point; the fourth: how the picture changes where people are. A model of fewer gets the first."""
    min_track_frames: int = Field(default=10, ge=1)
    """Tracks with fewer observed frames in the window are not people to judge by."""
    min_mean_score: Probability = 0.1
    """Tracks whose mean key-point score is lower are noise."""
    min_joints: int = Field(default=0, ge=0, le=17)
    """A frame that shows fewer joints of somebody says nothing of how they move, and does not count as seen: a scrap of who walks out, or behind others, lies low and looks fallen."""
    forget_left_s: NonNegative = 0.0
    """Who was last seen half out of the picture, and not for this long, has left and is not judged: who walks out seems to sink. 0 = never."""
    partial_at_end: bool = True
    """A file that ends before a full window still gets one."""


Component = Literal["movement", "interaction", "position", "persistence", "height_change", "posture_angle"]


class RulesConfig(Section):
    """Event state machine of one service."""

    alert_threshold: Probability = Field(default=0.8, json_schema_extra=LIVE)
    alert_count: int = Field(default=3, ge=1, json_schema_extra=LIVE)
    """Consecutive windows at or above `alert_threshold` that open an event."""
    normal_threshold: Probability = Field(default=0.5, json_schema_extra=LIVE)
    normal_count: int = Field(default=2, ge=1, json_schema_extra=LIVE)
    """Consecutive windows below `normal_threshold` that close it."""
    min_duration_s: NonNegative = Field(default=2.0, json_schema_extra=LIVE)
    """`detected` becomes `active` after this long."""
    max_duration_s: Positive = Field(default=10.0, json_schema_extra=LIVE)
    """`active` becomes `sustained` after this long."""
    cooldown_s: NonNegative = Field(default=5.0, json_schema_extra=LIVE)
    sustained_every_s: Positive = Field(default=30.0, json_schema_extra=LIVE)
    """Reminder while it goes on."""
    silence_s: Positive = Field(default=10.0, json_schema_extra=LIVE)
    """No verdict for this long (nobody in view, camera gone) closes an open event."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.normal_threshold > self.alert_threshold:
            raise ValueError("normal_threshold must not exceed alert_threshold")
        if self.min_duration_s > self.max_duration_s:
            raise ValueError("min_duration_s must not exceed max_duration_s")
        return self


class ServiceConfig(Section):
    """One recognition service over the tracks."""

    enabled: bool = True
    classifier: Name = "stgcn"
    """Name of an entry point in the group `recognizer_agent.action_classifiers`."""
    model: ConfigPath
    positive: Name | None = None
    """Label that means the action; absent = the service's own name."""
    device: Device = "auto"
    threads: int = Field(default=1, ge=0, le=256)
    lane: Literal["alarm", "event"] = "alarm"
    min_fps: NonNegative = 3.0
    """Of a live camera of which fewer frames a second are looked at, the health says that this service misses too much there."""
    window: WindowConfig = WindowConfig()
    selection: dict[Component, NonNegative] = {
        "movement": 0.4, "interaction": 0.4, "position": 0.1, "persistence": 0.1,
    }  # fmt: skip
    """Weights of the score that picks the people of a window."""
    rules: RulesConfig = RulesConfig()
    options: dict[str, Any] = {}

    @field_validator("selection")
    @classmethod
    def _some_weight(cls, value: dict[Component, float]) -> dict[Component, float]:
        if not sum(value.values()) > 0:
            raise ValueError("at least one selection weight must be above 0")
        return value


# --- events, delivery -------------------------------------------------------------------------------------------------


class EvidenceConfig(Section):
    """Pictures kept with an event. Faces are blurred before anything is held or stored."""

    enabled: bool = True
    pre_roll_s: NonNegative = 5.0
    post_roll_s: NonNegative = 5.0
    max_clip_s: Positive = 60.0
    fps: Positive = 10.0
    max_width_px: int = Field(default=640, ge=64, le=7680)
    jpeg_quality: int = Field(default=80, ge=10, le=100)
    blur_faces: bool = True
    max_age_days: Positive = Field(default=30.0, json_schema_extra=LIVE)
    max_bytes: int = Field(default=2_000_000_000, ge=1_000_000, json_schema_extra=LIVE)


# --- the rest ---------------------------------------------------------------------------------------------------------


HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?$")]


class HttpConfig(Section):
    """Health, metrics, state and the live page. Loopback unless told otherwise."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    """0 = any free port."""
    hosts: tuple[HostName, ...] = Field(default=(), json_schema_extra=LIVE)
    """Names under which the page may be asked for, such as the one of a reverse proxy, without port. Addresses, `localhost` and the
    machine's own name, also with `.local`, need no entry. Other names are refused (421): else any web page that a user of this
    network opens could read the cameras by letting its own name lead here."""
    live_fps: Positive = Field(default=10.0, json_schema_extra=LIVE)
    blur_faces: bool = True


class GovernorConfig(Section):
    """Closed loop that slows the agent down before it falls over, and up again."""

    enabled: bool = True
    interval_s: Positive = 2.0
    step_down_after_s: NonNegative = Field(default=6.0, json_schema_extra=LIVE)
    step_up_after_s: NonNegative = Field(default=30.0, json_schema_extra=LIVE)
    cpu_high: Probability = Field(default=0.9, json_schema_extra=LIVE)
    cpu_low: Probability = Field(default=0.7, json_schema_extra=LIVE)
    memory_high: Probability = Field(default=0.9, json_schema_extra=LIVE)
    memory_low: Probability = Field(default=0.8, json_schema_extra=LIVE)
    gpu_memory_high: Probability = Field(default=0.8, json_schema_extra=LIVE)
    gpu_memory_low: Probability = Field(default=0.7, json_schema_extra=LIVE)
    gpu_temperature_high_c: Positive = Field(default=85.0, json_schema_extra=LIVE)
    gpu_temperature_low_c: Positive = Field(default=78.0, json_schema_extra=LIVE)

    @model_validator(mode="after")
    def _hysteresis(self) -> Self:
        for name in ("cpu", "memory", "gpu_memory"):
            if getattr(self, f"{name}_low") >= getattr(self, f"{name}_high"):
                raise ValueError(f"{name}_low must be below {name}_high")
        if self.gpu_temperature_low_c >= self.gpu_temperature_high_c:
            raise ValueError("gpu_temperature_low_c must be below gpu_temperature_high_c")
        return self


class HealthConfig(Section):
    """Self-monitoring."""

    probe_interval_s: Positive = 2.0
    publish_interval_s: Positive = Field(default=30.0, json_schema_extra=LIVE)
    disk_min_free_bytes: int = Field(default=200_000_000, ge=0, json_schema_extra=LIVE)
    governor: GovernorConfig = GovernorConfig()


class DriftConfig(Section):
    """Watch over the models (docs/drift.md): alarms, and never changes a threshold by itself."""

    enabled: bool = True
    baseline: Literal["card", "local"] = "card"
    """card: the figures of the model's card where it has them; local: always what was learned on this device."""
    confidence_drop: Annotated[float, Field(gt=0, lt=1)] = 0.10
    """Relative fall of mean confidence or key-point visibility that counts as drift."""
    latency_rise: Positive = 0.20
    """Relative rise of the models' latency that does."""
    accuracy_drop: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the golden answers that may be lost."""
    class_rate_factor: Annotated[float, Field(gt=1)] = 3.0
    """The rate of positive verdicts times or divided by this is drift."""
    people_index: Positive = 0.25
    """Population stability index of the number of people per frame that is drift."""
    block_s: Positive = 300.0
    """Observations are judged in blocks: of at least this length, and with at least `min_samples` or `min_windows`."""
    min_samples: int = Field(default=100, ge=1)
    """Frames with people, or calls of a model."""
    min_windows: int = Field(default=20, ge=1)
    """Classified windows."""
    warmup_h: Positive = 24.0
    """Running time over which the local baseline is learned; less than a day does not know the night."""
    scene_h: Positive = 168.0
    """The same, and the window of comparison, for what depends on the habits of a place (people, class rates)."""
    min_blocks: int = Field(default=24, ge=3)
    """Blocks (hours of a window of `scene_h`) to learn from at least."""
    alarm_after_h: NonNegative = 2.0
    """A change must have lasted this long."""
    clear_after_h: NonNegative = 2.0
    false_alarm_every_days: Positive = 365.0
    """Per signal, as long as nothing changes: sets how much evidence an alarm needs."""
    golden_every_h: NonNegative = 6.0
    """Golden answers of the bundles are asked again this often, 0 = never."""


class LogConfig(Section):
    """Logging."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", json_schema_extra=LIVE)
    format: Literal["auto", "console", "json"] = "auto"
    """auto: console on a terminal, JSON elsewhere."""


class AgentConfig(Section):
    """The whole configuration."""

    version: Literal[1] = 1
    device_id: Name = "recognizer"
    state_dir: ConfigPath = Path("state")
    """Database, evidence, engine cache. Relative to the configuration file that names it."""
    cameras: tuple[CameraConfig, ...] = Field(default=(), json_schema_extra=LIVE)
    pose: PoseConfig = PoseConfig()
    tracking: TrackingConfig = TrackingConfig()
    services: dict[Name, ServiceConfig] = {}
    evidence: EvidenceConfig = EvidenceConfig()
    outbox: OutboxConfig = OutboxConfig()
    mqtt: MqttConfig = MqttConfig()
    sinks: dict[Name, SinkConfig] = {}
    commands: CommandsConfig = CommandsConfig()
    http: HttpConfig = HttpConfig()
    health: HealthConfig = HealthConfig()
    drift: DriftConfig = DriftConfig()
    update: UpdateConfig = UpdateConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for kind in ("drift", "gap"):
            if kind in self.services:
                raise ValueError(f"a service cannot be called {kind!r}: events of the agent itself have that kind")
        seen: set[str] = set()
        for camera in self.cameras:
            if camera.id in seen:
                raise ValueError(f"two cameras have the id {camera.id!r}")
            seen.add(camera.id)
            for service in camera.services or ():
                if service not in self.services:
                    known = ", ".join(sorted(self.services)) or "none"
                    raise ValueError(f"camera {camera.id!r} asks for the unknown service {service!r} (known: {known})")
        files = [sink.path for sink in self.sinks.values() if isinstance(sink, FileSinkConfig)]
        if twice := {path for path in files if files.count(path) > 1}:
            raise ValueError(f"two sinks write to the same file {min(twice)!r}")
        return self
