"""agent.env beside a configuration file: what systemd makes of it is what a command makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config.variables import assignments, with_env_file


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=one\n# NO=1\n;NO=2\nexport NO=3\n1NO=4\nNO\n\n=NO\nB=", {"A": "one", "B": ""}),
        ("  INDENTED\t= 5 \t\r\nTOKEN=YWJj=\r\n", {"INDENTED": "5", "TOKEN": "YWJj="}),
        ("INNER=a  b 'c' \"d\" # e\n", {"INNER": "a  b 'c' \"d\" # e"}),
        (r"""BACK=a\$b\\c\ d\  """, {"BACK": "a$b\\c d "}),
        ("LONG=a\\\n  b\n# a comment \\\nNO=1\nC=2", {"LONG": "a  b", "C": "2"}),
        (r"""DOUBLE=" a \"b\" \$c \`d \\ \e "  """, {"DOUBLE": r""" a "b" $c `d \ \e """}),
        (r"""SINGLE=' a "b" \$c '  """, {"SINGLE": r""" a "b" \$c """}),
        ("LINES='a\nNO=1\n'\nOTHER=\"b\\\nc\nd\"\n", {"LINES": "a\nNO=1\n", "OTHER": "bc\nd"}),
        ("JOINED='a' \"b\"c 'd'\n", {"JOINED": "abc 'd'"}),
        ("OPEN='a\nNO=1", {"OPEN": "a\nNO=1"}),
        ("TWICE=1\nTWICE=2\n", {"TWICE": "2"}),
    ],
)
def test_a_file_is_read_as_systemd_reads_it(text: str, found: dict[str, str]) -> None:
    """systemd.exec(5), EnvironmentFile=; each of these was held against systemd 252."""
    assert assignments(text) == found


def test_the_environment_comes_first_and_the_last_file_before_the_others(tmp_path: Path) -> None:
    for folder, text in (("site", "A=site\nB=site\nC=site\n"), ("box", "B=box\nC=box\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "agent.env").write_text(text)
    files = [tmp_path / "site" / "agent.yaml", tmp_path / "none" / "agent.yaml", tmp_path / "box" / "agent.yaml"]
    assert with_env_file({"C": ""}, files) == {"A": "site", "B": "box", "C": ""}


def test_a_file_that_cannot_be_read_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "agent.env").mkdir()
    assert with_env_file({}, [tmp_path / "agent.yaml"]) == {}
