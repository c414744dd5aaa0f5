"""Reading what a server says: every answer of hawkBit's documentation, and every way in which it can be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes.hawkbit_exchanges import ACTION, POLLS, RESOURCES, TARGET

from agent.errors import DataError
from agent.update.ddi_documents import (
    Reference,
    confirmation_body,
    feedback_body,
    read_cancel,
    read_confirmation,
    read_confirmation_base,
    read_deployment,
    read_poll,
)
from agent.update.machine import Phase, Report, report
from agent.update.orders import understood

ANSWERS = {exchange.name: json.dumps(exchange.answer).encode() for exchange in (*POLLS, *RESOURCES) if exchange.answer}


def test_polls_of_the_documentation() -> None:
    polls = {name: read_poll(body) for name, body in ANSWERS.items() if name.startswith("poll")}
    assert {poll.sleep_s for poll in polls.values()} == {12 * 3600.0}
    assert polls["poll, first contact"].config_data
    assert polls["poll, deployment"].deployment == Reference(str(ACTION), "c=-2127183556")
    assert polls["poll, cancellation"].cancel == Reference(str(ACTION))
    assert polls["poll, confirmation"].confirmation == Reference(str(ACTION), "c=-2122565939")
    assert polls["poll, installed"].installed == Reference(str(ACTION))
    assert polls["poll, nothing to do"].deployment is None


@pytest.mark.parametrize("name", ["deployment", "deployment with history", "deployment, forced", "installed"])
def test_deployments_of_the_documentation(name: str) -> None:
    deployment = read_deployment(ANSWERS[name])
    assert deployment.action_id == str(ACTION)
    assert deployment.may_install
    assert understood(deployment) == ("pose", TARGET, "")


def test_the_other_answers_of_the_documentation() -> None:
    assert read_confirmation(ANSWERS["confirmation of an action"]).action_id == str(ACTION)
    assert read_confirmation_base(ANSWERS["confirmation base"]) == Reference(str(ACTION), "c=-2122565939")
    assert read_cancel(ANSWERS["cancellation"]) == (str(ACTION), str(ACTION))


def test_without_metadata_the_target_lies_where_it_usually_does() -> None:
    document = json.loads(ANSWERS["deployment"])
    document["deployment"]["chunks"][0] |= {
        "metadata": [],
        "part": "action-fight",
        "name": "fight-stgcn",
        "version": "0.4.0",
    }
    found = understood(read_deployment(json.dumps(document).encode()))
    assert found == ("action/fight", "action-fight/fight-stgcn-0.4.0.tar.zst", "")


@pytest.mark.parametrize(
    ("member", "value", "download", "install"),
    [
        ("update", "skip", True, False),
        ("maintenanceWindow", "unavailable", True, False),
        ("download", "skip", False, True),
    ],
)
def test_what_the_server_holds_back(member: str, value: str, download: bool, install: bool) -> None:
    document = json.loads(ANSWERS["deployment"])
    document["deployment"][member] = value
    deployment = read_deployment(json.dumps(document).encode())
    assert (deployment.may_download, deployment.may_install) == (download, install)


@pytest.mark.parametrize(
    ("update", "forced"), [("attempt", False), ("forced", True), ("skip", False), ("timeforced", False)]
)
def test_only_a_forced_update_is_forced(update: str, forced: bool) -> None:
    document = json.loads(ANSWERS["deployment"])
    document["deployment"] |= {"download": "forced", "update": update}
    assert read_deployment(json.dumps(document).encode()).forced is forced


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "no JSON"),
        (b"<html>", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (nested(25), "nested deeper"),
        (b"[]", "the document"),
        (b'{"config": {"polling": {"sleep": "soon"}}}', "HH:MM:SS, got 'soon'"),
        (b'{"config": {"polling": {"sleep": 60}}}', r"config\.polling\.sleep"),
        (b'{"_links": {"deploymentBase": {"href": 8}}}', "deploymentBase.href"),
        (b'{"_links": {"deploymentBase": {"href": "https://[::1/8"}}}', "deploymentBase"),
        (b'{"_links": {"deploymentBase": {"href": "https://fleet/a/..%2F..%2Fetc"}}}', "is no id"),
        (b'{"_links": {"cancelAction": {"href": ""}}}', "is no id"),
    ],
)
def test_a_wrong_poll_says_what_is_wrong(body: bytes, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_poll(body)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"id": "../8"}, "is no id"),
        ({"id": None}, "id"),
        ({"deployment": None}, "deployment"),
        ({"deployment": {"chunks": [{"part": "pose"}] * 2}}, r"chunks\.0\.name"),
        ({"deployment": {"chunks": [{"part": "pose", "name": "a", "version": "1"}] * 33}}, "chunks"),
        ({"deployment": {"chunks": [{"part": "x" * 2000, "name": "a", "version": "1"}]}}, "part"),
    ],
)
def test_a_wrong_deployment_says_what_is_wrong(change: dict[str, Any], complaint: str) -> None:
    document = json.loads(ANSWERS["deployment"]) | change
    with pytest.raises(DataError, match=complaint):
        read_deployment(json.dumps(document).encode())


def test_an_error_does_not_repeat_what_the_server_said() -> None:
    """Details are published and sent back."""
    with pytest.raises(DataError) as caught:
        read_deployment(json.dumps({"id": "8", "deployment": {"chunks": [{"part": {"secret": "word"}}]}}).encode())
    assert "word" not in str(caught.value)


def test_a_feedback_is_of_hawkbits_form() -> None:
    body = feedback_body(
        "8", report(Phase.COMMITTED, text="pose-nano 0.7.0", figures={"gap_ms": 4.0}), 1_795_660_851_000
    )
    assert body["status"]["execution"] == "closed"
    assert body["status"]["result"] == {"finished": "success"}
    assert body["status"]["details"] == ["committed", "text: pose-nano 0.7.0", "gap_ms: 4"]
    assert confirmation_body(Report("rejected", "none", ()))["confirmation"] == "denied"
    assert confirmation_body(Report("proceeding", "none", ()))["confirmation"] == "confirmed"
