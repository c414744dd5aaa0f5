"""Where an operator sits: the commands of `recognizer-fleet` as he types them, the server that hears them, and what it says.

Of `fleet_story.py`, which has put the paths of this repository in place.
"""

from __future__ import annotations

import json
import os
import shlex
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml
from fakes.brokers import free_port
from fakes.fleet_processes import StoryError, stop, wait_for

from agent.runtime.bundle import read_bundle
from ota.remote import Remote

ROOT = Path(__file__).resolve().parent.parent
FLEET = (sys.executable, "-m", "ota.cli")


@dataclass(frozen=True)
class Outcome:
    """What a device told the server of one release. phases: in their order; figures: all that it told at the end, by name."""

    device: str
    phases: tuple[str, ...]
    figures: Mapping[str, str]

    @property
    def reason(self) -> str:
        return self.figures.get("reason", "")

    @property
    def text(self) -> str:
        return self.figures.get("text", "")


class Desk:
    """Every step that changes something is a command, and shown as it is typed. Raises StoryError when one fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "server"
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._began_s = time.monotonic()

    # --- typing and reading -------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began_s:6.1f} s  {text}", file=sys.stderr, flush=True)

    def title(self, text: str) -> None:
        self.say(f"== {text}")

    def need(self, holds: object, text: str) -> None:
        if not holds:
            raise StoryError(text)

    def fleet(self, *arguments: object) -> str:
        """One command; what it prints."""
        done = self._typed(*arguments)
        said = f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        self.need(not done.returncode, f"recognizer-fleet {shlex.join(map(str, arguments))}: {said}")
        return done.stdout

    def refused(self, *arguments: object) -> str:
        """One command that must not succeed; why it did not."""
        done = self._typed(*arguments)
        self.need(
            done.returncode, f"recognizer-fleet {shlex.join(map(str, arguments))}: was not refused\n{done.stdout}"
        )
        why = done.stderr.strip().replace(f"{self.folder}/", "")
        self.say(f"  refused: {why}")
        return why

    def asked(self, *arguments: object) -> Any:
        """What a command says with `--json`; whether a rollout ended well is in it, not in the exit code."""
        done = self._typed(*arguments, "--json")
        self.need(done.stdout, f"recognizer-fleet {shlex.join(map(str, arguments))}: {done.stderr}")
        return json.loads(done.stdout)

    def _typed(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        shown = shlex.join(word.replace(f"{self.folder}/", "") for word in words if word != "--json")
        self.say(f"$ recognizer-fleet {shown}")
        env = os.environ | {
            "RECOGNIZER_FLEET_SERVER": f"http://127.0.0.1:{self.port}",
            "RECOGNIZER_FLEET_TOKEN_FILE": str(self.data / "admin-token"),
        }
        return subprocess.run(
            [*FLEET, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False
        )

    def _remote(self) -> Remote:
        token = (self.data / "admin-token").read_text(encoding="utf-8").strip()
        return Remote(f"http://127.0.0.1:{self.port}", token, ssl.create_default_context())

    # --- repository and server ----------------------------------------------------------------------------------------

    def make_repository(self, name: str) -> Path:
        """Keys and an empty list, let out."""
        repository, keys, online = (self.folder / name / part for part in ("repository", "offline", "online"))
        self.fleet(
            "keys", "ceremony", "--repository", repository, "--keys", keys, "--online-keys", online, "--no-passphrase"
        )
        self.fleet("publish", "--repository", repository, "--keys", online)
        return repository

    def release(self, place: str, bundle: Path, *options: object) -> str:
        """Signed and published; its target path."""
        repository, keys, online = (self.folder / place / part for part in ("repository", "offline", "online"))
        self.fleet("sign", bundle, "--slot", "pose", "--repository", repository, "--keys", keys, *options)
        self.fleet("publish", "--repository", repository, "--keys", online)
        return target_of(bundle)

    def serve(self, repository: Path, *options: object) -> None:
        words = ["serve", "--data", self.data, "--port", self.port, "--repository", repository, *options]
        self.say(f"$ recognizer-fleet {shlex.join(str(word).replace(f'{self.folder}/', '') for word in words)}")
        command = [*FLEET, *(str(word) for word in (*words, "--polling", "00:00:01"))]
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

        def answers() -> bool:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                return True
            return False

        wait_for(answers, f"the server answers: {self.log}", 60)

    @property
    def log(self) -> Path:
        """Of the server."""
        return self.folder / "server.log"

    def stop_server(self) -> None:
        stop(self._server)

    # --- letting out --------------------------------------------------------------------------------------------------

    def roll_out(self, name: str, target: str, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Created, started, and followed to where it stops by itself; the rollout with its devices."""
        known = wait_for(lambda: self._knows(target), f"the server knows {target}", 30)
        file = self.folder / f"plan-{known['id']}.yaml"
        file.write_text(yaml.safe_dump(plan), encoding="utf-8")
        made = self.asked("rollout", "create", name, "--release", target, "--plan", file, "--start")
        self.asked("rollout", "show", made["id"], "--wait", 400)
        found: dict[str, Any] = self._remote().get(f"/rollouts/{made['id']}")
        self.say(f"  rollout {found['id']} {name!r} is {found['state']}: {found['reason']}")
        found["members"] = self._remote().all_of(f"/rollouts/{made['id']}/devices", "devices")
        for member in found["members"]:
            at = "was not asked" if member["at"] == "waiting" else member["at"]
            self.say(f"    {member['id']} ({member['group']}): {at}")
        return found

    def _knows(self, target: str) -> Any:
        return next((one for one in self._remote().get("/releases")["releases"] if one["target"] == target), None)

    def outcome(self, rollout: int | None, device: str) -> Outcome:
        """What `device` told of `rollout`, of the newest for None; also shown to whoever looks at the device."""
        actions = self.asked("devices", "show", device)["actions"]
        action = next(one for one in actions if rollout in {None, one["rollout"]})
        reports = self._remote().get(f"/actions/{action['id']}")["reports"]
        closing = next(report for report in reports if report["finished"] != "none")
        pairs = (line.partition(": ") for line in closing["details"][1:])
        phases = tuple(dict.fromkeys(report["details"][0] for report in reversed(reports) if report["details"]))
        found = Outcome(device, phases, {name: value for name, _, value in pairs})
        shown = action["detail"]
        self.need(found.text in shown, f"devices show {device} does not say {found.text!r}: {shown}")
        return found


def target_of(bundle: Path) -> str:
    """Under which it is signed."""
    manifest = read_bundle(bundle).manifest
    assert manifest is not None
    return f"pose/{manifest.name}-{manifest.version}.tar.zst"
