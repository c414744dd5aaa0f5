"""What there is and what a name means."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fakes.bundles import make_bundle

from agent.catalogue.entries import Catalogue, load_catalogue
from agent.catalogue.examine import examine
from agent.catalogue.inventory import Item, brief, find_model, inventory
from agent.catalogue.store import ModelStore
from agent.errors import ModelError


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "shipped" / "tiny").parent


@pytest.fixture
def catalogue() -> Catalogue:
    return load_catalogue()


def pulled(store: ModelStore, name: str, **changes: object) -> Path:
    with store.staging() as folder:
        folder.rmdir()
        return store.publish(name, make_bundle(folder, **changes))


def by_use(items: list[Item]) -> dict[str, Item]:
    return {item.use: item for item in items}


def test_shipped_pulled_and_not_pulled(shipped: Path, store: ModelStore, catalogue: Catalogue) -> None:
    folder = pulled(store, "rtmo-s")
    items = by_use(list(inventory(shipped, store, catalogue)))
    assert list(items) == [
        "shipped:tiny", "catalogue:rtmo-s", "catalogue:rtmo-t", "catalogue:rtmo-m", "catalogue:rtmo-l",
    ]  # fmt: skip
    tiny, here, absent = items["shipped:tiny"], items["catalogue:rtmo-s"], items["catalogue:rtmo-t"]
    assert (tiny.where, tiny.state, tiny.version, tiny.input) == ("shipped", "ready", "1.0.0", "?x3x64x96")
    assert tiny.size_bytes == sum(file.stat().st_size for file in (shipped / "tiny").glob("*.[on]*"))
    assert (here.where, here.state, Path(here.path).resolve()) == ("pulled", "ready", folder)
    assert (absent.where, absent.state, absent.path, absent.size_bytes) == ("catalogue", "not pulled", "", 27_360_569)


def test_damage_and_doubt_show(shipped: Path, store: ModelStore, catalogue: Catalogue) -> None:
    (shipped / "tiny" / "model.onnx").write_bytes(b"short")
    provenance = {"source": "https://host/x.zip", "trust": "first_use"}
    pulled(store, "rtmo-s", provenance=provenance)
    broken = pulled(store, "rtmo-m", version="3.0")
    (broken / "manifest.json").unlink()
    items = by_use(list(inventory(shipped, store, catalogue)))
    assert items["shipped:tiny"].state == "damaged"
    assert "has 5 bytes, the manifest says" in items["shipped:tiny"].problem
    assert items["catalogue:rtmo-s"].state == "unverified"
    assert items["catalogue:rtmo-m"].state == "damaged"
    (shipped / "tiny" / "model.onnx").unlink()
    assert "is missing" in next(inventory(shipped, store, catalogue)).problem


def test_a_pulled_name_whose_folder_is_gone_says_where_it_was_and_how_it_comes_back(
    shipped: Path, store: ModelStore, catalogue: Catalogue
) -> None:
    folder = pulled(store, "rtmo-s")
    shutil.rmtree(folder)
    link = store.root / "pulled" / "rtmo-s"
    told = (
        f"{link}: the folder that it stands for is gone: {folder} "
        "(hint: recognizer-agent models pull rtmo-s fetches it again; else delete the link)"
    )
    item = by_use(list(inventory(shipped, store, catalogue)))["catalogue:rtmo-s"]
    assert (item.state, item.problem) == ("damaged", told)
    assert examine(link).problems == [told]
    for text in ("rtmo-s", "catalogue:rtmo-s"):
        with pytest.raises(ModelError) as caught:
            find_model(text, shipped, store, catalogue)
        assert str(caught.value) == told
    pulled(store, "rtmo-s")
    assert find_model("rtmo-s", shipped, store, catalogue) == link


def test_a_name_is_a_pulled_model_a_shipped_one_or_a_path(
    shipped: Path, store: ModelStore, catalogue: Catalogue, tmp_path: Path
) -> None:
    def find(text: str) -> Path:
        return find_model(text, shipped, store, catalogue)

    assert find("tiny") == find("shipped:tiny") == shipped / "tiny"
    own = make_bundle(tmp_path / "own")
    assert find(str(own)) == own
    assert find(str(own / "model.onnx")) == own / "model.onnx"
    pulled(store, "tiny")
    assert find("tiny") == find("catalogue:tiny") == store.root / "pulled" / "tiny"
    assert find("shipped:tiny") == shipped / "tiny"


def test_a_path_is_no_name_however_it_looks(
    shipped: Path, store: ModelStore, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled(store, "tiny")
    monkeypatch.chdir(make_bundle(tmp_path / "own"))
    for text in (".", "..", "../own"):
        assert find_model(text, shipped, store, catalogue) == Path(text)
    for text in ("", "catalogue:", "catalogue:.", "shipped:.."):
        with pytest.raises(ModelError, match="no such model"):
            find_model(text, shipped, store, catalogue)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rtmo-s", "rtmo-s is not on this machine yet (hint: recognizer-agent models pull rtmo-s)"),
        ("catalogue:rtmo-s", "recognizer-agent models pull rtmo-s"),
        ("shipped:rtmo-s", "shipped:rtmo-s: no such model (hint: tiny; or the path"),
        ("moon", "moon: no such model"),
        ("catalogue:tiny", "no such model"),
    ],
)
def test_a_name_of_nothing_says_what_there_is(
    shipped: Path, store: ModelStore, catalogue: Catalogue, text: str, words: str
) -> None:
    with pytest.raises(ModelError) as caught:
        find_model(text, shipped, store, catalogue)
    assert words in str(caught.value)


def test_telling_figures_come_first_and_are_few() -> None:
    assert brief({"n": 3, "a": {"AP": 0.5, "b": {"accuracy": 1}}, "ms_per_frame": 2, "f1": 0.25}) == (
        "a.AP 0.5, a.b.accuracy 1, ms_per_frame 2"
    )
    assert brief({"origin": "paper", "ok": True}) == ""
