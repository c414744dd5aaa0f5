"""docs/configuration.md is what the schema says."""

from __future__ import annotations

from pathlib import Path

from agent.config.reference import render
from agent.config.schema import AgentConfig


def test_the_page_is_up_to_date(repo_dir: Path) -> None:
    page = (repo_dir / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == render(), "run: python -m agent.config.reference > docs/configuration.md"


def test_every_section_and_key_of_the_top_level_is_on_it() -> None:
    page = render()
    for key in AgentConfig.model_fields:
        assert f"`{key}`" in page or f"## `{key}" in page


def test_a_key_says_unit_default_limits_and_when_it_applies() -> None:
    rows = render().splitlines()
    assert "| `port` | whole number |  | `1883` | ≥ 1, ≤ 65 535 | restart |  |" in rows
    assert any(row.startswith("| `cooldown_s` | number | s | `5.0` | ≥ 0 | live |") for row in rows)
    assert any(row.startswith("| `source` | text |  | required |") for row in rows)
    assert any(row.startswith("| `min_box_area_px` | number | px² |") for row in rows)
