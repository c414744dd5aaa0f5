"""A file server that misbehaves on demand, and a small proxy: real HTTP over real sockets, on threads."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

ETAG = '"v1"'
Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """One request: the server's plan says what happens to it."""

    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        behaviour = self.server.plan.pop(0) if self.server.plan else good
        with contextlib.suppress(OSError):  # the client went away, as some tests want it to
            behaviour(self)

    def log_message(self, *_: Any) -> None:
        """Silence."""

    @property
    def content(self) -> bytes:
        return self.server.files[urlsplit(self.path).path]

    def begin(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def good(handler: Handler) -> None:
    """As a file server should, ranges and entity tags included."""
    if urlsplit(handler.path).path not in handler.server.files:
        handler.begin(404, 0)
        return
    content, etag = handler.content, handler.server.etag
    match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if match and handler.headers.get("If-Range", etag) == etag:
        start = int(match[1])
        if start >= len(content):
            handler.begin(416, 0, Content_Range=f"bytes */{len(content)}")
            return
        place = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.begin(206, len(content) - start, ETag=etag, Content_Range=place)
        handler.wfile.write(content[start:])
        return
    handler.begin(200, len(content), ETag=etag)
    handler.wfile.write(content)


def cut_after(count: int) -> Behaviour:
    """Announce all, send `count` bytes (of what was asked for), hang up."""

    def behave(handler: Handler) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        size = len(handler.content)
        headers = {"Content_Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
        handler.begin(206 if start else 200, size - start, ETag=handler.server.etag, **headers)
        handler.wfile.write(handler.content[start : start + count])
        handler.hang_up()

    return behave


def stall_after(count: int) -> Behaviour:
    """Announce all, send `count` bytes, then nothing until the server is told to let go."""

    def behave(handler: Handler) -> None:
        handler.begin(200, len(handler.content), ETag=handler.server.etag)
        handler.wfile.write(handler.content[:count])
        handler.wfile.flush()
        handler.server.let_go.wait(20)
        handler.hang_up()

    return behave


def trickle(handler: Handler) -> None:
    """A byte now and then: never silent, never done."""
    handler.begin(200, len(handler.content), ETag=handler.server.etag)
    for byte in handler.content:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        if handler.server.let_go.wait(0.02):
            break
    handler.hang_up()


def say_nothing(handler: Handler) -> None:
    """Take the request and leave it at that."""
    handler.server.let_go.wait(20)
    handler.hang_up()


def corrupted(handler: Handler) -> None:
    """The right size, one byte wrong."""
    content = bytearray(handler.content)
    content[len(content) // 2] ^= 1
    handler.begin(200, len(content))
    handler.wfile.write(content)


def deaf_to_ranges(handler: Handler) -> None:
    """All of it, whatever was asked for."""
    handler.begin(200, len(handler.content))
    handler.wfile.write(handler.content)


def wrong_range(handler: Handler) -> None:
    """A partial answer that starts elsewhere."""
    size = len(handler.content)
    handler.begin(206, size, Content_Range=f"bytes 0-{size - 1}/{size}")
    handler.wfile.write(handler.content)


def endless(handler: Handler) -> None:
    """Chunks without a word about the size, and more of them than the file has."""
    handler.begin(200, None, Transfer_Encoding="chunked")
    block = b"x" * 65536
    for _ in range(2000):
        handler.wfile.write(b"10000\r\n" + block + b"\r\n")


def status(code: int, **headers: str) -> Behaviour:
    """Only a status."""
    return lambda handler: handler.begin(code, 0, **headers)


def redirect(location: str, code: int = 302) -> Behaviour:
    """To somewhere else."""
    return lambda handler: handler.begin(code, 0, Location=location)


def page(handler: Handler) -> None:
    """A login page in place of the file, with status 200."""
    text = b"<html>Please log in</html>"
    handler.begin(200, len(text), Content_Type="text/html")
    handler.wfile.write(text)


def announce(size: int) -> Behaviour:
    """A size, and no bytes."""
    return lambda handler: handler.begin(200, size)


def encoded(handler: Handler) -> None:
    """Compressed, though nobody asked."""
    handler.begin(200, len(handler.content), Content_Encoding="gzip")
    handler.wfile.write(handler.content)


class FileServer(ThreadingHTTPServer):
    """files: content by path; plan: what happens to the next requests, afterwards all is well; requests: path and headers."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.plan: list[Behaviour] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.etag = ETAG
        self.let_go = threading.Event()
        self.scheme = "http"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str = "/model.onnx", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what the tests are about."""


@contextlib.contextmanager
def serving(files: dict[str, bytes], tls: ssl.SSLContext | None = None) -> Iterator[FileServer]:
    """A running server."""
    server = FileServer(files, tls)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="file-server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()


class ProxyRequest(BaseHTTPRequestHandler):
    """CONNECT tunnels, and plain requests with an absolute address."""

    server: ProxyServer

    def do_CONNECT(self) -> None:
        self.server.seen.append(f"CONNECT {self.path}")
        if self.server.refuse:
            self.send_error(self.server.refuse)
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as upstream:
            self.send_response(200)
            self.end_headers()
            _tunnel(self.connection, upstream)

    def do_GET(self) -> None:
        self.server.seen.append(f"GET {self.path}")
        if self.server.refuse:
            self.send_error(self.server.refuse)
            return
        with build_opener(ProxyHandler({})).open(self.path, timeout=5) as answer:
            body = answer.read()
            self.send_response(answer.status)
            for name in ("Content-Length", "ETag"):
                if answer.headers[name]:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silence."""


class ProxyServer(ThreadingHTTPServer):
    """seen: what went through; refuse: status to answer everything with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ProxyRequest)
        self.seen: list[str] = []
        self.refuse = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """As above."""


@contextlib.contextmanager
def proxying() -> Iterator[ProxyServer]:
    """A running proxy."""
    server = ProxyServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="proxy", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _tunnel(one: socket.socket, other: socket.socket) -> None:
    pairs = {one: other, other: one}
    while True:
        for readable in select.select(list(pairs), [], [], 5)[0]:
            data = readable.recv(65536)
            if not data:
                return
            pairs[readable].sendall(data)


@dataclass(slots=True)
class Watcher:
    """A `Progress` that remembers."""

    notes: list[str] = field(default_factory=list)
    largest: int = 0
    received: list[tuple[float, int]] = field(default_factory=list)

    def advance(self, received: int, total: int | None) -> None:
        self.largest = max(self.largest, received)
        self.received.append((time.monotonic(), received))

    def note(self, text: str) -> None:
        self.notes.append(text)


def catalogue_entry(model: Path, sources: list[dict[str, str]], **changes: Any) -> dict[str, Any]:
    """An entry of a catalogue for an RTMO graph of 64 x 96 px."""
    import hashlib

    content = model.read_bytes()
    return {
        "name": "rtmo-x", "version": "2020.1", "task": "pose", "description": "A graph of RTMO's contract.",
        "licence": "Apache-2.0", "training_data": "none: computed", "figures": {"coco_ap": 0.5},
        "file": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "sources": sources,
        "inputs": [{"name": "input", "shape": ["batch", 3, 64, 96], "preprocessing": {"kind": "letterbox"}}],
        "outputs": [{"name": "dets", "shape": ["batch", "people", 5], "meaning": "detections"},
                    {"name": "keypoints", "shape": ["batch", "people", 17, 3], "meaning": "keypoints"}],
    } | changes  # fmt: skip
