"""Is this model what it should be? Everything that is wrong with it, not only the first thing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.catalogue.store import told_gone
from agent.errors import DeviceMemoryError, FatalError, ModelError, RecognizerError
from agent.runtime.backend import TensorSpec
from agent.runtime.bundle import Bundle, check_golden, read_bundle, seal_problems
from agent.runtime.manifest import InputInfo, Manifest, OutputInfo
from agent.runtime.onnx_file import graph_problems, read_graph_facts
from agent.runtime.session import InferenceSession, create_session

FP16_OPSET = 17
"""LayerNormalization is an operator of its own from here on; taken apart, it has cost FP16 engines of RTMO all detections."""


@dataclass(slots=True)
class Examination:
    """What was found out about one model. problems: why it must not serve; notes: good to know."""

    path: Path
    title: str
    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.problems


def examine(path: Path, *, device: str = "cpu") -> Examination:
    """Look at a bundle folder or a bare `.onnx` file, load it on `device` and try its known answers.

    Raises ConfigError when `device` is absent, FatalError; everything else becomes a problem.
    """
    found = Examination(path, path.absolute().name or str(path))  # of `.` the folder's own name
    try:
        bundle = read_bundle(path)
    except (ModelError, OSError) as error:
        found.problems.append(told_gone(path) or str(error))
        return found
    found.title = bundle.title
    found.problems += [str(problem) for problem in seal_problems(bundle)]
    if bundle.manifest is None:
        found.notes.append(f"a bare file: nothing says what it should be; its sha256 is {bundle.model_sha256}")
    else:
        found.checked.append(f"{len(bundle.manifest.files)} checksums")
    if found.good:  # a file that is not the released one is not opened
        _examine_graph(found, bundle)
    if found.good:
        _examine_session(found, bundle, device)
    return found


def _examine_graph(found: Examination, bundle: Bundle) -> None:
    try:
        facts = read_graph_facts(bundle.model)
    except ModelError as error:
        found.problems.append(str(error))
        return
    found.problems += graph_problems(bundle.model, facts)
    found.checked.append(f"opset {facts.opsets.get('', 0)}, {len(facts.operators)} operators")
    if facts.opsets.get("", 0) < FP16_OPSET:
        found.notes.append(f"opset {facts.opsets.get('', 0)}: keep TensorRT at fp32, FP16 wants {FP16_OPSET} or newer")


def _examine_session(found: Examination, bundle: Bundle, device: str) -> None:
    try:
        session = create_session(bundle.model, device=device, config_path="--device")
    except (ModelError, DeviceMemoryError) as error:
        found.problems.append(str(error))
        return
    try:
        if bundle.manifest:
            found.problems += contract_problems(session.inputs, session.outputs, bundle.manifest)
            found.checked.append("inputs and outputs")
            if found.good:
                _examine_answers(found, bundle, bundle.manifest, session)
    finally:
        session.close()


def _examine_answers(found: Examination, bundle: Bundle, manifest: Manifest, session: InferenceSession) -> None:
    if manifest.golden is None:
        found.notes.append("no golden answers: nothing shows that it computes what its makers saw")
        return
    try:
        check_golden(bundle, session, reduced_precision=session.device != "cpu")
    except FatalError:
        raise
    except RecognizerError as error:
        found.problems.append(str(error))
        return
    if manifest.golden.origin == "self":
        found.checked.append("answers as recorded here")
    else:
        found.checked.append("golden answers")


def contract_problems(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], manifest: Manifest) -> Iterator[str]:
    """Where the loaded graph is not what the manifest says."""
    yield from _side("input", inputs, manifest.inputs)
    yield from _side("output", outputs, manifest.outputs)
    dtypes = {spec.name: spec.dtype for spec in inputs}
    for info in manifest.inputs:
        if info.name in dtypes and dtypes[info.name] != info.dtype:
            yield f"input {info.name!r} should be {info.dtype}, the graph takes {dtypes[info.name]}"
    if manifest.task == "action":
        yield from _labels_problems(outputs, manifest)


def _labels_problems(outputs: Sequence[TensorSpec], manifest: Manifest) -> Iterator[str]:
    verdicts = {info.name for info in manifest.outputs if info.meaning in {"logits", "probabilities"}}
    for spec in outputs:
        if spec.name in verdicts and spec.shape and spec.shape[-1] not in {None, len(manifest.labels)}:
            yield f"{len(manifest.labels)} labels ({', '.join(manifest.labels)}) do not fit the output {spec}"


def _side(kind: str, specs: Sequence[TensorSpec], infos: Sequence[InputInfo | OutputInfo]) -> Iterator[str]:
    by_name = {spec.name: spec for spec in specs}
    for info in infos:
        spec = by_name.pop(info.name, None)
        if spec is None:
            yield f"the graph has no {kind} {info.name!r}; it has {', '.join(map(str, specs))}"
        elif not _fits(spec.shape, info.shape):
            wanted = ", ".join("?" if size is None else str(size) for size in info.shape)
            yield f"{kind} {info.name!r} should have the shape ({wanted}), the graph says {spec}"
    if kind == "input":  # an output more than promised does no harm; an input more cannot be filled
        for spec in by_name.values():
            yield f"the graph wants an input that the manifest does not know: {spec}"


def _fits(have: Sequence[int | None], want: Sequence[int | str | None]) -> bool:
    """A size that one side leaves open fits any."""
    return len(have) == len(want) and all(
        size is None or not isinstance(wanted, int) or size == wanted for size, wanted in zip(have, want, strict=True)
    )
