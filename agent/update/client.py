"""The update client: talks with the server, carries out what it asks for, and answers people at this device.

Three loops beside each other. None of them needs the others: a probation ends in time with the server away, and a server that is
away stops nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from agent.errors import RecognizerError, StorageError
from agent.update.contact import Connect, Contact
from agent.update.journal import title_of
from agent.update.orders import Orders
from agent.update.parts import Parts, Progress
from agent.update.records import Action, Serving
from agent.update.requests import Answer, Request, RequestFolder
from agent.update.state import ServerView, server_document, state_document
from agent.update.trials import Refusal
from agent.update.worker import Worker

_log = structlog.get_logger(__name__)

_ENDING_S, _ENDING_LOOK_S = 10.0, 0.05
"""How long somebody who asks waits for an update that is ending just now."""


class UpdateClient:
    """One run of the client: make a new one for every `run`.

    connect: None = no server is to be asked. on_server: is told how the server takes us, after every turn; on_end: of every update
    that has come to an end.
    """

    def __init__(
        self,
        parts: Parts,
        requests: RequestFolder,
        connect: Connect | None,
        *,
        on_server: Callable[[ServerView], None] = lambda _: None,
        on_end: Callable[[Action], None] = lambda _: None,
    ) -> None:
        self._parts = parts
        self._requests = requests
        self._progress = Progress()
        self._worker = Worker(parts, self._progress, self._look)
        self._orders = Orders(parts, self._worker, self._progress)
        self._contact = Contact(parts, self._orders, connect, on_server) if connect is not None else None
        self._on_end = on_end
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()
        self._last: Action | None = None
        self._seen_to: dict[tuple[str, str], list[str]] = {}
        self.slots: dict[str, Serving] = {}

    async def run(self) -> None:
        """For ever. Raises StorageError."""
        await self._look()
        await self._worker.tidy()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._work(), name="update.work")
            group.create_task(self._serve_requests(), name="update.requests")
            if self._contact is not None:
                group.create_task(self._contact.run(), name="update.contact")

    def notice(self) -> None:
        """Something changed (`Parts.changed`): there may be work to do and something to tell."""
        self._wake.set()
        if self._contact is not None:
            self._contact.kick()

    def check(self) -> bool:
        """Ask the server now; False: there is none to ask."""
        if self._contact is None:
            return False
        self._contact.check()
        return True

    @property
    def state(self) -> dict[str, Any]:
        """`ota/state` of this moment."""
        action = self._worker.action
        progress = self._progress if action is not None else None
        return state_document(action or self._last, progress, self.slots, self._view, datetime.now(UTC))

    @property
    def _view(self) -> ServerView:
        return self._contact.view if self._contact is not None else ServerView("off")

    # --- work ---------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        disk, journal = self._parts.disk, self._parts.journal
        while True:
            self._wake.clear()
            unsettled = await disk.do(journal.unsettled)
            self._looked.set()
            if not unsettled:
                await self._wake.wait()
                continue
            self._on_end(await self._worker.carry(unsettled[0]))
            self._parts.changed()

    async def _look(self) -> None:
        disk, journal = self._parts.disk, self._parts.journal
        self.slots = await disk.do(journal.slots)
        latest = await disk.do(journal.recent, 1)
        self._last = latest[0] if latest else None

    # --- people -------------------------------------------------------------------------------------------------------

    async def _serve_requests(self) -> None:
        await self._looked.wait()  # what is under way from the last life is known now: a wish to go back is about that
        async with asyncio.TaskGroup() as group:
            while True:
                for name, request in await asyncio.to_thread(self._requests.waiting):
                    await asyncio.to_thread(self._requests.take, name)
                    same = self._seen_to.setdefault((request.what, request.slot), [])
                    same.append(name)
                    if len(same) == 1:  # else it gets the answer of the one before: to go back twice is to stay
                        group.create_task(self._see_to(request), name="update.request")
                await asyncio.sleep(self._parts.pace.requests_s)

    async def _see_to(self, request: Request) -> None:
        what = request.what, request.slot
        try:
            answer = await self._answer(request)
        except asyncio.CancelledError:
            answer = Answer(False, "the agent stops in the middle of it (hint: `ota status` shows what will serve)")
            with contextlib.suppress(OSError):
                for name in self._seen_to.pop(what):
                    self._requests.answer(name, answer)
            raise
        for name in self._seen_to.pop(what):
            await asyncio.to_thread(self._requests.answer, name, answer)

    async def _answer(self, request: Request) -> Answer:
        if request.what == "server":
            return Answer(True, json.dumps(server_document(self._view)))
        if request.what == "check":
            return await self._checked()
        try:
            return Answer(True, await self.roll_back(request.slot, request.by or "the command line"))
        except RecognizerError as error:
            return Answer(False, str(error))

    async def _checked(self) -> Answer:
        if self._contact is None:
            return Answer(False, "no server is configured")
        try:
            view = await self._contact.checked()
        except TimeoutError:
            return Answer(False, "the server is asked, and has not answered yet (hint: `ota status`)")
        if view.state == "ok":
            return Answer(True, "the server has answered")
        return Answer(False, f"{view.state}: {view.detail}")

    async def _until_ended(self, action: Action) -> None:
        """It has its end and is being tidied up. Raises StorageError after a while."""
        try:
            async with asyncio.timeout(_ENDING_S):
                while (now := self._worker.action) is not None and now.action_id == action.action_id:  # noqa: ASYNC110 - rare
                    await asyncio.sleep(_ENDING_LOOK_S)
        except TimeoutError:
            raise StorageError(f"{action.slot}: {action.title} is ending in this moment; ask again") from None

    async def roll_back(self, slot: str, by: str) -> str:
        """What is under way for `slot` ends, else the version before the committed one comes back; what was done, for people.

        Raises StorageError (nothing to go back to), ModelError.
        """
        action = self._worker.action
        if action is not None and action.slot == slot:
            if self._worker.refuse(Refusal("command", f"rolled back by {by}")):
                return f"{action.title}: taken back"
            await self._until_ended(action)
        version = await self._worker.exchange(slot, "by command", by)
        await self._look()
        self._parts.changed()
        _log.warning("update_back", slot=slot, version=title_of(version), by=by)
        return f"{slot}: {title_of(version)} serves"
