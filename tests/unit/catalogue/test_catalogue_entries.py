"""The catalogue's file: what ships is sound, what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.catalogue import entries
from agent.catalogue.entries import Entry, load_catalogue
from agent.errors import ModelError
from agent.runtime.manifest import LetterboxInput, Provenance

RTMO = {"rtmo-t": 416, "rtmo-s": 640, "rtmo-m": 640, "rtmo-l": 640}


@pytest.fixture
def document(repo_dir: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((repo_dir / "models" / "catalogue.json").read_text())
    return loaded


@pytest.mark.parametrize("name", RTMO)
def test_every_rtmo_has_two_sources_a_checksum_and_the_contract(name: str) -> None:
    entry = load_catalogue().find(name)
    assert entry is not None
    direct, zipped = entry.sources
    assert direct.same_file
    assert direct.revision in direct.url
    assert direct.url.startswith(f"https://huggingface.co/Xenova/RTMO-{name[-1]}/resolve/")
    assert (zipped.member, zipped.url[:33]) == ("end2end.onnx", "https://download.openmmlab.com/mm")
    assert entry.inputs[0].shape == ("batch", 3, RTMO[name], RTMO[name])
    assert isinstance(entry.inputs[0].preprocessing, LetterboxInput)
    assert [output.name for output in entry.outputs] == ["dets", "keypoints"]
    assert entry.file.bytes > 20_000_000
    assert (entry.licence, entry.labels) == ("Apache-2.0", ())


def test_there_is_nothing_else_in_it() -> None:
    assert [entry.name for entry in load_catalogue().models] == list(RTMO)
    assert load_catalogue().find("rtmo-xxl") is None


def test_an_unverified_model_does_not_pass_for_the_catalogues() -> None:
    entry = load_catalogue().models[0]
    versions = [
        entry.manifest_fields(Provenance(source="x", trust=trust))["version"] for trust in ("catalogue", "first_use")
    ]
    assert versions == [entry.version, f"{entry.version}+unverified"]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("models", 0, "colour"), "red", "models.0.colour: Extra inputs"),
        (("models", 0, "file", "sha256"), "abc", "models.0.file.sha256"),
        (("models", 0, "file", "bytes"), None, "models.0.file.bytes"),
        (("models", 0, "sources"), [], "models.0.sources"),
        (("models", 0, "sources", 0, "url"), "ftp://host/x", "must be an http(s) address without user and password"),
        (("models", 0, "sources", 0, "url"), "https://me:pw@host/x", "must be an http(s) address without user and"),
        (("models", 0, "sources", 0, "name"), "openmmlab", "two sources have the same name"),
        (("models", 0, "name"), "rtmo-s", "two models have the same name"),
        (("models", 0, "name"), "../x", "models.0.name"),
        (("catalogue",), 2, "catalogue: "),
    ],
)
def test_a_wrong_catalogue_names_file_and_key(
    document: dict[str, Any], tmp_path: Path, place: tuple[Any, ...], value: Any, words: str
) -> None:
    node: Any = document
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    file = tmp_path / "catalogue.json"
    file.write_text(json.dumps(document))
    with pytest.raises(ModelError) as caught:
        load_catalogue(file)
    assert str(file) in str(caught.value)
    assert words in str(caught.value)


def test_no_file_no_json(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the catalogue cannot be read"):
        load_catalogue(tmp_path / "none.json")
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(ModelError, match="Invalid JSON"):
        load_catalogue(tmp_path / "half.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the catalogue is empty"),
        ("\n", "the catalogue is empty"),
        ("null", "not a catalogue of models: catalogue: Input should be an object"),
        ("{", "not a catalogue of models: catalogue: Invalid JSON"),
    ],
)
def test_a_file_that_is_no_catalogue_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: str
) -> None:
    file = tmp_path / "catalogue.json"
    file.write_text(content)
    with pytest.raises(ModelError) as own:
        load_catalogue(file)
    assert str(own.value).startswith(f"{file}: {words}")
    assert str(own.value).endswith(" (hint: leave out --catalogue to use the shipped one)")
    monkeypatch.setattr(entries, "resource_dir", lambda _: tmp_path)
    with pytest.raises(ModelError) as shipped:
        load_catalogue()
    assert str(shipped.value).startswith(f"{file}: {words}")
    assert str(shipped.value).endswith(" (hint: install the agent again, or give a --catalogue)")


def test_an_unknown_source_is_answered_with_those_there_are(document: dict[str, Any]) -> None:
    entry = Entry.model_validate(document["models"][1])
    assert entry.source("openmmlab").member == "end2end.onnx"
    with pytest.raises(ModelError, match=r"rtmo-s has no source 'moon' .*huggingface, openmmlab"):
        entry.source("moon")
