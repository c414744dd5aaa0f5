"""onnxruntime as it is on a machine with a GPU, over the real one on the CPU."""

from __future__ import annotations

from typing import Any

import onnxruntime
import pytest

from agent.runtime import devices
from agent.runtime.devices import PROVIDERS, Accelerators, Kind

CUDA = PROVIDERS[Kind.CUDA]
MACHINE = Accelerators("1.32.0", (CUDA, PROVIDERS[Kind.CPU]), ("Pretend GPU (9.9)",))


class PretendGpu:
    """CUDA for whoever asks onnxruntime while the test runs. no_room_for: `weights`, or only the first `run`; empty = all fits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, no_room_for: str = "") -> None:
        self.no_room_for = no_room_for
        self.opened: list[str] = []
        gpu = self

        class Session(onnxruntime.InferenceSession):
            def __init__(self, model: str, options: Any, *, providers: list[Any], **keys: Any) -> None:
                self._first, _ = providers[0]
                gpu.opened.append(self._first)
                self._allocate("weights")
                super().__init__(model, options, providers=providers[-1:], **keys)

            def get_providers(self) -> list[str]:
                return [self._first]

            def run(self, *args: Any) -> Any:
                self._allocate("run")
                return super().run(*args)

            def _allocate(self, what: str) -> None:
                if self._first == CUDA and gpu.no_room_for == what:
                    raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; hostname=box ; file=cuda_allocator.cc")

        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(MACHINE.providers))
        monkeypatch.setattr(devices, "_cuda_devices", lambda: (MACHINE.gpus, "13000", ""))
