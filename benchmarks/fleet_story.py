"""A fleet from its first key to its fifth bad model and its second thief, on one machine, with the commands that an operator types.

    python benchmarks/fleet_story.py [--folder DIR] [--fps 8] [--json]

A fleet server, three agents on simulated cameras, Mosquitto: a good model is let out to one device and then to the others; after it
one that is slower, one that is worse, one that crashes in its trial, one that crashes on live pictures only, and one that passes every
trial and is slower only when it is in use. Then a server in the wrong hands offers what nobody with the keys has signed. At last
somebody takes the server with its online keys and puts a model of his own on the published list; the keys are changed, and a good model
gets in again. Takes four to eight minutes on two cores. Exit code 0 only if

- the good models came to serve on all three devices, the first one at the canary first, and no camera was without a frame for more than
  200 ms at the swap (two frames, where this machine gives fewer than ten a second to each),
- each bad one was refused or taken back by its canary alone, its rollout stopped, and the server names the reason,
- the one that got as far as its probation went again by itself, with no more than such a gap on either way,
- what was put on the list without the key of the targets was refused by all three,
- after each of them all three devices serve what they served before,
- all three kept sending over MQTT, and no agent ended but the one that the fifth model kills (its trial on live pictures).

`--folder DIR` keeps everything; each agent's log and the server's lie there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import intruder  # noqa: E402 - the path comes first
from fakes.brokers import MOSQUITTO, Mosquitto  # noqa: E402
from fakes.candidates import derive  # noqa: E402
from fakes.fleet_processes import Agent, Ear, StoryError, Watch, wait_for  # noqa: E402
from fleet_cast import (  # noqa: E402
    BAD,
    CHANGES,
    CROWDED,
    DEVICES,
    IN_GROUPS,
    LATE,
    LATE_PROBATION_S,
    PLANTED,
    PROBATION_S,
    SHIPPED,
    UNSIGNED,
    WHATEVER_HAPPENS,
    Bad,
    document_of,
)
from fleet_desk import Desk, Outcome, target_of  # noqa: E402

GAP_BAR_MS = 200.0
SILENCE_BAR_S = 10.0
"""MQTT. Health is sent each second; three agents and all that is loaded share this machine."""


@dataclass
class Verdict:
    """What was seen. gaps_ms: longest without a frame at the swap, by device, as the device told the server; way_back: of the release
    that went by itself, the gaps at its swap and on the way back, ms; refused_by: devices that refused what was put on the list;
    silences_s: MQTT."""

    gaps_ms: dict[str, float] = field(default_factory=dict)
    usual_gaps_ms: dict[str, float] = field(default_factory=dict)
    way_back: dict[str, float] = field(default_factory=dict)
    refused_by: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    deaths: dict[str, int] = field(default_factory=dict)
    silences_s: dict[str, float] = field(default_factory=dict)


# --- the story --------------------------------------------------------------------------------------------------------


class Story:
    """Its chapters, in order; each raises StoryError with what does not hold."""

    def __init__(self, folder: Path, fps: int, broker_port: int) -> None:
        self.folder = folder
        self.fps = fps
        self.verdict = Verdict()
        self.desk = Desk(folder)
        self.agents: dict[str, Agent] = {}
        self.ear = Ear(broker_port)
        self._broker_port = broker_port

    def tell(self) -> None:
        """All of it."""
        desk = self.desk
        desk.title("keys, a server, three devices")
        desk.serve(desk.make_repository("ours"))
        for number, name in enumerate(DEVICES, 1):
            self.add_device(number, name)
        desk.say("three agents are at work")
        time.sleep(5)
        desk.title("a good model, first to one device, then to the others")
        self.let_out_good("good", "9.0.0")
        for bad, change in zip(BAD, CHANGES, strict=True):
            desk.title(f"a model that is {bad.name}")
            bundle = self.bundle(bad.version, change, golden=bad.honest)
            self.let_out_late(bundle) if bad is LATE else self.let_out_bad(bad, desk.release("ours", bundle))
        desk.title("another server in the place of ours, with keys of its own")
        self.let_out_unsigned()
        desk.title("somebody has the server with its online keys, and puts a model on the published list")
        self.put_on_the_list()
        desk.title("new online keys; a good model gets in again")
        self.come_back()
        desk.title("what an independent subscriber heard")
        self.check_messages()

    def end(self) -> None:
        """Whatever is still there."""
        self.ear.close()
        for agent in self.agents.values():
            agent.end()
        self.desk.stop_server()

    def bundle(self, version: str, change: Any = None, *, golden: bool = True) -> Path:
        made: Path = derive(SHIPPED, self.folder / "bundles" / version, change, golden=golden, version=version)
        return made

    def add_device(self, number: int, name: str) -> None:
        """Entered at the server, given its token and the root by hand, started."""
        folder = self.folder / name
        folder.mkdir()
        self.desk.fleet("devices", "add", name, "--token-out", folder / "token")
        shutil.copy(self.folder / "ours" / "repository" / "metadata" / "1.root.json", folder / "root.json")
        document = document_of(folder, number, self.fps, fleet_port=self.desk.port, broker_port=self._broker_port)
        self.agents[name] = Agent(folder, document)
        self.agents[name].start()

    # --- good ones ----------------------------------------------------------------------------------------------------

    def let_out_good(self, name: str, version: str) -> None:
        """It comes to serve everywhere."""
        desk, began_s = self.desk, time.monotonic()
        target = desk.release("ours", self.bundle(version), *CROWDED)
        found = desk.roll_out(name, target, IN_GROUPS)
        self.verdict.seconds[name] = round(time.monotonic() - began_s, 1)
        self.verdict.states[name] = found["state"]
        desk.need(found["state"] == "finished", f"{name}: {[member['detail'] for member in found['members']]}")
        for device, agent in self.agents.items():
            desk.need(agent.serves == f"{SHIPPED} {version}", f"{device} serves {agent.serves}")
            figures = desk.outcome(found["id"], device).figures
            gap_ms, usual_ms = float(figures["gap_ms"]), float(figures["usual_gap_ms"])
            desk.say(
                f"  {device} serves {agent.serves}; at the swap {gap_ms:g} ms without a frame (else {usual_ms:g} ms)"
            )
            desk.need(gap_ms <= max(GAP_BAR_MS, 2 * usual_ms), f"{device}: the gap at the swap of {name}")
            self.verdict.gaps_ms[device] = max(gap_ms, self.verdict.gaps_ms.get(device, 0.0))
            self.verdict.usual_gaps_ms[device] = max(usual_ms, self.verdict.usual_gaps_ms.get(device, 0.0))

    # --- bad ones -----------------------------------------------------------------------------------------------------

    def let_out_bad(self, bad: Bad, target: str) -> Outcome:
        """It stops at the canary, and everybody goes on with what he had."""
        desk, began_s = self.desk, time.monotonic()
        before = {name: (agent.serves, agent.frames, agent.deaths) for name, agent in self.agents.items()}
        found = desk.roll_out(bad.name, target, IN_GROUPS)
        self.verdict.seconds[bad.name] = round(time.monotonic() - began_s, 1)
        self.verdict.states[bad.name] = found["state"]
        canary, *others = found["groups"]
        untouched = all(group["state"] == "scheduled" and not group["counts"]["failed"] for group in others)
        desk.need(found["state"] in {"rolled_back", "aborted", "paused"} and found["reason"], f"{bad.name}: {found}")
        desk.need(canary["counts"]["failed"] == 1 and untouched, f"{bad.name}: {found['groups']}")
        (tried,) = (member["id"] for member in found["members"] if member["group"] == "canary")
        outcome = self.refusal(bad, found["id"], tried)
        self.need_as_before(bad, before, {tried})
        return outcome

    def refusal(self, bad: Bad, rollout: int, device: str) -> Outcome:
        """What the server knows from `device`."""
        outcome = self.desk.outcome(rollout, device)
        self.verdict.reasons[bad.name] = outcome.reason
        self.desk.say(
            f"  the server knows why: {device} {' > '.join(outcome.phases)}, {outcome.reason}: {outcome.text}"
        )
        self.desk.need(outcome.reason in bad.reasons, f"{bad.name}: the device says {outcome}")
        return outcome

    def need_as_before(self, bad: Bad, before: dict[str, tuple[str, int, int]], tried: set[str]) -> None:
        """Every device serves what it served, has more frames, and died only where it had to."""
        for name, agent in self.agents.items():
            serves, frames, deaths = before[name]
            died = agent.deaths - deaths
            allowed = {1, 2} if bad.kills_agent and name in tried else {0}
            self.desk.need(died in allowed, f"{bad.name}: {name} died {died} times: {agent.folder / 'agent.log'}")
            agent.goes_on(serves, 0 if died else frames)
        served = ", ".join(f"{name} {before[name][0]}" for name in self.agents)
        died_of_it = [name for name in tried if bad.kills_agent]
        self.desk.say(f"  all go on: {served}" + "".join(f"; {name} was started again" for name in died_of_it))

    def let_out_late(self, bundle: Path) -> None:
        """It passes its trials, serves, is found out, and the model before it serves again: all by the device itself."""
        desk = self.desk
        self.give_probation(LATE_PROBATION_S)
        target = desk.release("ours", bundle)
        before = {name: agent.serves for name, agent in self.agents.items()}
        self.ear.lately_s.clear()
        with Watch(self.agents) as watch:
            outcome = self.let_out_bad(LATE, target)
        device, figures = outcome.device, outcome.figures
        served = watch.served[device]
        desk.need(served == [before[device], f"{SHIPPED} {LATE.version}", before[device]], f"{device} served {served}")
        desk.need(outcome.phases[-2:] == ("probation", "rolled_back"), f"{device} went through {outcome.phases}")
        names = ("gap_ms", "usual_gap_ms", "back_gap_ms", "latency_before_ms", "latency_ms", "fps_before", "fps")
        told = {name: float(figures[name]) for name in names}
        silence_s = self.ear.lately_s.get(device, float("inf"))
        self.verdict.way_back = {name: told[name] for name in names[:3]}
        desk.say(
            f"  {device} served {', then '.join(served)}; {figures['probation_s']} s after the swap it was found out"
        )
        desk.say(
            f"  without a frame: {told['gap_ms']:g} ms at the swap, {told['back_gap_ms']:g} ms on the way back (else "
            f"{told['usual_gap_ms']:g} ms); a picture took {told['latency_before_ms']:g} ms, then {told['latency_ms']:g} ms"
        )
        desk.say(f"  longest silence of {device} on MQTT meanwhile: {silence_s:.2f} s")
        slowest_ms = 1e3 / min(told["fps"], told["fps_before"])  # between two frames with the slower of the two
        bar_ms = max(GAP_BAR_MS, 2 * told["usual_gap_ms"], 2 * slowest_ms)
        desk.need(max(told["gap_ms"], told["back_gap_ms"]) <= bar_ms, f"gaps of {LATE.name}: {told}")
        desk.need(silence_s <= SILENCE_BAR_S, f"{device} was silent for {silence_s:.1f} s")
        desk.need(max(watch.longest_s.values()) <= SILENCE_BAR_S, f"seconds without a frame: {watch.longest_s}")
        self.give_probation(PROBATION_S)

    def give_probation(self, seconds: int) -> None:
        """To every device, by its configuration. In a short one a model that is slow on a busy machine is called too seldom to tell."""
        for agent in self.agents.values():
            agent.reload("update", {"probation_s": seconds})
        self.desk.say(f"update.probation_s: {seconds} on each device, and reloaded")

    # --- thieves ------------------------------------------------------------------------------------------------------

    def let_out_unsigned(self) -> None:
        """Somebody has taken the server, and signs a repository of his own for it: all that a server can do."""
        desk = self.desk
        thief = desk.make_repository("thief")
        bundle = self.bundle(UNSIGNED.version)
        desk.release("thief", bundle)
        desk.stop_server()
        self._forget_root()
        desk.serve(thief, "--root", thief / "metadata" / "1.root.json")
        self.let_out_bad(UNSIGNED, target_of(bundle))
        desk.stop_server()
        self._forget_root()
        desk.say("the operator has his server back")
        desk.serve(self.folder / "ours" / "repository")

    def _forget_root(self) -> None:
        """What the fleet server holds for true about its repository."""
        for remembered in ("trust", "root.json"):
            path = self.desk.data / remembered
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def put_on_the_list(self) -> None:
        """Without the key of the targets, but with all that lies on the server."""
        desk, ours, began_s = self.desk, self.folder / "ours", time.monotonic()
        before = {name: (agent.serves, agent.frames, agent.deaths) for name, agent in self.agents.items()}
        shutil.copytree(ours / "repository", ours / "copy")
        desk.say("the release machine has a copy of the repository: ours/copy")
        bundle, distrusted = self.bundle(PLANTED.version), self._distrusted()
        packed = intruder.plant(ours / "repository", ours / "online", bundle, self.folder)
        desk.say(f"{packed.release.path} is on the list; snapshot and timestamp are signed with the online keys")
        wait_for(lambda: self._distrusted() > distrusted, "the server finds it out", 30)
        desk.say("  the server does not take it over: not to be trusted")
        desk.refused("rollout", "create", PLANTED.name, "--release", packed.release.path, "--start")
        desk.stop_server()
        intruder.enter(desk.data, packed)
        desk.say("so it is written into the server's database, past the server")
        desk.serve(ours / "repository")
        found = desk.roll_out(PLANTED.name, packed.release.path, WHATEVER_HAPPENS)
        self.verdict.seconds[PLANTED.name] = round(time.monotonic() - began_s, 1)
        self.verdict.states[PLANTED.name] = found["state"]
        for name in self.agents:
            outcome = self.refusal(PLANTED, found["id"], name)
            desk.need(outcome.figures.get("trust") == "signature", f"{PLANTED.name}: {outcome}")
            self.verdict.refused_by.append(name)
        desk.need(found["state"] == "paused", f"{PLANTED.name}: {found}")
        self.need_as_before(PLANTED, before, set())
        desk.fleet("rollout", "abort", found["id"])
        words = ("sign", bundle, "--slot", "pose", "--repository", ours / "repository", "--keys", ours / "offline")
        desk.say("the release machine does not sign along what was put on the list")
        desk.need("not as it was signed" in desk.refused(*words), "the release machine names the reason")

    def _distrusted(self) -> int:
        """How often the server has said that it does not believe its repository."""
        return self.desk.log.read_text("utf-8").count("not to be trusted")

    def come_back(self) -> None:
        """As docs/ota.md says it: the copy, new online keys, a publication."""
        desk, ours = self.desk, self.folder / "ours"
        desk.stop_server()
        intruder.restore(ours / "repository", ours / "copy")
        desk.say("the repository is the copy again; the online keys that were stolen are put away")
        (ours / "online").rename(ours / "stolen")
        places = ("--repository", ours / "repository", "--keys", ours / "offline", "--online-keys", ours / "online")
        for role in ("snapshot", "timestamp"):
            desk.fleet("keys", "rotate", role, *places)
        desk.fleet("publish", "--repository", ours / "repository", "--keys", ours / "online")
        desk.serve(ours / "repository")
        self.let_out_good("good again", "9.7.0")

    # --- in the end ---------------------------------------------------------------------------------------------------

    def check_messages(self) -> None:
        """On MQTT."""
        desk = self.desk
        for name, agent in self.agents.items():
            silence, offline = self.ear.longest_s.get(name, float("inf")), self.ear.offline.get(name, 0)
            self.verdict.deaths[name] = agent.deaths
            self.verdict.silences_s[name] = round(silence, 2)
            died = f", died {agent.deaths} times of the model that crashes on live pictures" if agent.deaths else ""
            desk.say(f"  {name}: {self.ear.messages[name]} messages, longest silence {silence:.2f} s{died}")
            desk.need(silence <= SILENCE_BAR_S or agent.deaths, f"{name} was silent for {silence:g} s")
            desk.need(offline <= agent.deaths, f"{name} was offline {offline} times and died {agent.deaths} times")


def story(folder: Path, fps: int = 8) -> Verdict:
    """Told once, in `folder`. Raises StoryError."""
    (folder / "bundles").mkdir(parents=True, exist_ok=True)
    broker = Mosquitto(folder / "broker")
    broker.start()
    try:
        told = Story(folder, fps, broker.port)
        try:
            told.tell()
        finally:
            told.end()
    finally:
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
        print(
            "The good models serve everywhere. The others, the reason at the server, and what became of their rollouts:"
        )
        for name, reason in verdict.reasons.items():
            print(f"  {name:26} {reason:8} {verdict.states[name].replace('_', ' ')}, {verdict.seconds[name]:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
