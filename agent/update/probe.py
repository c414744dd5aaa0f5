"""Tries one model in a process of its own: `python -m agent.update.probe`, the request as JSON on stdin, answers as JSON lines
on stdout.

A graph is code in a way: it can crash the runtime, take all memory, or never end. Here it does so alone. `agent.update.probing`
is the other side: it starts this, sets the limits, and says what a death means.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from agent.catalogue.picture import people_picture
from agent.config.schema import PoseConfig, ServiceConfig
from agent.errors import DeviceMemoryError, FatalError, ModelError, RecognizerError
from agent.memory import limit_arenas
from agent.plugins import create_action_classifier, create_pose_estimator
from agent.ports import PoseEstimator
from agent.recognition import Model, check_fit
from agent.runtime.builder import die_with_parent
from agent.runtime.bundle import GoldenError, load_bundle
from agent.runtime.devices import Kind, probe_accelerators
from agent.runtime.onnx_file import graph_problems, read_graph_facts
from agent.types import POSE_SLOT

NICENESS = 10
MIN_PAIRS, MAX_PAIRS = 20, 400
MIN_SECONDS, MAX_SECONDS = 2.0, 20.0
"""Pairs go on until both least figures are reached, and end with either of the greatest."""
FEWEST_PAIRS = 3
_WARM_UP = 2
_PICTURE_PX = (480, 640)
_MAX_FILE_BYTES = 16 << 20
_STACKS_BYTES = 1 << 29
"""Address space that threads reserve and hardly use."""
_GRACE_S = 30

Say = Callable[[Mapping[str, Any]], None]


def probe(request: Mapping[str, Any], say: Say) -> dict[str, float | str]:
    """Load, check and measure the model of `request`; its figures. Raises RecognizerError."""
    slot = str(request["slot"])
    say({"step": "reading the bundle", "done": 0.05})
    bundle = load_bundle(Path(request["section"]["model"]))
    facts = read_graph_facts(bundle.model)
    for problem in graph_problems(bundle.model, facts, any_domain=bool(request["allow_custom_ops"])):
        raise ModelError(problem)
    before_bytes = _peak_bytes()
    say({"step": "loading the model and asking for its golden answers", "done": 0.1})
    candidate = _create(slot, request["section"])
    call = _call_of(candidate)
    for _ in range(_WARM_UP):
        call()
    memory_mb = round((_peak_bytes() - before_bytes) / 1e6, 1)
    say({"step": "loading the model in use", "done": 0.4})
    figures: dict[str, float | str] = {"device": str(getattr(candidate, "device", "")), "memory_mb": memory_mb}
    running = None
    try:
        running = _create(slot, request["running"])
    except RecognizerError as error:  # no room for both, or a model in use that is broken: this one may be the cure
        figures["note"] = f"the model in use cannot be loaded beside it: {error}"
    else:
        check_fit(running, candidate)
    say({"step": "measuring", "done": 0.5})
    return figures | _measure(call, _call_of(running) if running is not None else None)


def _create(slot: str, section: Mapping[str, Any]) -> Model:
    """As the agent does, but for engines: they are built once, later, and checked when they are put to use."""
    device = _without_engine(str(section["device"]))
    if slot == POSE_SLOT:
        return create_pose_estimator(PoseConfig.model_validate({**section, "device": device, "engine_cache": None}))
    options = {key: value for key, value in section["options"].items() if key != "engine_cache"}
    service = ServiceConfig.model_validate({**section, "device": device, "options": options})
    return create_action_classifier(slot.partition("/")[2], service)


def _without_engine(device: str) -> str:
    kind, _, index = device.partition(":")
    if kind != Kind.TENSORRT:
        return device
    if not probe_accelerators().has(Kind.CUDA):
        return Kind.CPU.value
    return f"{Kind.CUDA.value}:{index}" if index else Kind.CUDA.value


def _call_of(model: Model) -> Callable[[], object]:
    """One picture or one window through the model, with all that belongs to it."""
    if isinstance(model, PoseEstimator):
        return partial(model.estimate, [people_picture(*_PICTURE_PX)])
    window = np.random.default_rng(0).uniform(-1, 1, (1, *model.input_shape)).astype(np.float32)
    return partial(model.classify, window)


def _measure(candidate: Callable[[], object], running: Callable[[], object] | None) -> dict[str, float]:
    """Medians in ms; the ratio is the median over pairs measured one right after the other, so that what else goes on on the
    machine concerns both."""
    if running is not None:
        running()
    pairs: list[tuple[float, float]] = []
    started_s = time.perf_counter()
    while True:
        elapsed_s = time.perf_counter() - started_s
        if len(pairs) >= FEWEST_PAIRS and (elapsed_s > MAX_SECONDS or len(pairs) >= MAX_PAIRS):
            break
        if len(pairs) >= MIN_PAIRS and elapsed_s > MIN_SECONDS:
            break
        calls = (candidate, running or candidate)
        if len(pairs) % 2:  # who goes first finds other caches and clocks
            second_ms, first_ms = _timed_ms(calls[1]), _timed_ms(calls[0])
        else:
            first_ms, second_ms = _timed_ms(calls[0]), _timed_ms(calls[1])
        pairs.append((first_ms, second_ms))
    times = np.array(pairs)
    found = {"pairs": len(pairs), "latency_ms": round(float(np.median(times[:, 0])), 3)}
    if running is not None:
        found["running_latency_ms"] = round(float(np.median(times[:, 1])), 3)
        found["latency_ratio"] = round(float(np.median(times[:, 0] / times[:, 1])), 3)
    return found


def _timed_ms(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started_s)


def _peak_bytes() -> int:
    """Highest memory in use so far. Not getrusage's: that one remembers the parent, from before the exec."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _limit(request: Mapping[str, Any]) -> None:
    """The parent watches too; these hold where it has died, or is too slow."""
    die_with_parent()
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # when memory runs out, this one is it
    limit_arenas()
    seconds = int(request["seconds"]) + _GRACE_S
    signal.alarm(seconds)
    _lower(resource.RLIMIT_CPU, seconds * (os.cpu_count() or 1))
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, _MAX_FILE_BYTES)
    if request["address_space"] and not probe_accelerators().gpus:  # CUDA reserves address space by the terabyte
        _lower(resource.RLIMIT_AS, _address_space_bytes() + int(request["memory_bytes"]) + _STACKS_BYTES)


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _outcome(request: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """What ends the conversation: figures, or a word and a sentence why not."""
    try:
        return {"figures": probe(request, say)}
    except GoldenError as error:
        return {"refused": "golden", "text": str(error)}
    except (DeviceMemoryError, MemoryError) as error:
        return {"refused": "memory", "text": str(error) or "out of memory"}
    except FatalError as error:
        return {"refused": "crash", "text": str(error)}
    except RecognizerError as error:
        return {"refused": "contract", "text": str(error)}


def _speaker(stream: TextIO) -> Say:
    def say(message: Mapping[str, Any]) -> None:
        stream.write(json.dumps(dict(message)) + "\n")
        stream.flush()

    return say


def main() -> int:
    """The command of the module's docstring."""
    say = _speaker(os.fdopen(os.dup(sys.stdout.fileno()), "w"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a plug-in prints is no answer
    request = json.loads(sys.stdin.read())
    _limit(request)
    say({"ready_bytes": _peak_bytes()})
    say(_outcome(request, say))
    sys.stderr.flush()
    os._exit(0)  # what has been said holds; a crash of a library on its way out is nobody's business


if __name__ == "__main__":
    raise SystemExit(main())
