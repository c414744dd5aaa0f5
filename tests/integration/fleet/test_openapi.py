"""The management interface against its own description: every route, every role, every answer of a running server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from fakes.fleet_server import FleetServer
from fakes.openapi import Api, ContractError

from ota.rollouts.plan import GroupPlan, Plan
from ota.rollouts.steps import SERVER
from ota.server import management_devices, management_rollouts, management_users
from ota.server.app import PARTS
from ota.server.auth import role_of
from ota.store import audit


def routes() -> dict[tuple[str, str], str]:
    """Role by method and path below /api/v1, of every part."""
    found = {}
    for part in PARTS:
        app = web.Application()
        if hasattr(part, "routes"):
            app.add_routes(part.routes)
        if hasattr(part, "add_routes"):
            part.add_routes(app)
        for route in app.router.routes():
            assert route.resource is not None
            path = route.resource.canonical
            if path.startswith("/api/v1") and route.method != "HEAD":
                role = role_of(route.handler)
                assert role is not None, path
                found[route.method, path.removeprefix("/api/v1")] = role.value
    return found


def test_the_document_is_well_formed() -> None:
    api = Api()
    api.check_schemas()
    for (method, path), operation in api.operations().items():
        assert operation["summary"], (method, path)
        assert "default" in operation["responses"], (method, path)


def test_every_route_is_described_with_its_role_and_no_other() -> None:
    api = Api()
    described = {key: api.role_of(operation) for key, operation in api.operations().items()}
    assert described == routes()


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Plan", Plan), ("GroupPlan", GroupPlan), ("Proposal", management_rollouts.Proposal),
        ("NewRollout", management_rollouts.NewRollout), ("Resume", management_rollouts.Resume),
        ("Abort", management_rollouts.Abort), ("NewDevice", management_devices.NewDevice),
        ("DeviceChange", management_devices.DeviceChange), ("Assignment", management_devices.Assignment),
        ("NewUser", management_users.NewUser), ("UserChange", management_users.UserChange),
    ],
)  # fmt: skip
def test_bodies_are_described_as_they_are_read(name: str, model: Any) -> None:
    """Names, what is required, and the defaults."""
    described, read = Api().document["components"]["schemas"][name], model.model_json_schema()
    assert set(described["properties"]) == set(read["properties"])
    assert set(described.get("required", ())) == set(read.get("required", ()))
    for field, schema in described["properties"].items():
        if "default" in schema and field != "groups":
            assert schema["default"] == read["properties"][field].get("default"), field


async def exchange(fleet: FleetServer, api: Api, method: str, path: str, body: Any = None, **given: Any) -> Any:
    answer = await fleet.api(method, path, body, **given)
    content_type = answer.headers.get("Content-Type", "").partition(";")[0]
    api.hold(method, path, body, answer.status, answer.raw, content_type)
    return answer.json if answer.raw else None


async def test_a_tour_of_all_operations_is_as_described(fleet: FleetServer) -> None:
    api = Api()

    async def call(method: str, path: str, body: Any = None, **given: Any) -> Any:
        """Also: whatever changes something leaves a line in the audit log, and nothing else does."""
        before = await audited()
        found = await exchange(fleet, api, method, path, body, **given)
        changes = method != "GET" and path not in {"/rollouts/preview", "/releases/sync"}
        done = not (isinstance(found, dict) and "error" in found)
        assert ((await audited()) > before) == (changes and done), (method, path)
        return found

    async def audited() -> int:
        """Lines that people caused."""
        entries, _ = await fleet.services.store.read(audit.page, limit=1000, offset=0)
        return sum(entry.who != SERVER for entry in entries)

    await call("GET", "/me")
    await call("POST", "/users", {"name": "otto", "role": "operator"})
    otto = (await call("POST", "/users/otto/token"))["token"]
    await call("PATCH", "/users/otto", {"role": "operator", "active": True})
    await call("GET", "/users")
    await call("GET", "/gateway-token")
    await call("POST", "/gateway-token")
    await call("DELETE", "/gateway-token")

    first, second = await fleet.publish(6, 7)
    await call("POST", "/releases/sync")
    await call("GET", "/releases?slot=pose&all=true")
    await call("GET", f"/releases/{first.id}")

    box = await fleet.device("box-1")
    await box.ask("PUT", "/configData", {"mode": "merge", "data": {"site": "berlin"}})
    await call("POST", "/devices", {"id": "box-2", "name": "Second", "token": "x" * 32})
    await call("PATCH", "/devices/box-2", {"name": "Another"})
    await call("POST", "/devices/box-2/ask-attributes")
    await call("POST", "/devices/box-2/token")
    await call("GET", "/devices?limit=1&filter=site==berlin")
    action = await call("POST", "/devices/box-1/actions", {"release": first.id, "forced": True})
    await box.report(action["id"], "proceeding", "none", "halfway")
    await box.report(action["id"], "closed", "success", "well")
    await call("GET", f"/actions/{action['id']}")
    await call("GET", "/actions?device=box-1&open=false")
    await call("GET", "/devices/box-1")
    await call("GET", "/devices?limit=1")
    await call("GET", "/device-counts")
    other = await call("POST", "/devices/box-2/actions", {"release": second.id})
    await call("POST", f"/actions/{other['id']}/cancel?force=true")

    proposal = {"release": second.id, "filter": "site==berlin", "plan": {"groups": [{"name": "all", "approval": True}]}}
    await call("POST", "/rollouts/preview", proposal)
    rollout = (await call("POST", "/rollouts", {"name": "r", **proposal}))["id"]
    await call("GET", f"/rollouts/{rollout}")
    await call("POST", f"/rollouts/{rollout}/approve", token=otto)
    for what, body in (("start", None), ("pause", None), ("resume", {"accept": False}), ("abort", {"roll_back": True})):
        await call("POST", f"/rollouts/{rollout}/{what}", body)
    await call("GET", f"/rollouts/{rollout}/devices?group=all")
    await call("GET", "/rollouts?limit=10")
    await call("GET", "/audit?limit=3")
    await call("DELETE", "/devices/box-2")
    assert await call("GET", "/openapi.json") == json.loads(json.dumps(api.document))

    await call("GET", "/rollouts/999")
    await call("GET", "/rollouts?limit=0")
    await call("POST", "/rollouts", {"name": "r"})
    await call("POST", f"/rollouts/{rollout}/pause")
    await call("POST", "/devices", {"id": "box-1"})
    await call("GET", "/users", token=otto)
    await call("GET", "/me", token="nobody's")
    await call("PUT", "/rollouts", {})
    assert api.refused >= {400, 401, 403, 404, 409}
    api.seen.add(("GET", "/events"))  # the next test
    assert api.seen == set(api.operations()), "operations that were never answered well"


async def test_the_feed_is_as_described(fleet: FleetServer) -> None:
    headers = {"Authorization": f"Bearer {fleet.admin}"}
    async with fleet.session.get(f"{fleet.url}/api/v1/events", headers=headers) as feed:
        assert feed.content_type in Api().operations()["GET", "/events"]["responses"]["200"]["content"]


async def test_the_check_would_find_what_is_wrong(fleet: FleetServer) -> None:
    broken = json.loads(json.dumps(Api().document))
    del broken["components"]["schemas"]["Me"]["properties"]["role"]
    with pytest.raises(ContractError, match="role"):
        await exchange(fleet, Api(broken), "GET", "/me")
    del broken["paths"]["/me"]
    with pytest.raises(ContractError, match="not in the document"):
        await exchange(fleet, Api(broken), "GET", "/me")
