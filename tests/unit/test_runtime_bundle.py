"""Model bundles: what is sealed is what is loaded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.graphs import stgcn_graph

from agent.errors import ModelError, TrustError
from agent.runtime.bundle import Bundle, check_golden, load_bundle, main, seal_bundle, write_golden
from agent.runtime.session import create_session

FIELDS: dict[str, Any] = {
    "name": "fight",
    "version": "0.1.0",
    "task": "action",
    "inputs": [{"name": "input_tensor", "shape": ["B", 4, 100, 17, 3], "preprocessing": {"kind": "skeleton", "rate_hz": 25}}],
    "outputs": [{"name": "cls_score", "shape": ["B", 2], "meaning": "logits", "temperature": 1.5}],
    "labels": ["normal", "fight"],
    "licence": "Apache-2.0",
    "training_data": "none: computed",
    "figures": {"dev": {"accuracy": 0.5}},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed bundle with golden data."""
    bundle = tmp_path / "fight"
    bundle.mkdir()
    stgcn_graph(bundle / "model.onnx")
    (bundle / "CARD.md").write_text("# Fight\n")
    inputs = {"input_tensor": np.random.default_rng(0).standard_normal((2, 4, 100, 17, 3)).astype(np.float32)}
    session = create_session(bundle / "model.onnx", device="cpu")
    outputs = dict(zip(session.output_names, session.run(inputs), strict=True))
    write_golden(bundle / "golden.npz", inputs, outputs)
    seal_bundle(bundle, FIELDS)
    return bundle


def rewrite(folder: Path, **changes: object) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def golden_bundle(folder: Path) -> Bundle:
    seal_bundle(folder, FIELDS)
    return load_bundle(folder)


def test_a_sealed_bundle_loads_with_everything_it_says(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.title == "fight 0.1.0"
    assert bundle.model == folder / "model.onnx"
    assert bundle.manifest is not None
    assert bundle.manifest.labels == ("normal", "fight")
    assert bundle.manifest.outputs[0].temperature == 1.5
    assert set(bundle.manifest.files) == {"model.onnx", "golden.npz"}
    assert bundle.manifest.files["model.onnx"].sha256 == bundle.model_sha256
    check_golden(bundle, create_session(bundle.model, device="cpu"))


def test_a_bundle_may_be_moved(folder: Path, tmp_path: Path) -> None:
    assert load_bundle(folder.rename(tmp_path / "elsewhere")).title == "fight 0.1.0"


def test_a_bare_model_file_is_taken_as_it_is(folder: Path) -> None:
    bundle = load_bundle(folder / "model.onnx")
    assert (bundle.title, bundle.manifest) == ("model", None)
    check_golden(bundle, create_session(bundle.model, device="cpu"))  # there is nothing to check


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_one_changed_byte_is_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(TrustError, match=rf"{name}: sha256 is \w+, the manifest says \w+"):
        load_bundle(folder)


def test_documents_may_be_mended(folder: Path) -> None:
    (folder / "CARD.md").write_text("# Fights\n")
    load_bundle(folder)


def test_a_file_that_nobody_listed_is_refused(folder: Path) -> None:
    (folder / "model.onnx.data").write_bytes(b"weights")
    with pytest.raises(TrustError, match=r"not in the manifest: model\.onnx\.data"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "a/../../outside.bin", "..\\outside.bin"])
def test_no_path_leaves_the_bundle(folder: Path, name: str) -> None:
    (folder.parent / "outside.bin").write_bytes(b"x")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite(folder, files={**files, name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(TrustError, match="outside the bundle"):
        load_bundle(folder)


def test_no_link_leaves_the_bundle(folder: Path) -> None:
    outside = folder.parent / "outside.onnx"
    shutil.move(folder / "model.onnx", outside)
    (folder / "model.onnx").symlink_to(outside)
    with pytest.raises(TrustError, match="a link that leaves the bundle"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"manifest": 2}, "manifest: "),
        ({"labels": ["fight"]}, "two or more distinct labels"),
        ({"files": {}}, "does not list the model"),
        ({"inputs": []}, "inputs: "),
        ({"outputs": [{"name": "x", "shape": ["B", 0], "meaning": "logits"}]}, "greater than 0"),
        ({"name": "../fight"}, "name: "),
        ({"outputs": [{"name": "x", "shape": [1], "meaning": "logits", "temperature": 0}]}, "outputs.0.temperature"),
    ],
)
def test_a_wrong_manifest_names_the_key(folder: Path, changes: dict[str, object], words: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(ModelError, match=r"manifest\.json: ") as caught:
        load_bundle(folder)
    assert words in str(caught.value)


def test_no_manifest_no_folder_no_json(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        load_bundle(tmp_path / "none")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match="Invalid JSON"):
        load_bundle(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_bundle(folder)


def test_a_manifest_that_was_never_sealed_says_how_to(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps(FIELDS))
    words = f"manifest.json: files: Field required (hint: `python -m agent.runtime.bundle --seal {folder}` writes"
    with pytest.raises(ModelError, match=re.escape(words)):
        load_bundle(folder)
    assert main(["--seal", str(folder)]) == 0
    rewrite(folder, files=3)
    with pytest.raises(ModelError) as caught:
        load_bundle(folder)
    assert "hint" not in str(caught.value)


def test_a_listed_file_that_is_gone_is_a_model_error(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    with pytest.raises(ModelError, match=r"golden\.npz: listed in the manifest"):
        load_bundle(folder)


def test_a_listed_file_that_no_path_leads_to_is_a_model_error(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    (folder / "golden.npz").symlink_to("golden.npz")
    with pytest.raises(ModelError, match=r"golden\.npz: listed in the manifest, but cannot be read"):
        load_bundle(folder)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    rewrite(folder, files={"a\0b": {"sha256": "0" * 64, "bytes": 1}, **files})
    with pytest.raises(ModelError, match=r"listed in the manifest, but cannot be read: .*embedded null"):
        load_bundle(folder)


@pytest.mark.parametrize("value", [np.array(["fight"]), np.zeros((2, 2), np.complex64), np.zeros(2, "datetime64[s]")])
def test_known_answers_that_are_no_numbers_are_named(folder: Path, value: np.ndarray) -> None:
    with np.load(folder / "golden.npz") as data:
        arrays = dict(data)
    np.savez(folder / "golden.npz", **arrays | {"output.cls_score": value})
    bundle = golden_bundle(folder)
    with pytest.raises(ModelError, match=r"golden\.npz: output\.cls_score is of type .*, expected numbers"):
        check_golden(bundle, create_session(bundle.model, device="cpu"))


def test_answers_that_differ_from_the_golden_ones_are_refused(folder: Path) -> None:
    stgcn_graph(folder / "model.onnx", gain=3.0)
    bundle = golden_bundle(folder)
    with pytest.raises(ModelError, match=r"fight 0\.1\.0: output 'cls_score' differs from the golden one by up to"):
        check_golden(bundle, create_session(bundle.model, device="cpu"))


def test_reduced_precision_forgives_a_little_and_no_more(folder: Path) -> None:
    stgcn_graph(folder / "model.onnx", gain=1.5)  # the mean of noise is about 0.01: off by about 0.005
    bundle = golden_bundle(folder)
    session = create_session(bundle.model, device="cpu")
    with pytest.raises(ModelError, match="differs"):
        check_golden(bundle, session)
    check_golden(bundle, session, reduced_precision=True)


def test_another_number_of_classes_is_refused(folder: Path) -> None:
    stgcn_graph(folder / "model.onnx", classes=3)
    bundle = golden_bundle(folder)
    with pytest.raises(ModelError, match=r"should have shape \(2, 2\), found shape \(2, 3\)"):
        check_golden(bundle, create_session(bundle.model, device="cpu"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_unreadable_golden_data_is_a_model_error(folder: Path, content: bytes) -> None:
    (folder / "golden.npz").write_bytes(content)
    bundle = golden_bundle(folder)
    with pytest.raises(ModelError, match=r"golden\.npz: not a readable"):
        check_golden(bundle, create_session(bundle.model, device="cpu"))


def test_sealing_incomplete_fields_says_what_is_missing(folder: Path) -> None:
    with pytest.raises(ModelError, match="licence: Field required"):
        seal_bundle(folder, {key: value for key, value in FIELDS.items() if key != "licence"})


def test_the_command_checks_and_seals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("fight 0.1.0: good checksums, sha256 ")
    assert f"`recognizer-agent models verify {folder}` asks for the golden answers, too" in out
    stgcn_graph(folder / "model.onnx", gain=2.0)
    assert main([str(folder)]) == 1
    assert "sha256 is" in capsys.readouterr().err
    assert main(["--seal", str(folder)]) == 0
    load_bundle(folder)
    assert main([]) == 2
