"""The filter language: what it takes, what it refuses and where it says so."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota.rollouts.filters import FilterError, compare_versions, parse

BOX = {
    "id": ["box-07"],
    "site": ["Berlin"],
    "model": ["pose-nano", "fight-stgcn"],
    "version": ["0.7.0", "0.4.0"],
    "pose.version": ["0.7.0"],
    "note": ["a;b, (c)"],
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "site==berlin",
        "site == 'BERLIN'",
        "id==box-*",
        "id==*07",
        "id==b*-*7",
        "id==*",
        "id!=box-1*",
        "site==paris,site==berlin",
        "site==paris;id==box-07,site==berlin",  # and binds tighter
        "site==berlin;(id==box-08,id==box-07)",
        "model==fight-stgcn;model==pose-nano",  # any of its values
        "site=in=(paris, berlin)",
        "site=out=(paris,'New York')",
        "pose.version=ge=0.7;pose.version=lt=0.10",
        "pose.version<1 ; pose.version>0.6.9",
        "pose.version<=0.7;pose.version>=0.7.0",
        "note=='a;b, (c)'",
        "nothing!=x",
        "nothing=out=(x,y)",
        r'note!="a\"b"',
    ],
)
def test_takes_the_box(text: str) -> None:
    assert parse(text).matches(BOX)


@pytest.mark.parametrize(
    "text",
    [
        "site==paris",
        "site==berli",
        "id==box-*8",
        "id==box-07*7",
        "id=='box-*'",  # a star in quotes is a star
        "id=in=(box-*)",
        "site!=Berlin",
        "model!=pose-nano",  # one value of it is
        "nothing==x",
        "nothing=lt=9",
        "nothing=in=(x)",
        "site==berlin;id==box-08",
        "(site==berlin,site==paris);id==box-08",
        "pose.version>0.7",
    ],
)
def test_leaves_the_box_out(text: str) -> None:
    assert not parse(text).matches(BOX)


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("site", 5, "expected a comparison (== != =lt= =le= =gt= =ge= =in= =out=) after site, found the end"),
        ("site=berlin", 5, "expected a comparison"),
        ("site=like=x", 5, "found =like="),
        ("site==", 7, "expected a value, found the end"),
        ("site==berlin;;model==x", 14, "expected the name of a field, found ';'"),
        ("site==berlin model==x", 14, 'expected ";" (and) or "," (or), found \'m\''),
        ("(site==berlin", 14, 'expected ")", found the end'),
        ("site==berlin)", 13, "expected"),
        ("site=in=berlin", 9, 'expected "(" before the list'),
        ("site=in=(a;b)", 11, 'expected "," or ")"'),
        ("site=in=()", 10, "expected a value"),
        ("site=='berlin", 7, "this quote is not closed"),
        ("9site==x", 1, "expected the name of a field, found '9'"),
        ("('" * 30, 2, "expected the name of a field"),
        ("(" * 30, 22, "more than 20 brackets"),
        ("a==" + "x" * 1000, 1, "longer than 1000 characters"),
    ],
)
def test_an_error_says_where(text: str, column: int, problem: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse(text)
    assert problem in caught.value.problem
    assert caught.value.column == column
    assert str(caught.value).splitlines()[-1] == " " * (column - 1) + "^"


@given(st.text(alphabet="ab=!<>;,()'\"* \\.lteinou0", max_size=40))
def test_any_text_is_a_filter_or_an_error_with_its_place(text: str) -> None:
    with contextlib.suppress(FilterError):
        parse(text).matches(BOX)
        return
    with pytest.raises(FilterError) as caught:
        parse(text)
    assert 1 <= caught.value.column <= len(text) + 1


@given(st.text(max_size=12), st.text(max_size=12))
def test_a_quoted_value_is_itself_alone(value: str, other: str) -> None:
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    wanted = parse(f"name=='{quoted}'")
    assert wanted.matches({"name": [value]})
    assert wanted.matches({"name": [other]}) == (value.lower() == other.lower())


ASCENDING = ("0.4", "0.9.0", "0.10", "0.10.1", "1.0.0-rc1", "1.0.0-rc2", "1.0.0", "1.0.1", "2", "10")


def test_versions_are_compared_by_their_numbers() -> None:
    for index, one in enumerate(ASCENDING):
        for other_index, other in enumerate(ASCENDING):
            assert compare_versions(one, other) == (index > other_index) - (index < other_index), (one, other)
    assert compare_versions("1.0", "1.0.0") == 0
    assert compare_versions("1.0+build7", "1.0+build8") == 0
    assert compare_versions("1.0", "1.0.beta") == 1


WORDS = st.from_regex(r"[0-9a-z.+-]{0,8}", fullmatch=True)


@given(WORDS, WORDS, WORDS)
def test_versions_have_one_order(one: str, other: str, third: str) -> None:
    assert compare_versions(one, other) == -compare_versions(other, one)
    if compare_versions(one, other) <= 0 and compare_versions(other, third) <= 0:
        assert compare_versions(one, third) <= 0


def test_a_field_is_read_once_however_many_versions_it_is_held_against() -> None:
    asked: list[str] = []

    class Fields(dict[str, list[str]]):
        def get(self, name: str, default: Any = None) -> Any:
            asked.append(name)
            return super().get(name, default)

    wanted = parse("version<0.1,version>9,(version=ge=0.4;version=lt=0.5)")
    assert wanted.matches(Fields(BOX))
    assert asked == ["version"]
    assert not wanted.matches(Fields(BOX | {"version": ["0.7.0"]}))  # nothing stays of the device before


@pytest.mark.parametrize(
    ("text", "number"), [("", 0), ("a==b", 1), ("a=in=(b,c,d)", 1), ("a==b;(b>1,c!=d);e=out=(f)", 4)]
)
def test_comparisons_are_counted(text: str, number: int) -> None:
    assert parse(text).comparisons == number


def test_many_stars_cost_no_more_than_the_text_is_long() -> None:
    wanted = parse("id==" + "*a" * 400 + "*b")
    began = time.perf_counter()
    assert not wanted.matches({"id": ["a" * 100_000]})
    assert time.perf_counter() - began < 1
