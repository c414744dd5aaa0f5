"""What keeps a GPU busy: batches made while the network learns from those before, and steps without a word from the processor.

A step of this small network is 3,500 kernels of some microseconds each, which Python cannot start that fast, least of all on cores that
render. So it is recorded once for each size of pictures and replayed (Gray 2021, "Accelerating PyTorch with CUDA Graphs"), and
views and targets, whose kernels depend on what is drawn, are made on a stream of their own meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pose_nano.losses import Batch
from pose_nano.train import Rates, Trainer

_WARM_UP = 3
"""Steps before one is recorded: cuDNN chooses its algorithms, the optimiser makes its state."""
_AHEAD = 2
"""Steps that may wait for the GPU, whose batches are kept."""

Made = tuple[Tensor, Batch]


def ahead(make: Callable[[], Made], device: torch.device) -> Iterator[Made]:
    """Batches of `make`, each for a step that is asked for before the next batch is; on a GPU they are made while that step is under way."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())  # what `make` reads may still be on its way
    steps: deque[tuple[torch.cuda.Event, Made]] = deque()
    while True:
        with torch.cuda.stream(stream):
            made = make()
        if stream is None:
            yield made
            continue
        if len(steps) >= _AHEAD:
            steps.popleft()[0].synchronize()
        torch.cuda.current_stream().wait_stream(stream)
        yield made
        over = torch.cuda.Event()
        over.record()
        steps.append((over, made))  # kept until then, since its memory is the other stream's


@dataclass(frozen=True, slots=True, eq=False)
class _Recording:
    """A step, what it reads and what it says."""

    graph: torch.cuda.CUDAGraph
    image: Tensor
    batch: Batch
    parts: dict[str, Tensor]


class GraphTrainer(Trainer):
    """A `Trainer` on a GPU whose steps are replayed. What `step` returns is overwritten by the next step."""

    def __init__(self, plan: Rates, device: torch.device, *, bfloat16: bool) -> None:
        super().__init__(plan, device, bfloat16=bfloat16)
        self._recordings: dict[torch.Size, _Recording] = {}

    def learn(self, image: Tensor, batch: Batch) -> dict[str, Tensor]:
        recording = self._recordings.get(image.shape)
        if recording is None:
            recording = self._recordings[image.shape] = self._record(image, batch)
        recording.image.copy_(image)
        for field in fields(Batch):
            getattr(recording.batch, field.name).copy_(getattr(batch, field.name))
        recording.graph.replay()
        return recording.parts

    def _record(self, image: Tensor, batch: Batch) -> _Recording:
        image, batch = image.clone(), Batch(**{f.name: getattr(batch, f.name).clone() for f in fields(Batch)})
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                super().learn(image, batch)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.empty_cache()  # a graph has memory of its own
        graph = torch.cuda.CUDAGraph()
        # Pictures that arrive are pinned by another thread meanwhile, which is none of the graph's business.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            parts = super().learn(image, batch)
        return _Recording(graph, image, batch, parts)
