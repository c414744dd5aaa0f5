"""docs/ota.md names tests and commands: they have to be there."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from pathlib import Path

import pytest

from ota.cli import build_parser

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "ota.md").read_text()
TESTS = sorted(set(re.findall(r"`(tests/[a-z_/0-9]+\.py)::(\w+)`", TEXT)))
COMMANDS = sorted(set(re.findall(r"`recognizer-fleet ([^`]+)`", TEXT)) | {
    line.replace("\\\n", " ").split("#")[0].strip() for line in re.findall(r"^ *recognizer-fleet ((?:.*\\\n)*.*)$", TEXT, re.MULTILINE)
})  # fmt: skip


def test_something_was_found() -> None:
    assert len(TESTS) > 30
    assert len(COMMANDS) > 10


@pytest.mark.parametrize(("file", "name"), TESTS, ids=str)
def test_every_test_of_the_threat_table_exists(file: str, name: str) -> None:
    tree = ast.parse((REPO / file).read_text())
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in functions


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_exists(command: str) -> None:
    """Abbreviated commands in running text are fine; an option that is not known is not."""
    words = [word for word in shlex.split(command) if re.fullmatch(r"[a-z-]+", word)]
    parser: argparse.ArgumentParser = build_parser()
    for word in words:
        choices = next((dict(a.choices) for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})
        if word not in choices:
            break
        parser = choices[word]
    known = {option for action in parser._actions for option in action.option_strings}
    assert [word for word in words if word.startswith("--") and word not in known] == []
