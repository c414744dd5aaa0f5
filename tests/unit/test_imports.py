"""Dependency direction: who may import whom in `agent`. The table below is the rule, `docs/architecture.md` the drawing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent

# From the leaves up. A module may import what stands in a layer above it in this table, and the modules of its own
# group; groups of one layer do not know each other. `agent.x` is one module, `agent.x.*` a package with all in it.
LAYERS: tuple[tuple[str, dict[str, tuple[str, ...]]], ...] = (
    ("values", {
        "values": ("agent", "agent.types", "agent.errors"),
        "helpers": ("agent.backoff", "agent.batch_size", "agent.durable", "agent.hosts", "agent.masking", "agent.memory", "agent.throttle", "agent.timeparse"),
        "empty packages": ("agent.action", "agent.config", "agent.events", "agent.health"),
    }),
    ("contracts", {"contracts": ("agent.config.paths", "agent.config.sections", "agent.config.delivery", "agent.config.update", "agent.config.schema", "agent.ports")}),
    ("pure", {"pure": (
        "agent.tracking.*", "agent.action.change", "agent.action.history", "agent.action.selection", "agent.action.windows",
        "agent.events.rules", "agent.events.ids", "agent.events.cloudevents", "agent.events.gaps", "agent.health.governor",
        "agent.drift.*", "agent.client.clocks", "agent.client.items", "agent.client.ledger", "agent.client.series",
        "agent.client.tracker",
        "agent.update.agreement", "agent.update.probation",
    ), "simulation values": ("agent.simulation", "agent.simulation.values")}),
    ("pipeline", {"pipeline": ("agent.pipeline.*",)}),
    ("services", {
        "upkeep": (
            "agent.causes", "agent.health.reasons", "agent.migrations", "agent.net", "agent.observe.*", "agent.plugins", "agent.private_files",
            "agent.sdnotify", "agent.supervise",
        ),
        "documents": ("agent.config.documents", "agent.config.variables"),
        "inference": ("agent.runtime.*",),
        "transfer": ("agent.transfer.*",),
        "drawing": ("agent.overlay", "agent.events.privacy"),
        "simulation": ("agent.simulation.*",),
    }),
    ("adapters", {
        "capture": ("agent.capture.*",),
        "pose": ("agent.pose.*",),
        "action models": ("agent.action.stgcn",),
        "outbox": ("agent.outbox.*",),
        "mqtt": ("agent.mqtt.*",),
        "sinks": ("agent.sinks.*",),
        "http": ("agent.http.*",),
        "probes": ("agent.health.probes", "agent.health.gpu", "agent.health.gpu_jetson", "agent.health.gpu_nvml"),
        "evidence": (
            "agent.events.evidence", "agent.events.evidence_files", "agent.events.evidence_writer",
            "agent.events.retention",
        ),
        "configuration files": ("agent.config.layer", "agent.config.load", "agent.config.reload", "agent.config.reference"),
        "evaluation": ("agent.evaluate.*",),
        "catalogue": ("agent.catalogue.*",),
        "update": ("agent.update.*",),
    }),
    ("recognition", {"recognition": ("agent.recognition",), "subscribers": ("agent.client.*",)}),
    ("users of recognition", {
        "offline": ("agent.offline", "agent.overlay_video"), "daemon": ("agent.daemon.*",), "probe": ("agent.update.probe",),
    }),
    ("measurements", {"measurements": ("agent.evaluate.runs.*",)}),
    ("composition root", {"app": ("agent.app",)}),
    ("command line", {"cli": ("agent.cli",)}),
    ("commands", {"commands": ("agent.commands.*",), "main": ("agent.__main__",)}),
)  # fmt: skip

IMPURE = frozenset(
    {"aiohttp", "asyncio", "av", "cv2", "logging", "onnxruntime", "paho", "sqlite3", "structlog", "time"}
)
"""What makes a module more than a function of its arguments."""

EXCEPTIONS = {
    ("agent.action.change", "cv2"): "arithmetic on arrays: nothing is read, written or shown",
    ("agent.daemon.view", "agent.app"): "a type only: the view looks at the agent it belongs to",
    ("agent.daemon.rounds", "agent.app"): "a type only: the rounds look at the agent they belong to",
    ("agent.daemon.watching", "agent.app"): "a type only: it watches for the agent it belongs to",
    ("agent.events.ids", "time"): "the default of a clock that callers can replace",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted((REPO / "agent").rglob("*.py"))}


@cache
def place_of(module: str) -> tuple[int, str] | None:
    """Layer number and group of a module; None when the table has no place for it."""
    places = {
        pattern: (number, group)
        for number, (_, groups) in enumerate(LAYERS)
        for group, patterns in groups.items()
        for pattern in patterns
    }
    if module in places:
        return places[module]
    parts = module.split(".")
    found = [f"{'.'.join(parts[:n])}.*" for n in range(len(parts), 0, -1)]
    return next((places[pattern] for pattern in found if pattern in places), None)


@cache
def imports_of(module: str) -> tuple[tuple[str, int], ...]:
    return tuple(_imports_of(module))


def _imports_of(module: str) -> Iterator[tuple[str, int]]:
    """Every import of a module, wherever it stands in it: full name and line."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if name in MODULES else str(node.module)), node.lineno


def objection(module: str, target: str) -> str:
    """Why `module` must not import `target`; empty when it may."""
    layer, group = place_of(module) or (0, "")
    to = place_of(target)
    if to is None:
        return "which has no layer"
    if to[0] > layer:
        return f"but {LAYERS[layer][0]} must not know {LAYERS[to[0]][0]}"
    if to[0] == layer and to[1] != group:
        return f"but {group} and {to[1]} must not know each other"
    return ""


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_layer(module: str) -> None:
    assert place_of(module) is not None, f"{module} has no layer: give it one in LAYERS of {Path(__file__).name}"


def test_the_table_names_no_module_that_is_gone() -> None:
    patterns = [pattern for _, groups in LAYERS for names in groups.values() for pattern in names]
    gone = [pattern for pattern in patterns if pattern.removesuffix(".*") not in MODULES]
    assert not gone, f"LAYERS names modules that do not exist: {gone}"


def test_every_exception_is_still_needed() -> None:
    unused = [pair for pair in EXCEPTIONS if pair[1] not in {target for target, _ in imports_of(pair[0])}]
    assert not unused, f"EXCEPTIONS that nobody uses: {unused}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_towards_the_leaves(module: str) -> None:
    wrong = [
        f"{module}:{line} imports {target}, {why}"
        for target, line in imports_of(module)
        if target.split(".")[0] == "agent" and (module, target) not in EXCEPTIONS and (why := objection(module, target))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", [name for name in MODULES if (place_of(name) or (0, ""))[1] == "pure"])
def test_pure_modules_touch_no_clock_disk_or_network(module: str) -> None:
    wrong = [
        f"{module}:{line} imports {target}, but pure code takes values and time and returns values"
        for target, line in imports_of(module)
        if target.split(".")[0] in IMPURE and (module, target) not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_import_is_named() -> None:
    assert objection("agent.tracking.kalman", "agent.outbox.store") == "but pure must not know adapters"
    assert objection("agent.mqtt.client", "agent.outbox.store") == "but mqtt and outbox must not know each other"
    assert objection("agent.mqtt.client", "agent.ports") == ""
    assert objection("agent.pipeline.camera", "agent.supervise") == "but pipeline must not know services"
