"""The training code is a folder of scripts, not part of the installed agent."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "models" / "training"))
