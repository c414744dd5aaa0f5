"""The lock files hold every dependency, agree with each other, and carry nothing of the machine that wrote them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAMES = ("build", "cpu", "dev", "gpu", "posenet_litert", "tools")
EXTRAS = {"cpu": ("cpu",), "gpu": ("gpu",), "tools": ("demo", "evaluate"), "dev": ("cpu", "dev", "demo", "evaluate")}
PLUGIN = "examples/plugins/posenet_litert/pyproject.toml"


def locked(path: Path) -> dict[str, set[str]]:
    """Package -> versions (several where they differ by Python version)."""
    versions: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", " ")):
            requirement = Requirement(line.removesuffix("\\").strip())
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            versions.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return versions


def wanted(pyproject: Path, extras: tuple[str, ...]) -> list[Requirement]:
    """What a pyproject asks for, without references to the agent itself and what markers rule out here."""
    project = tomllib.loads(pyproject.read_text())["project"]
    lines = list(project.get("dependencies", ()))
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    requirements = [Requirement(line) for line in lines]
    environment = {**default_environment(), "extra": ""}
    return [
        requirement
        for requirement in requirements
        if requirement.name != "recognizer-agent"
        and (requirement.marker is None or requirement.marker.evaluate(environment))
    ]


@pytest.mark.parametrize("name", sorted(EXTRAS))
def test_every_dependency_is_locked_within_its_bounds(repo_dir: Path, name: str) -> None:
    versions = locked(repo_dir / f"requirements/{name}.txt")
    for requirement in wanted(repo_dir / "pyproject.toml", EXTRAS[name]):
        found = versions.get(canonicalize_name(requirement.name))
        assert found, f"{requirement} is not in requirements/{name}.txt: run requirements/lock.sh"
        assert all(requirement.specifier.contains(version) for version in found), f"{requirement}: {found}"


def test_the_plug_in_is_locked(repo_dir: Path) -> None:
    versions = locked(repo_dir / "requirements/posenet_litert.txt")
    for requirement in wanted(repo_dir / PLUGIN, ()):
        assert all(requirement.specifier.contains(v) for v in versions[canonicalize_name(requirement.name)])


def test_files_that_install_together_agree(repo_dir: Path) -> None:
    files = {name: locked(repo_dir / f"requirements/{name}.txt") for name in NAMES}
    for name, versions in files.items():
        for package, found in versions.items():
            assert found == files["cpu"].get(package, found), f"{package} in {name}.txt differs from cpu.txt"
            assert found == files["dev"].get(package, found), f"{package} in {name}.txt differs from dev.txt"


@pytest.mark.parametrize("name", NAMES)
def test_every_package_has_hashes_and_no_place(repo_dir: Path, name: str) -> None:
    text = (repo_dir / f"requirements/{name}.txt").read_text()
    entries = re.split(r"\n(?=[a-z0-9])", text)[1:]
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"://|--(index-url|extra-index-url|find-links)|(^|\s)/", text, re.MULTILINE)


def test_no_second_opencv_comes_in(repo_dir: Path) -> None:
    for name in NAMES:
        assert "opencv-python" not in locked(repo_dir / f"requirements/{name}.txt")
