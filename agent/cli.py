"""The command line `recognizer-agent`: arguments in, exit code out. The work is in `agent.commands`.

Exit codes: 0 good, 1 it ran and something failed, 2 usage, 78 configuration.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from agent import __version__
from agent.config.schema import LogConfig
from agent.config.variables import with_env_file
from agent.errors import ConfigError, RecognizerError
from agent.observe.logging import configure_logging, mask_text

EXIT_GOOD, EXIT_FAILED, EXIT_USAGE, EXIT_CONFIG = 0, 1, 2, 78
EXIT_INTERRUPTED = 130
Number = TypeVar("Number", int, float)

DEMO_SEED = 700_038  # no model was trained on it
"""Scene of the demo."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    args = build_parser().parse_args(argv)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on it reports model names to its maker otherwise
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # else its FFmpeg writes to stderr past every handler
    configure_logging(LogConfig(level="warning"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr does: a name that cannot be shown is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    if args.module == "run":  # else one that comes before the agent can reload ends it
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    files = args.file if args.module == "check_config" else args.config
    os.environ.update(
        with_env_file(os.environ, files)
    )  # as systemd does for the service: libraries read it, too (proxies, CUDA)
    return run_command(f"agent.commands.{args.module}", args)


def run_command(module: str, args: argparse.Namespace) -> int:
    """`run(args, environment)` of `module`; its exit code, or that of the error it raised, which is printed."""
    try:
        code: int = import_module(module).run(args, dict(os.environ))
        _write_out()
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {mask_text(str(problem))}", file=sys.stderr)
        return EXIT_CONFIG
    except RecognizerError as error:
        print(f"error: {mask_text(str(error))}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:  # what the user named cannot be read or written
        if isinstance(error, BrokenPipeError):  # `recognizer-agent events list | head`
            _drop_output()
            return EXIT_GOOD
        print(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def _write_out() -> None:
    """What is buffered, while an error can still be told. Raises OSError."""
    if sys.stdout is None:  # closed: `>&-`
        return
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
        raise


def _drop_output() -> None:
    """Else the interpreter tries again at its end, fails again, and sets an exit code of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser(prog="recognizer-agent", description="Fights and falls, from camera to MQTT.")
    parser.add_argument("--version", action="version", version=f"recognizer-agent {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = _command(commands, "run", "run", "watch the configured cameras until told to stop")
    _config_option(run)

    _add_demo(commands)

    analyze = _command(commands, "analyze", "analyze", "poses, tracks and events of video files")
    analyze.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    analyze.add_argument("--out", type=Path, required=True, metavar="DIR", help="results go to DIR/<video name>/")
    analyze.add_argument(
        "--overlay", action="store_true",
        help="also draw people, tracks and events on its frames: DIR/<video name>/overlay.mp4, faces blurred",
    )  # fmt: skip
    _config_option(analyze)
    _json_option(analyze)

    _add_evaluate(commands)

    check = _command(commands, "check-config", "check_config", "check a configuration; print every problem")
    check.add_argument("file", nargs="+", type=Path, metavar="FILE", help="later files are laid over earlier ones")
    _json_option(check)

    doctor = _command(commands, "doctor", "doctor", "look for what keeps this box from working")
    doctor.add_argument(
        "--self-test", action="store_true", help="also try the models on a simulated scene (some seconds)"
    )
    _config_option(doctor)
    _json_option(doctor)

    _add_events(commands)
    _add_models(commands)
    _add_ota(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = _command(commands, "demo", "demo", "everything embedded: simulated camera, broker, live page")
    demo.add_argument("--seconds", type=positive_number, metavar="N", help="stop after N seconds (default: Ctrl-C)")
    watched = demo.add_mutually_exclusive_group()
    watched.add_argument(
        "--seed", type=whole_number, default=DEMO_SEED, help="of the simulated scene, what is watched by default"
    )
    watched.add_argument("--video", type=Path, metavar="FILE", help="play this file in a loop as the camera")
    watched.add_argument("--camera", metavar="SOURCE", help="watch a real camera: index, /dev/videoN or URL")
    demo.add_argument(
        "--pose-plugin", metavar="NAME", help="pose estimator plug-in, e.g. posenet (default: the shipped pose-nano)"
    )
    demo.add_argument("--pose-model", type=Path, metavar="FILE", help="the plug-in's model file")
    demo.add_argument("--port", type=port_number, default=8080, help="of the live page (default 8080; 0: any)")
    demo.add_argument(
        "--mqtt-port", type=port_number, default=1883, help="of the embedded broker (default 1883; 0: any)"
    )
    demo.set_defaults(config=[])


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = _command(commands, "evaluate", "evaluate", "measure the parts against ground truth")
    kinds = evaluate.add_subparsers(dest="what", metavar="WHAT", required=True)
    pose = kinds.add_parser("pose", help="AP of the pose estimator on COCO key-point annotations")
    pose.add_argument("--annotations", type=Path, action="append", required=True, metavar="COCO.json")
    pose.add_argument(
        "--images", type=Path, action="append", required=True, metavar="DIR", help="one per --annotations"
    )
    pose.add_argument("--score-threshold", type=fraction, default=0.0, help="leave out people below it (default 0)")
    pose.add_argument(
        "--examples", type=natural_number, default=6, metavar="N", help="pictures of the N worst images, faces blurred"
    )
    tracking = kinds.add_parser("tracking", help="HOTA, MOTA, IDF1 on MOT files")
    tracking.add_argument("--detections", type=Path, action="append", required=True, metavar="DET.txt")
    tracking.add_argument("--truth", type=Path, action="append", required=True, metavar="GT.txt")
    tracking.add_argument("--fps", type=positive_number, help="of the sequence (default: its seqinfo.ini, else 30)")
    _add_evaluate_action(kinds)
    _add_evaluate_events(kinds)
    for kind in kinds.choices.values():
        kind.add_argument("--report", type=Path, required=True, metavar="OUT.json", help="OUT.md is written beside it")
        kind.add_argument("--gate", type=Path, metavar="BARS.yaml", help="exit code 1 when a figure misses its bar")
        kind.add_argument("--bars", metavar="NAME", help="which bars of the file (default: the kind, action/<service>)")
        kind.add_argument("--note", default="", metavar="TEXT", help="stands in the report: what was measured on")
        _config_option(kind)


def _add_evaluate_action(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = kinds.add_parser("action", help="accuracy, F1 and calibration of a service on labelled clips")
    action.add_argument("--service", required=True, metavar="NAME", help="fight, fall, ...")
    given = action.add_mutually_exclusive_group(required=True)
    given.add_argument("--data", type=Path, metavar="CLIPS.csv", help="columns file, label; maybe source")
    given.add_argument("--predictions", type=Path, metavar="CSV", help="file, label, probability: report on these")
    action.add_argument("--threshold", type=fraction, default=0.5, help="probability that counts as positive")
    action.add_argument("--sources", type=Path, metavar="CSV", help="columns file, source: results by source")
    action.add_argument("--label-column", default="label", metavar="NAME")
    action.add_argument("--source-column", default="source", metavar="NAME")
    action.add_argument(
        "--where", type=assignment, action="append", default=[], metavar="COLUMN=VALUE", help="only these lines"
    )
    action.add_argument(
        "--examples", type=natural_number, default=6, metavar="N", help="strips of the N worst clips, faces blurred"
    )


def _add_evaluate_events(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    events = kinds.add_parser(
        "events", help="end to end on simulated scenes: found, missed, delay, false alarms an hour"
    )
    events.add_argument("--scenarios", type=Path, metavar="PLAN.yaml", help="which scenes; else every scenario:")
    events.add_argument("--minutes", type=positive_number, default=10.0, metavar="N", help="in all (default 10)")
    events.add_argument("--seeds", type=natural_number, nargs="+", default=[1_000_001], metavar="SEED")
    events.add_argument("--people", type=whole_number, default=4, metavar="N", help="in a scene (default 4)")
    events.add_argument("--only", nargs="+", default=[], metavar="SCENARIO")
    events.add_argument(
        "--poses", choices=("estimator", "truth"), default="estimator",
        help="truth: exact key points with noise in place of the pose estimator",
    )  # fmt: skip
    events.add_argument(
        "--examples", type=natural_number, default=6, metavar="N", help="strips of the N worst mistakes, tracks drawn"
    )
    events.add_argument(
        "--jobs", type=whole_number, default=1, metavar="N", help="scenes at a time, each in a process (default 1)"
    )


def _add_events(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    events = _command(commands, "events", "events", "the event history of this box")
    actions = events.add_subparsers(dest="what", metavar="WHAT", required=True)
    listing = actions.add_parser("list", help="newest events as a table")
    export = actions.add_parser("export", help="all events as JSON lines or CSV")
    dead = actions.add_parser("dead", help="messages that the broker refused for good, newest first")
    audit = actions.add_parser("audit", help="commands that came in over MQTT, newest first")
    backup = actions.add_parser("backup", help="copy the event database, also while the agent runs")
    for action in (listing, export):
        action.add_argument("--since", metavar="TIME", help="ISO 8601, e.g. 2026-11-23T08:00+01:00")
        action.add_argument("--until", metavar="TIME")
        action.add_argument("--kind", help="fight, fall, ...")
        action.add_argument("--camera")
    for action in (listing, dead, audit):
        action.add_argument("--limit", type=whole_number, default=50, metavar="N")
        _json_option(action)
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl")
    export.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    backup.add_argument(
        "file", type=Path, metavar="FILE", help="a new file; put it in the place of the database to restore"
    )
    for action in actions.choices.values():
        _config_option(action)


def _add_models(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    models = _command(commands, "models", "models", "list, fetch, check and measure models")
    actions = models.add_subparsers(dest="what", metavar="WHAT", required=True)
    listing = actions.add_parser("list", help="shipped, pulled and available models")
    verify = actions.add_parser("verify", help="checksums, graph, contract and golden answers")
    verify.add_argument("models", nargs="*", metavar="MODEL", help="name or path (default: all that are here)")
    verify.add_argument("--device", type=device, default="cpu", metavar="DEVICE", help="cpu (default), cuda[:N]")
    pull = actions.add_parser("pull", help="fetch a model of the catalogue")
    pull.add_argument("name", metavar="NAME", help="rtmo-s, ...")
    where = pull.add_mutually_exclusive_group()
    where.add_argument("--from", dest="source", metavar="SOURCE", help="one of its sources, or the URL of a mirror")
    where.add_argument("--file", type=Path, metavar="PATH", help="a file that was fetched elsewhere")
    pull.add_argument("--force", action="store_true", help="also when it is here already")
    pull.add_argument("--allow-unverified", action="store_true", help="take a file whose checksum is not known")
    build = actions.add_parser("build", help="TensorRT engines ahead of time")
    build.add_argument("model", nargs="?", metavar="MODEL", help="name or path (default: what the configuration names)")
    build.add_argument("--device", type=device, default="tensorrt", metavar="DEVICE", help="tensorrt[:N]")
    build.add_argument("--precision", choices=("fp32", "fp16"), help="default: as configured")
    bench = actions.add_parser("bench", help="latency and throughput beside a bare onnxruntime session")
    bench.add_argument("model", metavar="MODEL", help="name or path")
    bench.add_argument("--batch", type=whole_numbers, default=[1, 2, 4, 8], metavar="N,N", help="default 1,2,4,8")
    bench.add_argument("--provider", type=devices, metavar="DEVICE,...", help="cpu, cuda[:N], tensorrt[:N]")
    bench.add_argument("--seconds", type=positive_number, default=3.0, help="per batch size and provider (default 3)")
    bench.add_argument("--threads", type=whole_number, default=0, help="of the CPU (default: one per core)")
    for action in (listing, verify, pull, build, bench):
        action.add_argument("--catalogue", type=Path, metavar="FILE", help="in place of the shipped catalogue")
        _config_option(action)
    for action in (listing, verify, bench):
        _json_option(action)


def _add_ota(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ota = _command(commands, "ota", "ota", "models over the air: what serves, what came, and the way back")
    actions = ota.add_subparsers(dest="what", metavar="WHAT", required=True)
    status = actions.add_parser("status", help="what serves each slot, and the latest updates")
    status.add_argument("--limit", type=whole_number, default=10, metavar="N", help="updates to show (default 10)")
    rollback = actions.add_parser("rollback", help="back to the version before, now; once more: forth again")
    rollback.add_argument("slot", metavar="SLOT", help="pose, action/<service> or configuration")
    check = actions.add_parser("check", help="have the running agent ask the fleet server now")
    for action in (status, rollback, check):
        _config_option(action)
        _json_option(action)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, module: str, text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(module=module)
    return parser


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, action="append", default=[], metavar="FILE",
        help="laid over the shipped defaults; may be given several times",
    )  # fmt: skip


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs: JSON on standard output")


def _parsed(kind: Callable[[str], Number], text: str, wanted: str) -> Number:
    """Else argparse would show the name of the function that reads the argument."""
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None


def whole_number(text: str) -> int:
    number = _parsed(int, text, "a whole number")
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def natural_number(text: str) -> int:
    number = _parsed(int, text, "a whole number")
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return number


def assignment(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not name or not found:
        raise argparse.ArgumentTypeError(f"expected COLUMN=VALUE, got {text}")
    return name, value


def whole_numbers(text: str) -> list[int]:
    return [whole_number(part) for part in text.split(",")]


def device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?|tensorrt(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda[:N] or tensorrt[:N], got {text!r}")
    return text


def devices(text: str) -> list[str]:
    return [device(part) for part in text.split(",")]


def port_number(text: str) -> int:
    port = natural_number(text)
    if port > 65535:
        raise argparse.ArgumentTypeError(f"expected a port up to 65535, got {text}")
    return port


def positive_number(text: str) -> float:
    wanted = "a number above 0"
    number = _parsed(float, text, wanted)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
    return number


def fraction(text: str) -> float:
    wanted = "a number from 0 to 1"
    number = _parsed(float, text, wanted)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
    return number
