"""`recognizer-agent models bench`: latency and throughput of a model, the agent's session beside a bare one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from agent.catalogue.bench import Measurement, measure
from agent.cli import EXIT_GOOD
from agent.commands.models_build import wait_for_engine
from agent.commands.output import table_console
from agent.config.schema import AgentConfig
from agent.errors import ModelError
from agent.runtime.backend import SessionSettings
from agent.runtime.bundle import Bundle, load_bundle
from agent.runtime.devices import Kind, parse_device, probe_accelerators
from agent.runtime.session import InferenceSession, create_session


def run(args: argparse.Namespace, config: AgentConfig, path: Path) -> int:
    """Measure and print. Raises ConfigError for a provider that is not here, ModelError, TrustError."""
    bundle = load_bundle(path)
    devices = args.provider or (["cpu", "cuda"] if probe_accelerators().has(Kind.CUDA) else ["cpu"])
    found: list[Measurement] = []
    for device in devices:
        session = _session(bundle, device, args, config)
        try:
            found += _watched(measure(bundle, session, args.batch, seconds=args.seconds, threads=args.threads))
        finally:
            session.close()
    if args.json:
        print(
            json.dumps(
                {"model": bundle.title, "sha256": bundle.model_sha256, "measured": [asdict(one) for one in found]}
            )
        )
    else:
        _print(bundle, found)
    return EXIT_GOOD


def _session(bundle: Bundle, device: str, args: argparse.Namespace, config: AgentConfig) -> InferenceSession:
    engines = config.pose.engine_cache or config.state_dir / "engines"
    chosen = parse_device(device)
    tensorrt = chosen is not None and chosen.kind is Kind.TENSORRT
    session = create_session(
        bundle.model,
        device=device,
        settings=SessionSettings(threads=args.threads),
        engine_cache=engines if tensorrt else None,
        config_path="--provider",
    )
    if tensorrt:
        shape = _shape(session, bundle)
        smallest, largest = min(args.batch), max(args.batch)
        shapes = {session.inputs[0].name: ((smallest, *shape), (largest, *shape))}
        session.begin_upgrade(shapes, model_sha256=bundle.model_sha256, engine_cache=engines)
        if wait_for_engine(bundle.title, lambda: session.upgrade):
            session.close()
            raise ModelError(f"{bundle.title}: no TensorRT engine to measure")
    return session


def _shape(session: InferenceSession, bundle: Bundle) -> tuple[int, ...]:
    said = bundle.manifest.inputs[0].shape[1:] if bundle.manifest else session.inputs[0].shape[1:]
    sizes = tuple(size for size in said if isinstance(size, int))
    if len(sizes) < len(said):
        raise ModelError(
            f"{bundle.title}: input size open; TensorRT needs it (hint: use a bundle whose manifest says it)"
        )
    return sizes


def _watched(measurements: Iterator[Measurement]) -> Iterator[Measurement]:
    for one in measurements:
        print(f"{one.device}, batch {one.batch}: {one.pairs} pairs measured", file=sys.stderr)
        yield one


def _print(bundle: Bundle, found: list[Measurement]) -> None:
    print(f"{bundle.title}, sha256 {bundle.model_sha256[:12]}")
    columns = ("device", "batch", "ms", "p95", "bare", "bare ms", "bare p95", "agent / bare", "items/s")
    table = Table(*columns, box=None, pad_edge=False)
    for one in found:
        table.add_row(
            one.device, str(one.batch), f"{one.agent_ms:.2f}", f"{one.agent_p95_ms:.2f}", one.bare_device,
            f"{one.bare_ms:.2f}", f"{one.bare_p95_ms:.2f}", f"{one.ratio:.3f}", f"{one.per_second:.1f}",
        )  # fmt: skip
    table_console().print(table)
