"""What the agent costs around the models. Run on an otherwise idle machine:

python benchmarks/pipeline.py overhead                      # decode to committed event, replayed poses, one core
python benchmarks/pipeline.py estimator --video V --config C   # agent frames/s over the bare estimator loop
python benchmarks/pipeline.py idle                          # memory and time to READY without models
python benchmarks/pipeline.py memory --frames 20000         # growth over a long replay
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "system")]

PEOPLE = 10
FRAME_SIZE = (640, 480)
CORE = 0


def main() -> int:
    """Run one measurement; 0 when it meets its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    overhead = what.add_parser("overhead")
    overhead.add_argument("--frames", type=int, default=1500)
    overhead.add_argument("--repeats", type=int, default=5)
    estimator = what.add_parser("estimator")
    estimator.add_argument("--video", type=Path, required=True)
    estimator.add_argument("--config", type=Path, action="append", required=True)
    estimator.add_argument("--repeats", type=int, default=3)
    what.add_parser("idle")
    memory = what.add_parser("memory")
    memory.add_argument("--frames", type=int, default=20_000)
    args = parser.parse_args()
    from agent.config.schema import LogConfig
    from agent.observe.logging import configure_logging

    configure_logging(LogConfig(level="warning"))
    return {"overhead": run_overhead, "estimator": run_estimator, "idle": run_idle, "memory": run_memory}[args.what](
        args
    )


def run_overhead(args: argparse.Namespace) -> int:
    """Pin to one core; per frame: decode, replayed poses, tracking, windows, both classifiers, rules, committed events."""
    os.sched_setaffinity(0, {CORE})
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        video = make_video(Path(folder) / "scene.mp4", args.frames)
        costs, bare = [], []
        for n in range(args.repeats):
            bare.append(decode_only(video) / args.frames * 1e3)
            seconds, events = asyncio.run(replay_once(video, Path(folder) / str(n), args.frames))
            costs.append(seconds / args.frames * 1e3)
        cost = statistics.median(costs)
        print(f"frames {args.frames}, people {PEOPLE}, one core, {events} events committed in the last run")
        print(f"decode alone                 {statistics.median(bare):6.3f} ms/frame")
        print(
            f"decode to committed event    {cost:6.3f} ms/frame  (bar 3.0; runs {' '.join(f'{c:.2f}' for c in costs)})"
        )
    return 0 if cost <= 3.0 else 1


async def replay_once(video: Path, folder: Path, frames: int) -> tuple[float, int]:
    """One file through the real pipeline and outbox with the shipped classifiers: (s, committed events)."""
    from fakes.replay import ReplayEstimator, walkers

    from agent.capture.camera import open_camera
    from agent.config.load import load_config
    from agent.config.schema import CameraConfig
    from agent.outbox.store import OutboxStore
    from agent.pipeline.worker import BatchWorker
    from agent.recognition import Recognition, create_classifier, rows_of
    from agent.types import POSE_SLOT, action_slot

    config = load_config(env={})
    estimator = ReplayEstimator(walkers(PEOPLE, frames, size=(FRAME_SIZE[1], FRAME_SIZE[0])))
    pose = BatchWorker("pose", estimator.estimate)
    models: dict[str, Any] = {POSE_SLOT: estimator}
    workers: dict[str, BatchWorker[Any, Any]] = {POSE_SLOT: pose}
    for name, service in config.services.items():
        classifier = models[action_slot(name)] = create_classifier(name, service)
        workers[action_slot(name)] = BatchWorker(name, rows_of(classifier))
    store = await OutboxStore.open(folder / "events.db", config.outbox)
    recognition = Recognition(config, models, workers)
    listener = CommittingListener(store, config.device_id)
    for worker in workers.values():
        worker.start()
    started = time.perf_counter()
    async with open_camera(CameraConfig(id="cam", source=str(video))) as camera:
        run = recognition.camera(camera, listener, services=None, fps=lambda: 25.0)
        await run.pipeline.run()
    seconds = time.perf_counter() - started
    for worker in workers.values():
        await worker.close()
    await store.close()
    assert listener.frames == frames, f"{listener.frames} of {frames} frames"
    return seconds, listener.events


class CommittingListener:
    """Puts events into a real outbox; counts frames. Every window that is judged also commits a step."""

    def __init__(self, store: Any, device_id: str) -> None:
        self.frames = self.events = 0
        self._store = store
        self._device_id = device_id

    def on_tracks(self, *_: object) -> None:
        self.frames += 1

    def on_scores(self, scores: Any) -> None:
        """A verdict; the scene holds no fight, so a step is committed for each to have the cost of events in it."""
        from agent.ports import Message
        from agent.types import Lane

        self.events += 1
        message = Message(Lane.ALARM, f"{scores.service}-{self.events}", "t", lambda n: json.dumps({"n": n}).encode())
        self._task = asyncio.get_running_loop().create_task(self._store.put(message))

    def on_failure(self, camera_id: str, stage: str, error: Exception, service: str = "") -> None:
        raise AssertionError(f"{camera_id} {stage}: {error}")

    async def on_event(self, event: Any) -> None:
        from agent.events.cloudevents import render
        from agent.ports import Message
        from agent.types import Lane

        def payload(n: int | None) -> bytes:
            return render(event, device_id=self._device_id, sequence=n or 1, emitted_utc=datetime.now(UTC))

        await self._store.put(Message(Lane.ALARM, event.event_id, "t", payload))
        self.events += 1


def make_video(path: Path, frames: int) -> Path:
    """H.264, 640x480, moving content: decoding costs what it costs with a camera."""
    import av
    import numpy as np

    random = np.random.default_rng(1)
    noise = random.integers(0, 40, (FRAME_SIZE[1], FRAME_SIZE[0], 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *FRAME_SIZE, "yuv420p"
        for n in range(frames):
            image = np.roll(noise, n, axis=1).copy()
            image[100:380, (3 * n) % 500 : (3 * n) % 500 + 100] = (200, 160, 90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())
    return path


def decode_only(video: Path) -> float:
    """Seconds that OpenCV takes to decode the file in a bare loop."""
    import cv2

    capture = cv2.VideoCapture(str(video))
    started = time.perf_counter()
    while capture.read()[0]:
        pass
    return time.perf_counter() - started


def run_estimator(args: argparse.Namespace) -> int:
    """Pairs of runs, agent and bare loop alternating on the same file; the ratio of the medians of pairs."""
    from agent.config.load import load_config

    config = load_config(args.config, env=dict(os.environ))
    ratios = []
    for n in range(args.repeats):
        bare = bare_loop(config, args.video)
        agent = asyncio.run(agent_loop(config, args.video))
        ratios.append(agent / bare)
        print(
            f"pair {n + 1}: bare estimator loop {bare:6.2f} frames/s, agent {agent:6.2f} frames/s, ratio {agent / bare:.3f}"
        )
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.3f} (bar 0.92)")
    return 0 if ratio >= 0.92 else 1


def bare_loop(config: Any, video: Path) -> float:
    """Frames/s of: read, estimate, read, ..."""
    import cv2

    from agent.recognition import create_estimator

    estimator = create_estimator(config)
    capture = cv2.VideoCapture(str(video))
    good, image = capture.read()
    estimator.estimate([image])  # warm
    frames, started = 0, time.perf_counter()
    while good:
        estimator.estimate([image])
        frames += 1
        good, image = capture.read()
    seconds = time.perf_counter() - started
    estimator.close()
    return frames / seconds


async def agent_loop(config: Any, video: Path) -> float:
    """Frames/s of the whole pipeline on the same file."""
    from agent.offline import run_video
    from agent.recognition import open_recognition

    class Count:
        frames = 0

        def on_tracks(self, *_: object) -> None:
            self.frames += 1

        def on_scores(self, scores: Any) -> None: ...

        def on_failure(self, camera_id: str, stage: str, error: Exception, service: str = "") -> None:
            raise AssertionError(f"{camera_id} {stage}: {error}")

        async def on_event(self, event: Any) -> None: ...

    listener = Count()
    async with open_recognition(config) as recognition:
        started = time.perf_counter()
        await run_video(recognition, video, listener)
        return listener.frames / (time.perf_counter() - started)


def run_idle(_: argparse.Namespace) -> int:
    """The daemon without cameras, hence without models: s from exec to READY, resident MB at rest."""
    import psutil

    times, sizes = [], []
    cache = Path(tempfile.mkdtemp(prefix="recognizer-bytecode-"))
    for _n in range(6):
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            path = f"{folder}/notify"
            notify.bind(path)
            notify.settimeout(30)
            file = Path(folder) / "idle.yaml"
            document = {"state_dir": f"{folder}/state", "http": {"port": 0}, "mqtt": {"port": 1}}
            file.write_text(json.dumps(document))
            command = [sys.executable, "-m", "agent", "run", "--config", str(file)]
            # The installed service has compiled modules; here the first start writes them and is not counted.
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
            environment |= {"NOTIFY_SOCKET": path, "PYTHONPYCACHEPREFIX": str(cache)}
            started = time.perf_counter()
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
            while b"READY=1" not in notify.recv(4096):
                pass
            times.append(time.perf_counter() - started)
            time.sleep(3)
            sizes.append(psutil.Process(process.pid).memory_info().rss / 1e6)
            process.terminate()
            process.wait(20)
    shutil.rmtree(cache)
    ready_s, size = statistics.median(times[1:]), statistics.median(sizes[1:])
    print(f"exec to READY {ready_s:.2f} s (bar 2), resident {size:.0f} MB (bar 250), medians of {len(times) - 1}")
    return 0 if ready_s < 2 and size < 250 else 1


def run_memory(args: argparse.Namespace) -> int:
    """The daemon as a process on a looped file, unpaced, evidence and outbox in use: resident memory over frames."""
    import psutil
    from harness import AgentProcess

    with tempfile.TemporaryDirectory() as folder:
        agent = AgentProcess(Path(folder), mqtt_port=1, script=[0.9, 0.9, *[0.1] * 18])  # an incident a 1,000 frames
        agent.document["mqtt"]["enabled"] = False
        agent.document["cameras"][0]["pace"] = False
        agent.document["services"]["fight"]["window"] = {"length": 100, "stride": 50, "min_track_frames": 1}
        agent.write_config()
        agent.start()
        process, marks, samples = psutil.Process(agent.pid), [], []
        next_mark = 2000
        while next_mark <= args.frames:
            frames = agent.get("/api/v1/state")["cameras"][0]["frames"]
            if frames >= next_mark - 1000:
                samples.append(process.memory_info().rss / 1e6)
            if frames >= next_mark:
                marks.append(
                    (frames, statistics.median(samples))
                )  # over the last 500 frames, clips being encoded or not
                print(f"{frames:7d} frames  {marks[-1][1]:7.1f} MB", flush=True)
                next_mark, samples = next_mark + 2000, []
            time.sleep(0.05)
        agent.stop()
    growth = marks[-1][1] - marks[0][1]
    print(f"growth after the first {marks[0][0]} frames: {growth:.1f} MB (bar 5)")
    return 0 if growth < 5 else 1


if __name__ == "__main__":
    sys.exit(main())
