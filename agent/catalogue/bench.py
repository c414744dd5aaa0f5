"""How fast is a model through the agent's session, and how fast through a bare onnxruntime session beside it?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.catalogue.picture import people_picture
from agent.errors import DeviceMemoryError, ModelError
from agent.runtime.backend import TensorSpec
from agent.runtime.bundle import Bundle
from agent.runtime.devices import PROVIDERS, Device, Kind, core_count, parse_device
from agent.runtime.faults import ort_errors, translate
from agent.runtime.manifest import InputInfo
from agent.runtime.session import InferenceSession

_WARM_UP = 3
_MIN_PAIRS = 10

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Times of one batch in ms; `ratio`: median over pairs of agent / bare; `per_second`: items through the agent's session."""

    device: str
    bare_device: str
    batch: int
    pairs: int
    agent_ms: float
    agent_p95_ms: float
    bare_ms: float
    bare_p95_ms: float
    ratio: float
    per_second: float


def measure(
    bundle: Bundle,
    session: InferenceSession,
    batches: Sequence[int],
    *,
    seconds: float,
    memory_bytes: int,
    threads: int = 0,
) -> Iterator[Measurement]:
    """One measurement per batch size, both sessions in turn on the same input for `seconds`.

    A graph of fixed batch is measured at that one. memory_bytes: the most that the input may take; threads: of the CPU, 0 = one per core, for both sessions alike; all
    else in the bare session is onnxruntime's default. Its device is CUDA where the agent's is TensorRT.
    Raises ModelError, DeviceMemoryError (a batch that is too large), FatalError.
    """
    served = parse_device(session.device) or Device(Kind.CPU)
    other = Device(Kind.CUDA, served.index) if served.kind is Kind.TENSORRT else served
    bare = _bare(bundle, other, threads)
    fixed = _fixed_batch(bundle, session)
    for batch in (fixed,) if fixed else batches:
        what = (session.device, str(other), batch)
        try:
            feeds = example(session.inputs, bundle, batch, memory_bytes)
            yield _measure_batch(partial(session.run, feeds), partial(bare, feeds), seconds, what)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(f"a batch of {batch} is too large: {error} (hint: a smaller --batch)") from error


def _fixed_batch(bundle: Bundle, session: InferenceSession) -> int | None:
    """The batch that the graph is made for; None = any. Raises ModelError for one that takes no batches."""
    if not session.inputs or not session.inputs[0].shape:
        have = ", ".join(map(str, session.inputs)) or "nothing"
        raise ModelError(f"{bundle.title}: the first size of the input should be the batch, the graph takes {have}")
    return session.inputs[0].shape[0]


def _measure_batch(
    agent: Callable[[], object], bare: Callable[[], object], seconds: float, what: tuple[str, str, int]
) -> Measurement:
    for _ in range(_WARM_UP):
        agent()
        bare()
    pairs: list[tuple[float, float]] = []
    end_s = time.perf_counter() + seconds
    while len(pairs) < _MIN_PAIRS or time.perf_counter() < end_s:
        if len(pairs) % 2:  # who goes first finds other caches and clocks
            bare_ms, agent_ms = _timed_ms(bare), _timed_ms(agent)
        else:
            agent_ms, bare_ms = _timed_ms(agent), _timed_ms(bare)
        pairs.append((agent_ms, bare_ms))
    times = np.array(pairs)
    device, bare_device, batch = what
    agent_ms, bare_ms = np.median(times, axis=0)
    agent_p95_ms, bare_p95_ms = np.percentile(times, 95, axis=0)
    return Measurement(
        device, bare_device, batch, len(pairs), float(agent_ms), float(agent_p95_ms), float(bare_ms), float(bare_p95_ms),
        ratio=float(np.median(times[:, 0] / times[:, 1])), per_second=float(1e3 * batch / agent_ms),
    )  # fmt: skip


def _timed_ms(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started_s)


def _bare(bundle: Bundle, device: Device, threads: int) -> Callable[[Feeds], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or core_count()
    options.log_severity_level = 3
    provider = (PROVIDERS[device.kind], {} if device.kind is Kind.CPU else {"device_id": str(device.index)})
    where = f"{bundle.model.name} in a bare session on {device}"
    with _translated(f"loading {where}"):
        session = onnxruntime.InferenceSession(str(bundle.model), options, providers=[provider])

    def run(feeds: Feeds) -> object:
        with _translated(f"running {where}"):
            return session.run(None, dict(feeds))

    return run


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """onnxruntime's errors as the agent's."""
    try:
        yield
    except ort_errors() as error:
        raise translate(error, doing) from error


def example(inputs: Sequence[TensorSpec], bundle: Bundle, batch: int, memory_bytes: int) -> dict[str, NDArray[Any]]:
    """Inputs of `batch` items: the picture where the model takes pictures, else noise.

    Raises ModelError for sizes that neither the graph nor the manifest fixes, DeviceMemoryError for more than `memory_bytes`.
    """
    known = {info.name: info for info in bundle.manifest.inputs} if bundle.manifest else {}
    return {spec.name: _example(spec, known.get(spec.name), batch, memory_bytes) for spec in inputs}


def _example(spec: TensorSpec, info: InputInfo | None, batch: int, memory_bytes: int) -> NDArray[Any]:
    said = info.shape[1:] if info else (None,) * (len(spec.shape) - 1)
    sizes = [have or want for have, want in zip(spec.shape[1:], said, strict=True)]
    shape = [size for size in sizes if isinstance(size, int)]
    if len(shape) < len(sizes):
        raise ModelError(f"the graph leaves its input size open: {spec} (hint: use a bundle whose manifest says it)")
    wanted_bytes = batch * math.prod(shape) * spec.dtype.itemsize
    if wanted_bytes > memory_bytes:  # asked for all the same, the kernel might end this process, or another
        raise DeviceMemoryError(
            f"{spec} takes {wanted_bytes / 1e9:,.1f} GB, the memory here has room for {memory_bytes / 1e9:.1f} GB of it"
        )
    item: NDArray[Any]
    try:
        if len(shape) == 3 and shape[0] == 3:
            item = people_picture(shape[1], shape[2]).transpose(2, 0, 1)
        else:
            item = np.random.default_rng(0).uniform(-1, 1, shape)
        return np.ascontiguousarray(np.broadcast_to(item.astype(spec.dtype), (batch, *shape)))
    except MemoryError as error:  # a limit of this process
        raise DeviceMemoryError(str(error)) from error
