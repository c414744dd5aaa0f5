"""One update by the Python client of RAUC (rauc-hawkbit), as its D-Bus half would do it: a program of its own.

python rauc_client.py HOST:PORT TENANT CONTROLLER TOKEN FILE
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

import aiohttp


async def main(host: str, tenant: str, controller: str, token: str, file: str) -> dict[str, Any]:
    from rauc_hawkbit.ddi.client import APIError, ConfigStatusExecution, ConfigStatusResult, DDIClient
    from rauc_hawkbit.ddi.deployment_base import DeploymentStatusExecution, DeploymentStatusResult

    async with aiohttp.ClientSession() as session:
        client = DDIClient(session, host, False, token, tenant, controller)
        base = await client()
        await client.configData(ConfigStatusExecution.closed, ConfigStatusResult.success, MAC="aa:bb", system="rauc")
        found = re.search(r"/deploymentBase/(.+)\?c=(.+)$", base["_links"]["deploymentBase"]["href"])
        assert found is not None
        action, resource = found.groups()
        artifact = (await client.deploymentBase[action](resource))["deployment"]["chunks"][0]["artifacts"][0]
        link = re.search(r"/softwaremodules/(.+)/artifacts/(.+)$", artifact["_links"]["download-http"]["href"])
        assert link is not None
        module, name = link.groups()
        md5 = await client.softwaremodules[module].artifacts[name](file)
        assert md5 == artifact["hashes"]["md5"]
        feedback = client.deploymentBase[action].feedback
        await feedback(DeploymentStatusExecution.proceeding, DeploymentStatusResult.none, ["Installing"], percentage=40)
        await feedback(DeploymentStatusExecution.closed, DeploymentStatusResult.success, ["completed with result: 0"])
        late = ""
        try:
            await feedback(DeploymentStatusExecution.closed, DeploymentStatusResult.failure, ["too late"])
        except APIError as error:
            late = str(error)
        return {"sleep": base["config"]["polling"]["sleep"], "late": late, "links": sorted((await client())["_links"])}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
