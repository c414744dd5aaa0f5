"""The store: whole bundles or none, one name one link, nothing left over."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest
from fakes.bundles import make_bundle

from agent.catalogue.store import ModelStore
from agent.errors import ModelError
from agent.runtime.bundle import load_bundle, sha256_of


def publish(store: ModelStore, version: str = "1.0.0", name: str = "tiny") -> Path:
    with store.staging() as folder:
        folder.rmdir()
        return store.publish(name, make_bundle(folder, version=version))


def test_a_published_bundle_is_found_by_name_and_by_content(store: ModelStore) -> None:
    assert (store.names(), store.find("tiny")) == ({}, None)
    folder = publish(store)
    assert folder == store.root / "sha256" / sha256_of(folder / "manifest.json")
    found = store.find("tiny")
    assert found is not None
    assert found.resolve() == folder
    assert load_bundle(found).title == "tiny 1.0.0"
    assert list(store.names()) == ["tiny"]
    assert list((store.root / "staging").iterdir()) == []


def test_the_link_is_relative_so_that_the_store_can_move(store: ModelStore, tmp_path: Path) -> None:
    publish(store)
    moved = ModelStore(store.root.rename(tmp_path / "elsewhere"))
    found = moved.find("tiny")
    assert found is not None
    load_bundle(found)


def test_a_name_moves_and_what_nobody_names_goes(store: ModelStore) -> None:
    first = publish(store)
    second = publish(store, "2.0.0")
    assert not first.exists()
    assert load_bundle(store.names()["tiny"]).path.resolve() == second


def test_what_another_name_needs_stays(store: ModelStore) -> None:
    first = publish(store)
    publish(store, name="twin")
    publish(store, "2.0.0")
    assert load_bundle(first).title == "tiny 1.0.0"
    assert store.names()["twin"].resolve() == first


def test_a_link_to_somewhere_else_is_never_followed_to_delete(store: ModelStore, tmp_path: Path) -> None:
    outside = make_bundle(tmp_path / "outside")
    (store.root / "pulled").mkdir(parents=True)
    (store.root / "pulled" / "tiny").symlink_to(outside)
    publish(store, "2.0.0")
    load_bundle(outside)


def test_a_damaged_bundle_is_replaced_by_a_sound_one(store: ModelStore) -> None:
    folder = publish(store)
    (folder / "model.onnx").write_bytes(b"rot")
    assert publish(store) == folder
    load_bundle(folder)


def test_a_name_whose_bundle_is_gone_is_listed_but_not_found(store: ModelStore) -> None:
    shutil.rmtree(publish(store))
    assert store.find("tiny") is None
    assert list(store.names()) == ["tiny"]
    publish(store)
    assert store.find("tiny") is not None


def test_half_a_bundle_leaves_nothing(store: ModelStore) -> None:
    with contextlib.suppress(KeyboardInterrupt), store.staging() as folder:
        (folder / "model.onnx").write_bytes(b"x")
        raise KeyboardInterrupt
    assert list((store.root / "staging").iterdir()) == []


def test_one_process_at_a_time(store: ModelStore) -> None:
    with store.lock("tiny"):
        with pytest.raises(ModelError, match="tiny is being pulled by another process"), store.lock("tiny"):
            pass
        with store.lock("other"):
            pass
    with store.lock("tiny"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_is_an_os_error(store: ModelStore) -> None:
    store.root.mkdir(mode=0o555)
    with pytest.raises(PermissionError):
        publish(store)
