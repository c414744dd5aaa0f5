"""Letterbox of a 1080p frame to 640 x 640: this agent's beside the straightforward one, and its share of an inference.

    python benchmarks/letterbox.py                       letterbox only
    python benchmarks/letterbox.py --model rtmo-s.onnx   also: frames/s of the estimator relative to the bare session

All are measured in turns within one run, so that a busy machine slows each of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.config.schema import PoseConfig
from agent.pose.preprocess import Letterbox
from agent.pose.rtmo import create
from agent.runtime.backend import SessionSettings
from agent.runtime.session import create_session

CANVAS = (640, 640)


def naive(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As it is usually written: a new canvas, a new copy, a transposed conversion per frame."""
    ratio = min(CANVAS[0] / image.shape[0], CANVAS[1] / image.shape[1])
    columns, rows = int(image.shape[1] * ratio), int(image.shape[0] * ratio)
    padded = np.ones((*CANVAS, 3), np.uint8) * np.uint8(114)
    padded[:rows, :columns] = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(padded.transpose(2, 0, 1)[None], np.float32)


Spent = dict[str, list[tuple[float, float]]]
"""Per call: milliseconds on the clock and on the processors, round after round."""


def in_turns(rounds: int, **calls: Callable[[], object]) -> Spent:
    """Run the calls in turns."""
    spent: Spent = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            clock_ns, cpu_ns = time.perf_counter_ns(), time.process_time_ns()
            call()
            elapsed = (time.perf_counter_ns() - clock_ns) / 1e6, (time.process_time_ns() - cpu_ns) / 1e6
            spent[name].append(elapsed)
    return spent


def show(spent: Spent) -> None:
    for name, values in spent.items():
        clock, cpu = ([value[index] for value in values] for index in (0, 1))
        print(
            f"{name:>14}: median {statistics.median(clock):8.3f} ms, fastest tenth "
            f"{statistics.quantiles(clock, n=10)[0]:8.3f} ms, processor time {statistics.median(cpu):8.3f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--cv2-threads", type=int, default=1)
    parser.add_argument("--model", type=Path, help="an RTMO graph with a 640 x 640 input")
    arguments = parser.parse_args()
    cv2.setNumThreads(arguments.cv2_threads)
    noise = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    image = np.asarray(cv2.GaussianBlur(noise, (5, 5), 0), np.uint8)
    letterbox = Letterbox(CANVAS)
    assert np.array_equal(letterbox.fill([image])[0], naive(image))
    show(in_turns(arguments.rounds, naive=lambda: naive(image), agent=lambda: letterbox.fill([image])))
    if arguments.model is None:
        return
    session = create_session(arguments.model, device="cpu", settings=SessionSettings())
    estimator = create(PoseConfig(model=arguments.model, device="cpu"))
    feeds = {session.input_names[0]: naive(image)}
    rounds = max(10, arguments.rounds // 10)
    spent = in_turns(rounds, bare_session=lambda: session.run(feeds), estimator=lambda: estimator.estimate([image]))
    show(spent)
    for index, kind in enumerate(("clock", "processor time")):
        ratios = [bare[index] / own[index] for bare, own in zip(spent["bare_session"], spent["estimator"], strict=True)]
        print(f"estimator's frames/s relative to the bare session ({kind}): {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
