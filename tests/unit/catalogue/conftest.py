"""A sealed bundle of RTMO's contract and a store."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.bundles import make_bundle

from agent.catalogue.store import ModelStore


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")
