"""The configuration as frozen pydantic models: every key, its unit, its default and its limits.

A leaf module beside `types`: the pure parts take these models as their parameters, so a figure stands in one place.
Unknown keys are refused. Units are in the names. Which keys may change while running is marked `live=True`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from agent.config.paths import ConfigPath, SourceText

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""A name that is safe in topics, file names and metric labels."""

LIVE: dict[str, Any] = {"live": True}
"""Marks a key that a reload applies without a restart."""


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


# --- capture ----------------------------------------------------------------------------------------------------------


class BackoffConfig(Section):
    """Full-jitter exponential backoff: the n-th wait is uniform in (0, min(max_s, initial_s * 2**n))."""

    initial_s: Positive = 1.0
    max_s: Positive = 30.0


class CameraConfig(Section):
    """One camera, file, folder or pipeline."""

    id: Name
    source: SourceText = Field(min_length=1)
    """rtsp:// http(s):// URL, /dev/videoN or an index, a video file, a folder of videos, or `gst:<pipeline>`."""
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
    """0 = one time step per frame. Else tracks are resampled to this rate, so that a slowed camera keeps its motion."""
    people: int = Field(default=4, ge=1, le=32)
    """M."""
    channels: Literal[2, 3] = 3
    min_track_frames: int = Field(default=10, ge=1)
    """Tracks with fewer observed frames in the window are not people to judge by."""
    min_mean_score: Probability = 0.1
    """Tracks whose mean key-point score is lower are noise."""
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


class OutboxConfig(Section):
    """The event database."""

    file: str = "events.db"
    """Relative to `state_dir`."""
    commit_max_rows: int = Field(default=200, ge=1, le=10_000)
    commit_max_wait_ms: NonNegative = 2.0
    """Group commit: how long the writer gathers before it commits."""
    history_days: Positive = Field(default=30.0, json_schema_extra=LIVE)
    max_bytes: int = Field(default=2_000_000_000, ge=1_000_000, json_schema_extra=LIVE)
    """Of the database file; above it the oldest delivered events leave the history early."""
    reserve_bytes: int = Field(default=16_777_216, ge=0)
    """Disk space set aside for the moment when the disk is full, so that alarms still fit; 0 = none."""
    alarm_max_age_s: Positive = Field(default=2_592_000.0, json_schema_extra=LIVE)
    """What waits longer is given up, and announced as a gap."""
    event_max_age_s: Positive = Field(default=2_592_000.0, json_schema_extra=LIVE)
    state_max_age_s: Positive = Field(default=3600.0, json_schema_extra=LIVE)
    telemetry_max_age_s: Positive = Field(default=600.0, json_schema_extra=LIVE)
    alarm_max_bytes: int = Field(default=256_000_000, ge=100_000, json_schema_extra=LIVE)
    """Of the payloads that wait in a lane; above it the oldest are given up, and announced as a gap."""
    event_max_bytes: int = Field(default=512_000_000, ge=100_000, json_schema_extra=LIVE)
    state_max_bytes: int = Field(default=16_000_000, ge=100_000, json_schema_extra=LIVE)
    telemetry_max_bytes: int = Field(default=32_000_000, ge=100_000, json_schema_extra=LIVE)


class TlsConfig(Section):
    """TLS towards the broker, or the receiver of a webhook."""

    ca_file: ConfigPath | None = None
    """Absent = the system's authorities."""
    cert_file: ConfigPath | None = None
    key_file: ConfigPath | None = None
    verify_hostname: bool = True

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self


class DiscoveryConfig(Section):
    """Home Assistant's discovery (docs/home-assistant.md)."""

    enabled: bool = False
    prefix: str = Field(default="homeassistant", pattern=r"^[^/+#$\x00]([^+#$\x00]*[^/+#$\x00])?$")
    """As set in Home Assistant's MQTT integration."""


class MqttConfig(Section):
    """The broker."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(default=1883, ge=1, le=65535)
    protocol: Literal["3.1.1", "5"] = "5"
    client_id: str = ""
    """Empty = `recognizer-<device id>`."""
    username: str = ""
    password: str = Field(default="", repr=False)
    password_file: ConfigPath | None = None
    tls: TlsConfig | None = None
    base_topic: str = "recognizer"
    keepalive_s: int = Field(default=30, ge=5, le=3600)
    max_in_flight: int = Field(default=20, ge=1, le=1000)
    publish_timeout_s: Positive = 20.0
    discovery: DiscoveryConfig = DiscoveryConfig()
    reconnect: BackoffConfig = BackoffConfig()
    spread_s: NonNegative = 2.0
    """After a lost connection each device waits its own, always equal share of this, on top of `reconnect`: the devices of a
    site do not all come back in the same moment."""
    session_expiry_s: int = Field(default=3600, ge=0, le=4_294_967_295)
    """How long the broker keeps what was sent to a device that is away (MQTT 3.1.1: for ever); 0 = not at all."""
    inbound_max_bytes: int = Field(default=65_536, ge=1024, le=1_048_576)
    """Larger messages to the agent are dropped and counted."""
    inbound_max_per_s: Positive = 20.0
    """Messages to the agent above this rate are dropped and counted."""
    max_bytes_per_s: NonNegative = Field(default=0.0, json_schema_extra=LIVE)
    """For metered links: bound on topics and payloads sent; 0 = none. Alarms do not wait for anything but alarms."""
    give_up_after: int = Field(default=10, ge=1)
    """A message that the broker refuses without a reason (0x80, 0x83) this often, over `give_up_after_s`, while it takes others,
    becomes a dead letter."""
    give_up_after_s: NonNegative = 300.0
    compression: Literal["none", "deflate", "gzip"] = "none"
    """Of events from 256 bytes on; every subscriber must know it (MQTT 5)."""
    signing_key_file: ConfigPath | None = None
    """Key of at least 32 bytes by which events are signed (MQTT 5); absent = no signature."""

    @model_validator(mode="after")
    def _seals_need_properties(self) -> Self:
        if self.protocol != "5" and (self.compression != "none" or self.signing_key_file is not None):
            raise ValueError("compression and signing_key_file need protocol 5, whose properties name them")
        return self

    @field_validator("protocol", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("base_topic")
    @classmethod
    def _plain_topic(cls, value: str) -> str:
        if not value or value.startswith("/") or value.endswith("/") or re.search(r"[+#$\x00]", value):
            raise ValueError("must not be empty, start or end with '/', or hold '+', '#', '$'")
        return value


# --- further sinks ----------------------------------------------------------------------------------------------------


class SinkBackoffConfig(BackoffConfig):
    """After a delivery that failed for the moment, as for cameras."""

    max_s: Positive = 300.0


class SinkBase(Section):
    """What all sinks have in common (docs/sinks.md)."""

    lanes: tuple[Literal["alarm", "event"], ...] = Field(default=("alarm", "event"), min_length=1)
    """Only these are delivered. Announcements of losses pass every filter."""
    kinds: tuple[Name, ...] | None = Field(default=None, min_length=1)
    """Only events of these kinds are delivered, such as `fight`; absent = all."""
    backoff: SinkBackoffConfig = SinkBackoffConfig()
    give_up_after: int = Field(default=500, ge=0)
    """An event that the other side answers with an error of its own this often is given up, and announced as a gap; 0 = never.
    Failures of the network do not count. With the waits of `backoff` the default takes most of a day."""


class WebhookSinkConfig(SinkBase):
    """One HTTP POST for each event, signed as Standard Webhooks says."""

    type: Literal["webhook"]
    url: str = Field(repr=False)
    """http:// or https://"""
    secret_files: tuple[ConfigPath, ...] = Field(min_length=1, max_length=8)
    """Each holds one secret, `whsec_` and 24 to 64 bytes in base64, and is readable by its owner alone or is a systemd credential.
    Each makes a signature: name the new and the old one while they change."""
    timeout_s: Positive = 15.0
    """From the first attempt to connect to the answer."""
    tls: TlsConfig | None = None
    """Absent = the system's authorities and no certificate of our own."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if not re.fullmatch(r"(?i)https?://[^\s/?#@]+(/[^\s#]*)?(\?[^\s#]*)?", value):
            raise ValueError("must be an http:// or https:// URL without user, password and fragment")
        return value


class FileSinkConfig(SinkBase):
    """JSON lines in a file, on disk before an event counts as delivered."""

    type: Literal["file"]
    path: str = Field(default="events.jsonl", pattern=r"^.*[^/]\.jsonl$")
    """Relative to `state_dir`; ends in `.jsonl`."""
    max_bytes: int = Field(default=50_000_000, ge=10_000)
    """A file that would grow above this is renamed to `<path>.1`, that one to `<path>.2`, and so on."""
    keep_files: int = Field(default=5, ge=1, le=1000)
    """How many renamed files stay."""


class PluginSinkConfig(SinkBase):
    """A sink that another package brings."""

    type: Literal["plugin"]
    plugin: Name
    """Name of an entry point in the group `recognizer_agent.sinks`."""
    timeout_s: Positive = 30.0
    """For one delivery."""
    options: dict[str, Any] = {}
    """Handed to the plug-in as they are."""


SinkConfig = Annotated[WebhookSinkConfig | FileSinkConfig | PluginSinkConfig, Field(discriminator="type")]

# --- the rest ---------------------------------------------------------------------------------------------------------


Role = Literal["viewer", "operator", "admin"]


class CommandClient(Section):
    """Somebody who may give commands, known by the key that signs them."""

    role: Role
    key_file: ConfigPath
    """At least 32 bytes, readable by the agent alone."""


class CommandsConfig(Section):
    """Commands over MQTT (docs/commands.md)."""

    enabled: bool = False
    unsigned_role: Literal["none", "viewer", "operator", "admin"] = "none"
    """Of a command without a signature: whoever the broker lets publish to `cmd/+` has this role."""
    clients: dict[Name, CommandClient] = {}
    roles: dict[Role, tuple[str, ...]] = {
        "viewer": ("snapshot",),
        "operator": ("snapshot", "set-level", "replay-events", "self-test"),
        "admin": ("snapshot", "set-level", "replay-events", "self-test", "reload"),
    }
    """What each may command."""
    max_per_minute: int = Field(default=30, ge=1)
    max_validity_s: Positive = 86_400.0
    """A command must expire within this time."""


class HttpConfig(Section):
    """Health, metrics, state and the live page. Loopback unless told otherwise."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    """0 = any free port."""
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
