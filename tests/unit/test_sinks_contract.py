"""What every sink keeps to: the fake of the tests, webhook, file. The Kafka plug-in inherits the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes.sinks import MemorySink, OpenBench, SinkContract, record
from fakes.webhooks import Receiver, hang, receiving

from agent.sinks.file import FileSink
from agent.sinks.webhook import WebhookSink
from agent.types import OutboxRecord


@dataclass
class MemoryBench:
    sink: MemorySink

    async def received(self) -> list[str]:
        return [one.event_id for one in self.sink.taken]

    async def break_down(self) -> None:
        self.sink.down = True

    async def mend(self) -> None:
        self.sink.down = False
        self.sink.gate.set()

    async def stall(self) -> bool:
        self.sink.gate.clear()
        return True

    def unacceptable(self, sequence: int) -> OutboxRecord | None:
        return record(sequence, text="x" * self.sink.largest)


class TestMemorySink(SinkContract):
    @pytest.fixture
    def open_bench(self) -> OpenBench:
        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[MemoryBench]:
            yield MemoryBench(MemorySink())

        return opened


@dataclass
class WebhookBench:
    sink: WebhookSink
    receiver: Receiver

    async def received(self) -> list[str]:
        return self.receiver.taken

    async def break_down(self) -> None:
        await self.receiver.stop()

    async def mend(self) -> None:
        self.receiver.always = None
        if self.receiver._runner is None:
            await self.receiver.start()

    async def stall(self) -> bool:
        self.receiver.always = hang
        return True

    def unacceptable(self, sequence: int) -> OutboxRecord | None:
        self.receiver.refused.add(record(sequence).event_id)
        return record(sequence)


class TestWebhook(SinkContract):
    @pytest.fixture
    def open_bench(self) -> OpenBench:
        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[WebhookBench]:
            async with receiving() as receiver:
                sink = WebhookSink(receiver.url, [bytes(range(32))], timeout_s=5.0)
                yield WebhookBench(sink, receiver)
                await sink.close()

        return opened


@dataclass
class FileBench:
    sink: FileSink
    folder: Path

    async def received(self) -> list[str]:
        files = sorted(self.folder.glob("events.jsonl.*"), key=lambda path: -int(path.suffix[1:]))
        current = self.folder / "events.jsonl"
        texts = [path.read_bytes() for path in [*files, current] if path.exists()]
        return [json.loads(line)["id"] for text in texts for line in text.decode().split("\n")[:-1]]

    async def break_down(self) -> None:
        if self.folder.exists():
            self.folder.rename(self.folder.with_name("away"))
        self.folder.write_text("a file where the folder should be")

    async def mend(self) -> None:
        self.folder.unlink()
        away = self.folder.with_name("away")
        if away.exists():
            away.rename(self.folder)

    async def stall(self) -> bool:
        return False

    def unacceptable(self, sequence: int) -> OutboxRecord | None:
        return None


class TestFile(SinkContract):
    @pytest.fixture
    def open_bench(self, tmp_path: Path) -> OpenBench:
        @contextlib.asynccontextmanager
        async def opened() -> AsyncIterator[FileBench]:
            path = tmp_path / "out" / "events.jsonl"
            sink = FileSink(path, max_bytes=500_000, keep_files=20)
            yield FileBench(sink, path.parent)
            await sink.close()

        return opened
