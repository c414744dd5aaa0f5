"""Makes docs/live-page.png: the real live page of a real agent on a drawn scene (nobody's picture is in this repository).

    python docs/make_live_page.py        # needs Chromium

Three drawn figures walk by; their exact joints are replayed in place of a pose model by the tests' plug-in, everything behind
it (tracking, windows, the shipped classifiers, page) is the agent's own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "system")]

WIDTH, HEIGHT, FPS, SECONDS = 960, 720, 15, 12
LIMBS = ((5, 7), (7, 9), (6, 8), (8, 10), (11, 13), (13, 15), (12, 14), (14, 16))
CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1240,760", "--virtual-time-budget=6000",
)  # fmt: skip


def figure(t: float, x: float, feet_y: float, height: float, pace: float, facing: float) -> NDArray[np.float32]:
    """(17, 2) joints of a walker at time t (s); lengths in shares of body height."""
    swing = np.sin(2 * np.pi * pace * t)
    stride, arm = 0.16 * swing * facing, 0.12 * swing * facing
    lift = 0.02 * abs(np.cos(2 * np.pi * pace * t))
    joints = np.array([
        (0.03 * facing, 0.91), (0.045 * facing, 0.935), (0.02 * facing, 0.935), (0.0, 0.925), (-0.03 * facing, 0.925),
        (-0.09, 0.80), (0.09, 0.80), (-0.11 - arm * 0.5, 0.64), (0.11 + arm * 0.5, 0.64), (-0.10 - arm, 0.50), (0.10 + arm, 0.50),
        (-0.055, 0.51), (0.055, 0.51), (-0.055 + stride * 0.6, 0.27), (0.055 - stride * 0.6, 0.27),
        (-0.055 + stride, 0.04 + max(0.0, 0.05 * swing)), (0.055 - stride, 0.04 + max(0.0, -0.05 * swing)),
    ])  # fmt: skip
    return np.stack([x + joints[:, 0] * height, feet_y - (joints[:, 1] + lift) * height], axis=1).astype(np.float32)


def scene(t: float) -> list[tuple[NDArray[np.float32], tuple[int, int, int]]]:
    """Joints and coat colour of everyone at time t, far ones first."""
    return [
        (figure(t, 180 + 42 * t, 430, 190, 0.9, 1), (120, 130, 90)),
        (figure(t + 0.3, 800 - 48 * t, 520, 270, 1.0, -1), (70, 90, 160)),
        (figure(t + 0.7, 330 + 30 * t, 660, 380, 0.8, 1), (150, 110, 70)),
    ]


def draw(t: float) -> NDArray[np.uint8]:
    """A corridor with the figures in it."""
    image = np.full((HEIGHT, WIDTH, 3), (196, 202, 206), np.uint8)
    cv2.fillPoly(image, [np.array([(0, HEIGHT), (WIDTH, HEIGHT), (WIDTH - 190, 330), (190, 330)])], (150, 158, 162))
    for x in (260, 470, 680):
        cv2.rectangle(image, (x, 130), (x + 90, 330), (168, 176, 184), -1)
        cv2.rectangle(image, (x, 130), (x + 90, 330), (130, 138, 146), 2)
    for joints, coat in scene(t):
        size = float(np.ptp(joints[:, 1]))
        points = joints.round().astype(int)
        for first, second in LIMBS:
            colour = (60, 60, 66) if first >= 11 else tuple(int(c * 0.85) for c in coat)
            cv2.line(
                image, points[first].tolist(), points[second].tolist(), colour, max(4, round(size * 0.075)), cv2.LINE_AA
            )
        cv2.fillPoly(image, [points[[5, 6, 12, 11]]], coat, cv2.LINE_AA)
        cv2.circle(image, points[0].tolist(), round(size * 0.075), (150, 170, 200), -1, cv2.LINE_AA)
    noise = np.random.default_rng(round(t * FPS)).normal(0, 3, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def main() -> int:
    """Run the agent on the scene and take the picture."""
    from fakes.plugin import save_recording
    from harness import AgentProcess, wait_for

    from agent.types import People

    chromium = shutil.which("chromium")
    if chromium is None:
        print("needs Chromium")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agent = AgentProcess(folder, mqtt_port=1, script=[0.0])
        writer = cv2.VideoWriter(str(folder / "scene.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), FPS, (WIDTH, HEIGHT))
        recording = []
        for n in range(FPS * SECONDS):
            writer.write(draw(n / FPS))
            joints = np.stack([joints for joints, _ in scene(n / FPS)])
            margin = 0.06 * np.ptp(joints[..., 1], axis=1, keepdims=True)
            boxes = np.concatenate([joints.min(axis=1) - margin, joints.max(axis=1) + margin], axis=1)
            ones = np.full(len(joints), 0.9, np.float32)
            recording.append(
                People(boxes.astype(np.float32), joints, np.full((len(joints), 17), 0.9, np.float32), ones)
            )
        writer.release()
        save_recording(folder / "poses.npz", recording)
        agent.document["device_id"] = "lobby-1"
        agent.document["cameras"][0]["id"] = "corridor"
        agent.document["services"] = {}
        agent.document["mqtt"] = {"enabled": False}
        agent.document["health"]["governor"] = {"cpu_high": 1.0, "cpu_low": 0.99}  # Chromium is not the agent's load
        agent.write_config()
        agent.start()
        wait_for(lambda: agent.get("/api/v1/state")["cameras"][0]["live"]["scores"], "verdicts")
        shot = ROOT / "docs" / "live-page.png"
        profile = f"--user-data-dir={folder / 'chromium'}"
        url = f"http://127.0.0.1:{agent.http_port}/"
        subprocess.run([chromium, *CHROMIUM_FLAGS, profile, f"--screenshot={shot}", url], check=True, timeout=90)
        agent.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
