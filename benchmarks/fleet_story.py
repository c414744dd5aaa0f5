"""A fleet from its first key to its fourth bad model, on one machine, with the commands that an operator types.

    python benchmarks/fleet_story.py [--folder DIR] [--fps 8] [--json]

A fleet server, three agents on simulated cameras, Mosquitto: a good model is let out to one device and then to the others; after it
one that is slower, one that is worse, one that crashes in its trial, one that crashes on live pictures only, and one that nobody with
the keys has signed, offered by a server in the wrong hands. Takes some minutes. Exit code 0 only if

- the good model came to serve on all three devices, the canary first, and no camera was without a frame for more than 200 ms at the swap
  (two frames, where this machine gives fewer than ten a second to each),
- each bad one was refused or taken back by its canary alone, its rollout stopped, and the server names the reason,
- after each of them all three devices serve what they served before,
- all three kept sending over MQTT, and no agent ended but the one that the fifth model kills (its trial on live pictures).

`--folder DIR` keeps everything; each agent's log and the server's lie there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes.brokers import MOSQUITTO, Mosquitto, free_port  # noqa: E402 - the path comes first
from fakes.candidates import crashing, crashing_beside, derive, elsewhere, slower  # noqa: E402
from fakes.fleet_processes import Agent, Ear, StoryError, stop, wait_for  # noqa: E402

from agent.runtime.bundle import read_bundle  # noqa: E402

GAP_BAR_MS = 200.0
SILENCE_BAR_S = 10.0
"""MQTT. Health is sent each second; three agents and all that is loaded share this machine."""
DEVICES = ("gate-1", "gate-2", "gate-3")
SHIPPED = "pose-nano-int8"
PICTURE_PX = 320
"""Width and height. Square pictures leave the right of the model's input empty, which its golden answers do not: see crashing_beside."""
EMPTY_FROM_COLUMN = 544
PLAN = {
    "groups": [{"name": "canary", "count": 1}, {"name": "second", "count": 1}, {"name": "rest"}],
    "roll_back": "group",
}
FLEET = (sys.executable, "-m", "ota.cli")


@dataclass(frozen=True)
class Bad:
    """A release that must not come to stay. reasons: words that the server may hear, one of them. honest: its golden answers are its own
    (there are none to be had of a model that crashes)."""

    name: str
    version: str
    reasons: frozenset[str]
    kills_agent: bool = False
    honest: bool = True


BAD = (
    Bad("slower", "9.1.0", frozenset({"slower"})),
    Bad("worse", "9.2.0", frozenset({"worse"})),
    Bad("crashing", "9.3.0", frozenset({"crash"}), honest=False),
    Bad("crashing on live pictures", "9.4.0", frozenset({"restart"}), kills_agent=True),
)
CHANGES = (slower(40), elsewhere(60.0), crashing, crashing_beside(EMPTY_FROM_COLUMN))
UNSIGNED = Bad("not signed", "9.9.0", frozenset({"trust"}))


@dataclass
class Verdict:
    """What was seen. gaps_ms: longest without a frame at the swap, by device, as the device told the server; silences_s: MQTT."""

    gaps_ms: dict[str, float] = field(default_factory=dict)
    usual_gaps_ms: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    silences_s: dict[str, float] = field(default_factory=dict)


# --- the story --------------------------------------------------------------------------------------------------------


class Story:
    """Every step that changes something is a command."""

    def __init__(self, folder: Path, fps: int) -> None:
        self.folder = folder
        self.fps = fps
        self.verdict = Verdict()
        self.port = free_port()
        self.agents: dict[str, Agent] = {}
        self.ear: Ear | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._began_s = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began_s:6.1f} s  {text}", file=sys.stderr, flush=True)

    def fleet(self, *arguments: object, ok: bool = True) -> str:
        """One command of `recognizer-fleet`; what it prints. Raises StoryError when it fails and `ok`."""
        words = [str(argument) for argument in arguments]
        self.say("recognizer-fleet " + " ".join(word.replace(f"{self.folder}/", "") for word in words))
        data = self.folder / "server"
        env = os.environ | {
            "RECOGNIZER_FLEET_SERVER": f"http://127.0.0.1:{self.port}",
            "RECOGNIZER_FLEET_TOKEN_FILE": str(data / "admin-token"),
        }
        done = subprocess.run(
            [*FLEET, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False
        )
        if ok and done.returncode:
            raise StoryError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def asked(self, *arguments: object) -> Any:
        """What a command says with `--json`; whether a rollout ended well is in it, not in the exit code."""
        return json.loads(self.fleet(*arguments, "--json", ok=False) or "{}")

    # --- who takes part -----------------------------------------------------------------------------------------------

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
        manifest = read_bundle(bundle).manifest
        assert manifest is not None
        return f"pose/{manifest.name}-{manifest.version}.tar.zst"

    def serve(self, repository: Path, *options: object) -> None:
        words = ["serve", "--data", self.folder / "server", "--port", self.port, "--repository", repository]
        command = [*FLEET, *(str(word) for word in (*words, "--polling", "00:00:01", *options))]
        with (self.folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        self.say("recognizer-fleet serve")

        def answers() -> bool:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                return True
            return False

        wait_for(answers, f"the server answers: {self.folder / 'server.log'}", 60)

    def stop_server(self) -> None:
        stop(self._server)

    def add_device(self, number: int, name: str, broker_port: int) -> None:
        """Entered at the server, given its token and the root by hand, started."""
        folder = self.folder / name
        folder.mkdir()
        self.fleet("devices", "add", name, "--token-out", folder / "token")
        shutil.copy(self.folder / "ours" / "repository" / "metadata" / "1.root.json", folder / "root.json")
        server = f"http://127.0.0.1:{self.port}"
        picture = f"scenario=mixed&people=4&width={PICTURE_PX}&height={PICTURE_PX}"
        self.agents[name] = Agent(
            folder,
            {
                "device_id": name, "state_dir": str(folder / "state"), "pose": {"threads": 1},
                "cameras": [
                    {"id": "yard", "source": f"sim://?{picture}&seed={number}&fps={self.fps}", "blind_after_s": 0}
                ],
                "services": {
                    "fight": {"enabled": False}, "fall": {"rules": {"alert_threshold": 0.99, "normal_threshold": 0.1}}
                },
                "mqtt": {"port": broker_port}, "evidence": {"enabled": False}, "http": {"port": free_port()},
                "health": {"probe_interval_s": 1, "publish_interval_s": 1, "governor": {"enabled": False}},
                "update": {
                    "enabled": True, "server": server, "repository": f"{server}/repository",
                    "root_file": str(folder / "root.json"), "token_file": str(folder / "token"),
                    "poll_min_s": 1, "reserve_bytes": 0, "shadow_s": 10, "probation_s": 8,
                },
            },
        )  # fmt: skip
        self.agents[name].start()

    # --- letting out --------------------------------------------------------------------------------------------------

    def roll_out(self, name: str, target: str) -> dict[str, Any]:
        """Created, started, and followed to where it stops by itself; the rollout with its devices."""
        plan = self.folder / "plan.yaml"
        plan.write_text(yaml.safe_dump(PLAN), encoding="utf-8")
        made = wait_for(
            lambda: self.asked("rollout", "create", name, "--release", target, "--plan", plan, "--start"),
            f"the server knows {target}", 30,
        )  # fmt: skip
        self.asked("rollout", "show", made["id"], "--wait", 400)
        found = dict(self.asked("rollout", "show", made["id"], "--devices"))
        self.say(f"rollout {found['id']} {name!r} is {found['state']} {found['reason']}")
        for member in found["members"]:
            self.say(f"  {member['id']}, {member['group']}: {member['at']}; {member['detail'][:160]}")
        return found

    def let_out_the_good(self) -> None:
        bundle = derive(SHIPPED, self.folder / "bundles" / "good", version="9.0.0")
        began_s = time.monotonic()
        target = self.release(
            "ours", bundle, "--latency-ratio", 6
        )  # of figures taken while three agents share two cores
        found = self.roll_out("good", target)
        self.verdict.seconds["good"] = round(time.monotonic() - began_s, 1)
        self.verdict.states["good"] = found["state"]
        self.need(found["state"] == "finished", f"the good model: {found}")
        within = True
        for name, agent in self.agents.items():
            self.need(agent.serves == f"{SHIPPED} 9.0.0", f"{name} serves {agent.serves}")
            figures = self.figures(name)
            self.verdict.gaps_ms[name] = float(figures["gap_ms"])
            self.verdict.usual_gaps_ms[name] = float(figures["usual_gap_ms"])
            bar_ms = max(GAP_BAR_MS, 2 * self.verdict.usual_gaps_ms[name])
            within = within and self.verdict.gaps_ms[name] <= bar_ms
        gaps = ", ".join(
            f"{name} {gap:g} ms (else {self.verdict.usual_gaps_ms[name]:g} ms)"
            for name, gap in self.verdict.gaps_ms.items()
        )
        self.say(f"longest time without a frame at the swap: {gaps}")
        self.need(within, f"gaps at the swap: {gaps}")

    def let_out_bad(self, bad: Bad, target: str) -> None:
        """It stops at the canary, and everybody goes on with what he had."""
        before = {name: (agent.serves, agent.frames, agent.deaths) for name, agent in self.agents.items()}
        began_s = time.monotonic()
        found = self.roll_out(bad.name, target)
        self.verdict.seconds[bad.name] = round(time.monotonic() - began_s, 1)
        self.verdict.states[bad.name] = found["state"]
        canary, *others = found["groups"]
        untouched = all(group["state"] == "scheduled" and not group["counts"]["failed"] for group in others)
        self.need(found["state"] in {"rolled_back", "aborted", "paused"} and found["reason"], f"{bad.name}: {found}")
        self.need(canary["counts"]["failed"] == 1 and untouched, f"{bad.name}: {found['groups']}")
        (tried,) = (member["id"] for member in found["members"] if member["group"] == "canary")
        (action,) = (one for one in self.asked("devices", "show", tried)["actions"] if one["rollout"] == found["id"])
        details = self.details(action["id"])
        reason = details.get("reason", "")
        self.verdict.reasons[bad.name] = reason
        self.say(f"{bad.name}: {tried} says {reason!r}, {action['detail']}")
        self.need(reason in bad.reasons, f"{bad.name}: the device says {details}")
        self.need(reason in action["detail"] or details.get("text", "") in action["detail"], f"devices show: {action}")
        for name, agent in self.agents.items():
            serves, frames, deaths = before[name]
            died = agent.deaths - deaths
            allowed = {1, 2} if bad.kills_agent and name == tried else {0}
            self.need(died in allowed, f"{bad.name}: {name} died {died} times: {agent.folder / 'agent.log'}")
            agent.goes_on(serves, 0 if died else frames)

    def let_out_unsigned(self) -> None:
        """Somebody has taken the server, and signs a repository of his own for it: all that a server can do."""
        thief = self.make_repository("thief")
        bundle = derive(SHIPPED, self.folder / "bundles" / "unsigned", version=UNSIGNED.version)
        target = self.release("thief", bundle)
        self.stop_server()
        for remembered in ("trust", "root.json"):
            path = self.folder / "server" / remembered
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.serve(thief, "--root", thief / "metadata" / "1.root.json")
        self.let_out_bad(UNSIGNED, target)

    # --- what is known ------------------------------------------------------------------------------------------------

    def details(self, action_id: int) -> dict[str, str]:
        """Of the report that closed the action: `reason`, `text` and figures, by name."""
        from ota.remote import Remote

        token = (self.folder / "server" / "admin-token").read_text(encoding="utf-8").strip()
        found = Remote(f"http://127.0.0.1:{self.port}", token, ssl.create_default_context()).get(
            f"/actions/{action_id}"
        )
        closing = next(report for report in found["reports"] if report["finished"] != "none")
        pairs = (line.partition(": ") for line in closing["details"])
        return {name: value for name, _, value in pairs}

    def figures(self, device: str) -> dict[str, str]:
        return self.details(self.asked("devices", "show", device)["actions"][0]["id"])

    def need(self, holds: object, text: str) -> None:
        if not holds:
            raise StoryError(text)

    def check_messages(self) -> None:
        """What an independent subscriber heard."""
        assert self.ear is not None
        for name, agent in self.agents.items():
            self.verdict.deaths[name] = agent.deaths
            self.verdict.silences_s[name] = round(self.ear.longest_s.get(name, float("inf")), 2)
        silences = ", ".join(f"{name} {silence:g} s" for name, silence in self.verdict.silences_s.items())
        self.say(f"longest silence on MQTT: {silences}; messages {self.ear.messages}; deaths {self.verdict.deaths}")
        for name, agent in self.agents.items():
            silence, offline = self.verdict.silences_s[name], self.ear.offline.get(name, 0)
            self.need(silence <= SILENCE_BAR_S or agent.deaths, f"{name} was silent for {silence:g} s")
            self.need(offline <= agent.deaths, f"{name} was offline {offline} times and died {agent.deaths} times")

    def tell(self, broker_port: int) -> None:
        """All of it. Raises StoryError with what does not hold."""
        self.serve(self.make_repository("ours"))
        self.ear = Ear(broker_port)
        for number, name in enumerate(DEVICES, 1):
            self.add_device(number, name, broker_port)
        self.say("three agents are at work")
        time.sleep(5)
        self.let_out_the_good()
        for bad, change in zip(BAD, CHANGES, strict=True):
            bundle = derive(
                SHIPPED, self.folder / "bundles" / bad.version, change, golden=bad.honest, version=bad.version
            )
            self.let_out_bad(bad, self.release("ours", bundle))
        self.let_out_unsigned()
        self.check_messages()

    def end(self) -> None:
        """Whatever is still there."""
        if self.ear is not None:
            self.ear.close()
        for agent in self.agents.values():
            agent.end()
        self.stop_server()


def story(folder: Path, fps: int = 8) -> Verdict:
    """Told once, in `folder`. Raises StoryError."""
    (folder / "bundles").mkdir(parents=True, exist_ok=True)
    broker = Mosquitto(folder / "broker")
    broker.start()
    told = Story(folder, fps)
    try:
        told.tell(broker.port)
    finally:
        told.end()
        broker.stop()
    return told.verdict


@contextmanager
def folder_of(given: Path | None) -> Iterator[Path]:
    """`given`, which must be new, or one that is gone afterwards."""
    if given is not None:
        given.mkdir(parents=True)
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="fleet-story-") as name:
        yield Path(name)


def main() -> int:
    """0 when the story went as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a new one, which is kept (default: one that is not)")
    parser.add_argument("--fps", type=int, default=8, help="of each simulated camera (default 8)")
    parser.add_argument("--json", action="store_true", help="the figures on standard output")
    args = parser.parse_args()
    if MOSQUITTO is None:
        parser.error("mosquitto is missing: apt install mosquitto")
    try:
        with folder_of(args.folder) as folder:
            verdict = story(folder, args.fps)
    except StoryError as error:
        print(f"DOES NOT HOLD: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(asdict(verdict), indent=2))
    else:
        print("The good model serves everywhere; each bad one was stopped at the canary:")
        for name, reason in verdict.reasons.items():
            print(f"  {name:26} {reason:8} rollout {verdict.states[name]}, {verdict.seconds[name]:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
