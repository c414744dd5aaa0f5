"""From a verified model file to a bundle in the store: contract, recorded answers, card, manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.catalogue.entries import MODEL, Entry
from agent.catalogue.examine import contract_problems
from agent.catalogue.picture import people_picture
from agent.catalogue.store import ModelStore
from agent.errors import ModelError
from agent.runtime.bundle import check_golden, load_bundle, seal_bundle, sha256_of, write_golden
from agent.runtime.manifest import GOLDEN, LetterboxInput, Manifest, Provenance
from agent.runtime.onnx_file import graph_problems, read_graph_facts
from agent.runtime.session import InferenceSession, create_session

_FOUND_SCORE = 0.3


def install(entry: Entry, folder: Path, provenance: Provenance, store: ModelStore) -> tuple[Path, str]:
    """Make the folder (of `store.staging`, with the model in it) a bundle and publish it under the entry's name.

    Returns its final path and a line about the recorded answers. Raises ModelError (not the contract of the catalogue, does
    not load, answers differ from run to run), OSError.
    """
    model = folder / MODEL
    if problems := list(graph_problems(model, read_graph_facts(model))):
        raise ModelError("; ".join(problems))
    fields = entry.manifest_fields(provenance)
    (folder / "CARD.md").write_text(_card(entry, provenance, sha256_of(model)), encoding="utf-8")
    manifest = seal_bundle(folder, fields)
    session = create_session(model, device="cpu")
    try:
        if problems := list(contract_problems(session.inputs, session.outputs, manifest)):
            raise ModelError(f"{entry.name} is not what the catalogue promises: {'; '.join(problems)}")
        remark = _record_answers(manifest, folder, session)
        if (folder / GOLDEN).exists():
            seal_bundle(folder, fields | {"golden": {"origin": "self"}})
            check_golden(load_bundle(folder), session)
    finally:
        session.close()
    return store.publish(entry.name, folder), remark


def _record_answers(manifest: Manifest, folder: Path, session: InferenceSession) -> str:
    """What this machine's CPU answers to a picture of the simulated camera, for other providers to be compared with.

    It proves nothing about the model: nobody here has seen its right answers. That is what the checksum is for.
    """
    picture = _picture(manifest)
    if picture is None:
        return "no recorded answers: only pictures are recorded"
    name = manifest.inputs[0].name
    batch = picture.astype(manifest.inputs[0].dtype)
    outputs = dict(zip(session.output_names, session.run({name: batch}), strict=True))
    write_golden(folder / GOLDEN, {name: picture}, outputs)
    scores = [outputs[info.name][..., 4] for info in manifest.outputs if info.meaning == "detections"]
    found = int((scores[0] >= _FOUND_SCORE).sum()) if scores else 0
    if found:
        return f"answers of this CPU recorded: {found} people in the picture; other providers have to find them too"
    return (
        "answers of this CPU recorded, but it sees nobody in the picture: they will show little about other providers"
    )


def _picture(manifest: Manifest) -> NDArray[np.uint8] | None:
    """(1, 3, H, W) for a model that takes one picture of fixed size."""
    info = manifest.inputs[0]
    sizes = [size for size in info.shape[2:] if isinstance(size, int)]
    letterbox = info.preprocessing
    if (
        len(manifest.inputs) != 1
        or not isinstance(letterbox, LetterboxInput)
        or len(info.shape) != 4
        or len(sizes) != 2
    ):
        return None
    image = people_picture(sizes[0], sizes[1])
    planes = image if letterbox.channels == "bgr" else image[..., ::-1]
    return np.ascontiguousarray(planes.transpose(2, 0, 1)[None])


def _card(entry: Entry, provenance: Provenance, sha256: str) -> str:
    known = {
        "catalogue": "its size and sha256 are those of the catalogue",
        "first_use": "**unverified**: its checksum was not known beforehand and was taken as found",
    }
    return (
        f"# {entry.name} {entry.version}\n\n{entry.description}\n\n"
        f"- licence: {entry.licence}\n- training data: {entry.training_data}\n"
        f"- from: {provenance.source} {provenance.revision}\n- sha256: `{sha256}`; {known[provenance.trust]}\n"
        f"- figures: {', '.join(f'{key} {value}' for key, value in entry.figures.items()) or 'none'}\n\n"
        "`golden.npz` holds what this machine's CPU answered when the model was pulled: other providers are compared with it.\n"
        "It says nothing about whether the model is right.\n"
    )
