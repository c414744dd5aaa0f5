"""`recognizer-agent demo`: agent, broker, live page and subscriber in one process, nothing left behind."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from agent.app import Agent
from agent.cli import EXIT_FAILED
from agent.commands.run import run_loop
from agent.config.load import load_config
from agent.config.paths import resource_dir
from agent.config.schema import AgentConfig
from agent.errors import DataError
from agent.events.cloudevents import parse
from agent.mqtt.broker import EmbeddedBroker

MISSING = """The demo needs a pose model and something to watch; this version ships neither yet.

  pose model   --pose-plugin posenet --pose-model FILE.tflite   (or set POSENET_MODEL;
               `examples/plugins/posenet_litert/README.md` says where the model comes from)
  to watch     --video FILE.mp4   or   --camera 0   or   --camera rtsp://...

Missing here: {missing}
"""


def run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Print the events as a subscriber receives them; ends after --seconds or with Ctrl-C."""
    plugin = args.pose_plugin or ("posenet" if env.get("POSENET_MODEL") else "")
    model = args.pose_model or env.get("POSENET_MODEL", "")
    missing = [
        name
        for name, there in (("a pose model", plugin and model), ("a video or camera", args.video or args.camera))
        if not there
    ]
    if missing:
        print(MISSING.format(missing=" and ".join(missing)), file=sys.stderr)
        return EXIT_FAILED
    with tempfile.TemporaryDirectory(prefix="recognizer-demo-") as folder:
        config = demo_config(args, plugin, Path(model), Path(folder), env)
        return run_loop(lambda: _demo(config, env, args.seconds))


def demo_config(
    args: argparse.Namespace, plugin: str, model: Path, folder: Path, env: Mapping[str, str]
) -> AgentConfig:
    """The shipped defaults with everything embedded. Raises ConfigError."""
    if args.video is not None:
        camera = {"id": "demo", "source": str(args.video.absolute()), "loop": True, "pace": True, "frozen_after_s": 0}
    else:
        camera = {"id": "demo", "source": args.camera}
    document = {
        "device_id": "demo",
        "state_dir": str(folder),
        "cameras": [camera],
        "pose": {"estimator": plugin, "model": str(model.absolute())},
        "mqtt": {"protocol": "3.1.1", "port": args.mqtt_port},
        "http": {"port": args.port},
        "health": {"publish_interval_s": 5},
    }
    file = folder / "demo.yaml"
    file.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
    shipped = resource_dir("configs") / f"{plugin}.yaml"  # thresholds that fit the estimator's scores
    layers = [shipped, file] if shipped.is_file() else [file]
    return load_config(layers, env={"POSENET_MODEL": str(model), **env})


async def _demo(config: AgentConfig, env: Mapping[str, str], seconds: float | None) -> None:
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedBroker("127.0.0.1", config.mqtt.port))
        config = config.model_copy(update={"mqtt": config.mqtt.model_copy(update={"port": broker.port})})
        agent = Agent(config, environ=env, load=lambda: config)
        subscriber = _subscribe(broker.port, f"{config.mqtt.base_topic}/#")
        stack.callback(subscriber.loop_stop)
        stack.callback(subscriber.disconnect)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(agent.run(), name="agent")
            waiting = group.create_task(_until_stopped(agent, config, seconds), name="demo")
            running.add_done_callback(lambda _: waiting.cancel())


async def _until_stopped(agent: Agent, config: AgentConfig, seconds: float | None) -> None:
    await agent.ready_event.wait()
    if agent.http is not None:
        await agent.http.started.wait()
        print(f"live page      http://127.0.0.1:{agent.http.port}/")
    print(f"subscribe      mosquitto_sub -h 127.0.0.1 -p {config.mqtt.port} -t '{config.mqtt.base_topic}/#' -v")
    print("stop           Ctrl-C", flush=True)
    await asyncio.sleep(seconds if seconds is not None else float("inf"))
    agent.stop()


def _subscribe(port: int, topic: str) -> Client:
    """A plain subscriber on a thread of its own; prints what it receives."""
    client = Client(CallbackAPIVersion.VERSION2, client_id="recognizer-demo-subscriber")
    client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
    client.on_message = lambda _client, _data, message: print(_describe(message), flush=True)
    client.connect("127.0.0.1", port)
    client.loop_start()
    return client


def _describe(message: MQTTMessage) -> str:
    try:
        event = parse(bytes(message.payload))
    except DataError:
        text = message.payload.decode("utf-8", "replace")
        return f"mqtt  {message.topic}  {text if len(text) <= 120 else text[:117] + '...'}"
    return (
        f"EVENT {event.kind} {event.phase.value} on {event.camera_id}, sure {event.confidence:.0%},"
        f" for {event.duration_s:.1f} s  (sequence {event.sequence})"
    )
