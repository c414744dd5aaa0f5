"""`recognizer-agent demo`: camera, agent, broker, live page and subscriber in one process, nothing left behind."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import yaml
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from agent.app import Agent
from agent.capture.simulated import SimulatedSource
from agent.cli import EXIT_USAGE
from agent.commands.loop import run_loop
from agent.commands.output import complain
from agent.commands.scene_judge import SceneJudge
from agent.config.load import load_config
from agent.config.paths import resource_dir
from agent.config.schema import AgentConfig
from agent.errors import DataError, SourceError
from agent.events.cloudevents import ReceivedEvent, parse
from agent.mqtt.broker import EmbeddedBroker
from agent.net import free_port, require_free
from agent.observe.logging import configure_logging
from agent.ports import ScalableEstimator
from agent.types import POSE_SLOT, CameraPhase

SCENE = "sim://?scenario=mixed&seed={seed}&people=4&fps=30"
_CAMERA = "demo"
_HOST = "127.0.0.1"
_LONGEST_LINE = 120
TARGET_MS = 18.0
"""A picture: where this machine needs longer, the pose model sees smaller ones, and the camera that it draws for itself stays fluent."""


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Print the events as a subscriber receives them; ends after --seconds or with Ctrl-C."""
    if bool(args.pose_plugin) != bool(args.pose_model):
        return complain("--pose-plugin and --pose-model go together", EXIT_USAGE)
    if args.video is not None and not args.video.is_file():
        return complain(f"--video {args.video}: there is no such file", EXIT_USAGE)
    with tempfile.TemporaryDirectory(prefix="recognizer-demo-") as folder:
        config = demo_config(args, Path(folder), env)
        configure_logging(config.log)
        return run_loop(lambda: _demo(config, env, args.seconds))


def demo_config(args: argparse.Namespace, folder: Path, env: Mapping[str, str]) -> AgentConfig:
    """The shipped defaults with everything embedded; state goes to `folder`. Raises ConfigError."""
    camera: dict[str, object] = {"id": _CAMERA, "source": args.camera or SCENE.format(seed=args.seed)}
    if args.video is not None:
        video = {"source": str(args.video.absolute()), "loop": True, "pace": True}
        camera |= video | {"frozen_after_s": 0}
    document: dict[str, object] = {
        "device_id": "demo",
        "state_dir": str(folder),
        "cameras": [camera],
        "mqtt": {"protocol": "3.1.1", "port": args.mqtt_port or free_port(_HOST)},
        "http": {"port": args.port},
        "log": {"level": "warning", "format": "console"},
        # It draws its own pictures, and may use all of the machine for it.
        "health": {"publish_interval_s": 5, "governor": {"enabled": False}},
    }
    if args.pose_plugin:
        env = {"POSENET_MODEL": str(args.pose_model), **env}
        document["pose"] = {"estimator": args.pose_plugin, "model": str(args.pose_model.absolute())}
    else:
        document["pose"] = {"options": {"target_ms": TARGET_MS}}
    file = folder / "demo.yaml"
    # Names of files as they are: not JSON, whose escapes cut an emoji in two, and no `${}` filled in.
    file.write_text(yaml.safe_dump(document).replace("$", "$$"), encoding="utf-8")
    shipped = resource_dir("configs") / f"{args.pose_plugin or 'pose-nano'}.yaml"  # thresholds that fit the estimator
    return load_config([shipped, file] if shipped.is_file() else [file], env=env)


async def _demo(config: AgentConfig, env: Mapping[str, str], seconds: float | None) -> None:
    """Raises SourceError at the end when the camera gave no picture."""
    require_free(config.http.host, config.http.port, "--port")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(EmbeddedBroker(_HOST, config.mqtt.port, key="--mqtt-port"))
        agent = Agent(config, environ=env, load=lambda: config)
        printer = _Printer(lambda: _judge(agent))
        subscriber = _subscribe(config.mqtt.port, f"{config.mqtt.base_topic}/#", printer.show)
        stack.callback(subscriber.loop_stop)
        stack.callback(subscriber.disconnect)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(agent.run(), name="agent")
            waiting = group.create_task(_until_stopped(agent, config, seconds, printer), name="demo")
            running.add_done_callback(lambda _: waiting.cancel())
    if not waiting.cancelled() and (blind := waiting.result()):
        raise SourceError(f"no picture came from {blind}")


def _judge(agent: Agent) -> SceneJudge | None:
    """What knows the truth about a simulated camera; None while it is not open, and for other cameras."""
    source = agent.cameras.source(_CAMERA) if agent.cameras is not None else None
    if not isinstance(source, SimulatedSource) or source.origin_ns is None:
        return None
    kinds = [name for name, service in agent.config.services.items() if service.enabled]
    return SceneJudge(source.intervals, source.origin_ns, kinds)


async def _until_stopped(agent: Agent, config: AgentConfig, seconds: float | None, printer: _Printer) -> str:
    """What is wrong with the camera after `seconds`, if it gave no picture; empty otherwise."""
    await agent.ready_event.wait()
    started_s = time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            if agent.http is not None:
                await agent.http.started.wait()
                _say(f"live page      http://127.0.0.1:{agent.http.port}/")
            _say(f"subscribe      mosquitto_sub -h 127.0.0.1 -p {config.mqtt.port} -t '{config.mqtt.base_topic}/#' -v")
            _say("stop           Ctrl-C")
            await asyncio.Event().wait()
    except TimeoutError:
        pass  # it was to last that long
    finally:
        for line in [*_speed(agent, time.monotonic() - started_s), *printer.closing()]:
            _say(line)
        agent.stop()
    return _blind(agent)


def _blind(agent: Agent) -> str:
    statuses = agent.cameras.statuses() if agent.cameras is not None else []
    return ", ".join(status.error or "the camera" for status in statuses if not status.frames)


def _say(line: str) -> None:
    """One write, so that lines of other threads and of the log do not run into it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _speed(agent: Agent, seconds: float) -> list[str]:
    """Over all of these seconds: cameras that have just been stopped say nothing of their rate any more."""
    statuses = agent.cameras.statuses() if agent.cameras is not None else []
    estimator = agent.recognition.slots[POSE_SLOT] if agent.recognition is not None else None
    size = "seen at {1}x{0}, ".format(*estimator.canvas) if isinstance(estimator, ScalableEstimator) else ""
    return [
        f"speed          {status.frames / seconds:.1f} frames/s of {status.width}x{status.height}, {size}"
        f"{agent.metrics.mean_pose_s() * 1e3:.1f} ms a frame in the pose model, {status.dropped} of"
        f" {status.frames + status.dropped} frames left out"
        for status in statuses
        if status.phase is not CameraPhase.CONNECTING
    ]


class _Printer:
    """Prints what the subscriber hears, and holds it against the truth where there is one. Called on its thread."""

    def __init__(self, find_judge: Callable[[], SceneJudge | None]) -> None:
        self._find_judge = find_judge
        self._judge: SceneJudge | None = None

    def show(self, message: MQTTMessage) -> None:
        self._judge = self._judge or self._find_judge()
        if self._judge is not None:
            self._judge.look()
        try:
            event = parse(bytes(message.payload))
        except DataError:
            text = message.payload.decode("utf-8", "replace")
            cut = text if len(text) <= _LONGEST_LINE else text[: _LONGEST_LINE - 3] + "..."
            _say(f"mqtt  {message.topic}  {cut}")
            return
        _say(_describe(event))
        if self._judge is not None and (verdict := self._judge.verdict(event)):
            _say(f"      scene: {verdict}")

    def closing(self) -> list[str]:
        return self._judge.closing() if self._judge is not None else []


def _subscribe(port: int, topic: str, show: Callable[[MQTTMessage], None]) -> Client:
    """A plain subscriber on a thread of its own."""
    client = Client(CallbackAPIVersion.VERSION2, client_id="recognizer-demo-subscriber")
    client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
    client.on_message = lambda _client, _data, message: show(message)
    client.connect(_HOST, port)
    client.loop_start()
    return client


def _describe(event: ReceivedEvent) -> str:
    return (
        f"EVENT {event.kind} {event.phase.value} on {event.camera_id}, sure {event.confidence:.0%},"
        f" for {event.duration_s:.1f} s  (sequence {event.sequence})"
    )
