"""Two hosts in network namespaces with a cable between them that can be pulled, cut silently, or made lossy. Needs root."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from types import TracebackType
from typing import Any, Self

_counter = itertools.count()
_TOOLS_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def why_not(*, packet_filter: bool = False) -> str:
    """Why there can be no namespaces here; empty when there can."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    for tool, package in (("ip", "iproute2"), *([("nft", "nftables")] if packet_filter else [])):
        if shutil.which(tool, path=_TOOLS_PATH) is None:
            return f"needs the program {tool} ({package})"
    try:
        with Cable() as cable:
            if packet_filter:
                cable.lose(1)
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    return ""


class Cable:
    """The namespaces `left` (10.77.0.1) and `right` (10.77.0.2); a context manager. Faults are undone by `mend`."""

    left_address, right_address = "10.77.0.1", "10.77.0.2"

    def __init__(self) -> None:
        tag = f"{os.getpid()}-{next(_counter)}"
        self.left, self.right = f"cable-{tag}-l", f"cable-{tag}-r"

    def __enter__(self) -> Self:
        try:
            for name in (self.left, self.right):
                _run("ip", "netns", "add", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            _run(
                "ip",
                "-n",
                self.left,
                "link",
                "add",
                "cable",
                "type",
                "veth",
                "peer",
                "name",
                "cable",
                "netns",
                self.right,
            )
            for name, address in ((self.left, self.left_address), (self.right, self.right_address)):
                _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "cable")
                _run("ip", "-n", name, "link", "set", "cable", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def popen(self, name: str, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start `command` in the namespace `name`."""
        return subprocess.Popen([_tool("ip"), "netns", "exec", name, *command], **options)

    def pull(self) -> None:
        """The left end has no link: its programs hear of it when they send."""
        _run("ip", "-n", self.left, "link", "set", "cable", "down")

    def cut(self) -> None:
        """Packets vanish in both directions, and nobody hears of it: connections are half open."""
        self._filter('iifname "cable" drop', 'oifname "cable" drop')

    def lose(self, percent: int) -> None:
        """So many of the packets that arrive at the right end vanish."""
        self._filter(f'iifname "cable" numgen random mod 100 < {percent} counter drop')

    def lost(self) -> int:
        """Packets that vanished since `lose`."""
        rules = _run("ip", "netns", "exec", self.right, _tool("nft"), "list", "ruleset")
        return sum(map(int, re.findall(r"counter packets (\d+)", rules)))

    def forget_connections(self) -> None:
        """What stands now gets no packet through any more, new connections do: a router has lost its table."""
        listing = ("ip", "netns", "exec", self.left, _tool("ss"), "-tnH", "state", "established")
        ports = re.findall(rf"{re.escape(self.left_address)}:(\d+)", _run(*listing))
        assert ports, "no connection stands"
        ours = ", ".join(ports)
        self._filter(f"tcp sport {{ {ours} }} drop", f"tcp dport {{ {ours} }} drop")

    def mend(self) -> None:
        """As new."""
        subprocess.run(
            [_tool("ip"), "netns", "exec", self.right, _tool("nft"), "flush", "ruleset"],
            check=False,
            capture_output=True,
        )
        _run("ip", "-n", self.left, "link", "set", "cable", "up")

    def _filter(self, incoming: str, outgoing: str = "accept") -> None:
        chains = "\n".join(
            f"chain {way} {{ type filter hook {way} priority 0; {rule}; }}"
            for way, rule in (("input", incoming), ("output", outgoing))
        )
        command = ("ip", "netns", "exec", self.right, _tool("nft"), "-f", "-")
        _run(*command, text=f"flush ruleset\ntable inet cable {{\n{chains}\n}}\n")

    def _remove(self) -> None:
        for name in (self.left, self.right):
            subprocess.run([_tool("ip"), "netns", "delete", name], check=False, capture_output=True)


def _tool(name: str) -> str:
    return shutil.which(name, path=_TOOLS_PATH) or name


def _run(tool: str, *arguments: str, text: str = "") -> str:
    return subprocess.run([_tool(tool), *arguments], check=True, capture_output=True, text=True, input=text).stdout
