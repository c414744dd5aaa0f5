"""`recognizer-agent models bench`: latency and throughput of a model, the agent's session beside a bare one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from agent.catalogue.bench import Measurement, measure
from agent.catalogue.examine import contract_problems
from agent.cli import EXIT_GOOD
from agent.commands.models_build import wait_for_engine
from agent.config.schema import AgentConfig
from agent.errors import ModelError
from agent.health.probes import free_bytes
from agent.runtime.backend import SessionSettings
from agent.runtime.bundle import Bundle, load_bundle
from agent.runtime.devices import Kind, parse_device, probe_accelerators
from agent.runtime.session import InferenceSession, create_session

_COLUMNS = {
    "device": 10, "batch": 5, "ms": 8, "p95": 8, "bare": 6, "bare ms": 8, "bare p95": 8, "agent / bare": 12, "items/s": 8,
}  # fmt: skip
"""Titles of the table and the characters that they and what stands below get."""


def run(args: argparse.Namespace, config: AgentConfig, path: Path) -> int:
    """Measure and print each row as it comes; what was measured before an error is told all the same.

    Raises ConfigError for a provider that is not here, ModelError, TrustError, DeviceMemoryError, FatalError.
    """
    bundle = load_bundle(path)
    devices = args.provider or (["cpu", "cuda"] if probe_accelerators().has(Kind.CUDA) else ["cpu"])
    found: list[Measurement] = []
    try:
        for one in _measure_on(devices, bundle, args, config):
            found.append(one)
            _tell(bundle, one, first=len(found) == 1, as_json=args.json)
    finally:
        if args.json and found:
            print(
                json.dumps(
                    {"model": bundle.title, "sha256": bundle.model_sha256, "measured": [asdict(one) for one in found]}
                )
            )
    return EXIT_GOOD


def _measure_on(
    devices: Sequence[str], bundle: Bundle, args: argparse.Namespace, config: AgentConfig
) -> Iterator[Measurement]:
    for device in devices:
        engines = _engines(config) if _is_tensorrt(device) else None
        settings = SessionSettings(threads=args.threads)
        session = create_session(
            bundle.model, device=device, settings=settings, engine_cache=engines, config_path="--provider"
        )
        try:
            _check_contract(bundle, session)
            if engines:
                _build_engine(bundle, session, args.batch, engines)
            yield from measure(
                bundle, session, args.batch,
                seconds=args.seconds, threads=args.threads,
                memory_bytes=free_bytes() // 2,  # what a graph computes on the way takes as much again, or more
            )  # fmt: skip
        finally:
            session.close()


def _engines(config: AgentConfig) -> Path:
    return config.pose.engine_cache or config.state_dir / "engines"


def _is_tensorrt(device: str) -> bool:
    chosen = parse_device(device)
    return chosen is not None and chosen.kind is Kind.TENSORRT


def _check_contract(bundle: Bundle, session: InferenceSession) -> None:
    """Raises ModelError when the graph is not what the manifest says."""
    if bundle.manifest is None:
        return
    if problems := list(contract_problems(session.inputs, session.outputs, bundle.manifest)):
        raise ModelError(
            f"{bundle.path}: the graph is not what the manifest says: {'; '.join(problems)} "
            f"(hint: mend the manifest, then `recognizer-agent models verify {bundle.path}`)"
        )


def _build_engine(bundle: Bundle, session: InferenceSession, batches: Sequence[int], engines: Path) -> None:
    """Move the session to TensorRT. Raises ModelError."""
    shape = _shape(session, bundle)
    shapes = {session.inputs[0].name: ((min(batches), *shape), (max(batches), *shape))}
    session.begin_upgrade(shapes, model_sha256=bundle.model_sha256, engine_cache=engines)
    if wait_for_engine(bundle.title, lambda: session.upgrade):
        raise ModelError(f"{bundle.title}: no TensorRT engine to measure")


def _shape(session: InferenceSession, bundle: Bundle) -> tuple[int, ...]:
    said = bundle.manifest.inputs[0].shape[1:] if bundle.manifest else session.inputs[0].shape[1:]
    sizes = tuple(size for size in said if isinstance(size, int))
    if len(sizes) < len(said):
        raise ModelError(
            f"{bundle.title}: input size open; TensorRT needs it (hint: use a bundle whose manifest says it)"
        )
    return sizes


def _tell(bundle: Bundle, one: Measurement, *, first: bool, as_json: bool) -> None:
    """A row on standard output; beside JSON a line on standard error."""
    if as_json:
        print(f"{one.device}, batch {one.batch}: {one.pairs} pairs measured", file=sys.stderr)
        return
    if first:
        print(f"{bundle.title}, sha256 {bundle.model_sha256[:12]}")
        print(_line(_COLUMNS))
    cells = (
        one.device, str(one.batch), f"{one.agent_ms:.2f}", f"{one.agent_p95_ms:.2f}", one.bare_device,
        f"{one.bare_ms:.2f}", f"{one.bare_p95_ms:.2f}", f"{one.ratio:.3f}", f"{one.per_second:.1f}",
    )  # fmt: skip
    print(_line(cells), flush=True)


def _line(cells: Iterable[str]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, _COLUMNS.values(), strict=True)).rstrip()
