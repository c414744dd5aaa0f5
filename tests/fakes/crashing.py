"""A classifier that takes its process with it, as native code can."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from agent.config.schema import ServiceConfig
from agent.errors import ModelError


def create(name: str, config: ServiceConfig) -> Any:
    """Entry point `crashing`; the option `how` says what happens."""
    match config.options["how"]:
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            sys.stderr.write("terminate called\nlast words about /secret/folder/model.onnx\n")
            sys.stderr.flush()
            os.abort()
        case "exit":
            os._exit(3)
        case "chatter":
            for number in range(3, 20):  # whichever of them is the way to the parent
                try:
                    os.write(number, b"no JSON at all\n")
                except OSError:
                    continue
        case "environment":
            Path(config.options["file"]).write_text("\n".join(f"{key}={value}" for key, value in os.environ.items()))
    raise ModelError(f"{name}: still alive")
