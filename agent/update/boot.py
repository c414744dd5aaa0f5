"""At the start, before a model is loaded: which version serves each slot. Judges what the last life of the process left.

Blocks; nothing here fails for a damaged file, which is mended from what else is known, nor for a full disk, where what cannot be
written is left to a later start. Both are said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from agent.errors import StorageError
from agent.update.journal import Journal, title_of
from agent.update.machine import Phase, judge_start, report
from agent.update.models import CONFIGURATION, VersionStore
from agent.update.records import Action, Serving, Version
from agent.update.trials import Refusal

_log = structlog.get_logger(__name__)

JOURNAL = "updates.db"


@dataclass(slots=True)
class Booted:
    """models: bundle by slot, of those that an update changed; layer: the configuration that was sent, if any.

    remarks: what had to be mended, or could not be written, for health.
    """

    models: dict[str, Path] = field(default_factory=dict)
    layer: Path | None = None
    remarks: list[str] = field(default_factory=list)


def boot(journal: Journal, store: VersionStore, *, enabled: bool) -> Booted:
    """Decide, and leave journal and links in agreement as far as the disk lets it. enabled: an unfinished probation may go on.

    Raises StorageError, OSError where not even the journal can be read.
    """
    booted = Booted()
    if journal.damage:
        booted.remarks.append(f"the journal of updates was damaged ({journal.damage}) and begun anew")
        _log.error("update_journal_damaged", damage=journal.damage)
    if journal.damage or not journal.audit(1):
        _rebuild(journal, store)
    on_trial: dict[str, Version] = {}
    for action in journal.unsettled():
        # Of one that cannot be judged, what was before it serves; the client goes on with it.
        with _written(booted, f"{action.title} cannot be judged"):
            if action.phase in {Phase.PROBATION, Phase.ROLLED_BACK} and _stays(journal, store, action, enabled=enabled):
                on_trial[action.slot] = action.version
            elif action.phase is Phase.SHADOW and enabled:
                _judge_shadow(journal, action)
    slots = journal.slots()
    for slot in sorted({*slots, *on_trial, *store.linked()}):
        version = on_trial.get(slot) or _sound(journal, store, slots.get(slot, Serving(slot)), booted)
        with _written(booted, f"{slot}: the link stays as it is"):
            _link(store, slot, version)
        if version is not None and slot == CONFIGURATION:
            booted.layer = store.path(version)
        elif version is not None:
            booted.models[slot] = store.path(version)
    with _written(booted, "the highest numbers stay as they are"):
        _remember_numbers(store, slots)
    store.tidy(action.sha256 for action in journal.unsettled() if action.sha256)
    return booted


def from_links(store: VersionStore, why: str) -> Booted:
    """What the links say serves, where the journal cannot be used. why: the remark. Changes nothing. Raises OSError."""
    return Booted(store.linked_models(), linked_layer(store), [why])


def linked_layer(store: VersionStore) -> Path | None:
    """The configuration that serves according to the links. Raises OSError."""
    version = store.linked().get(CONFIGURATION)
    return store.path(version) if version is not None else None


@contextmanager
def _written(booted: Booted, otherwise: str) -> Iterator[None]:
    """A disk that takes no more does not keep what is known from serving: a failure is a remark, that it is `otherwise`."""
    try:
        yield
    except (StorageError, OSError) as error:
        booted.remarks.append(f"{otherwise}: {error}")
        _log.error("update_not_written", otherwise=otherwise, error=str(error))


def _link(store: VersionStore, slot: str, version: Version | None) -> None:
    """Only where the link says something else: also that takes room on the disk."""
    linked = store.linked().get(slot)
    if version is None or linked is None or linked.sha256 != version.sha256:  # its number may have risen since it came
        store.switch(slot, version)


def _remember_numbers(store: VersionStore, slots: Mapping[str, Serving]) -> None:
    """Only where they have risen, or nothing stands there: that there are no numbers yet says something as well."""
    known = store.numbers()
    numbers = known | {slot: max(one.highest, known.get(slot, 0)) for slot, one in slots.items()}
    if numbers != known or not store.has_numbers():
        store.write_numbers(numbers)


def _stays(journal: Journal, store: VersionStore, action: Action, *, enabled: bool) -> bool:
    """Whether the candidate serves on; if not, its end is written."""
    starts, refusal = judge_start(action.phase, action.starts, clean=action.clean)
    if action.phase is Phase.PROBATION and refusal is None:
        if problem := store.problem(action.version):
            refusal = Refusal("archive", f"damaged on this disk: {problem}")
        elif not enabled:
            refusal = Refusal("command", "updates were switched off during the probation")
        else:
            journal.started(action, starts)
            return True
    if action.phase is Phase.PROBATION:
        action = journal.enter(action, Phase.ROLLED_BACK, None, refusal=refusal)
    serving = journal.serving(action.slot)
    _link(store, action.slot, serving.current)
    told = report(action.phase, text=action.text, reason=action.reason, figures=action.flat_figures)
    journal.settle(action, told)
    _log.warning("update_rolled_back", action=action.action_id, release=action.title, reason=action.reason)
    return False


def _judge_shadow(journal: Journal, action: Action) -> None:
    """A candidate that takes the process with it when it runs on live pictures is not tried for ever."""
    measured = Phase.SHADOW.value in action.figures or action.slot == CONFIGURATION  # of which nothing runs yet
    starts, refusal = judge_start(action.phase, action.starts, clean=action.clean, measured=measured)
    if refusal is None:
        journal.started(action, starts)
        return
    told = report(Phase.REFUSED, text=refusal.text, reason=refusal.reason, figures=refusal.figures)
    journal.enter(action, Phase.REFUSED, told, refusal=refusal, settled=True)
    _log.warning("update_refused", action=action.action_id, release=action.title, reason=refusal.reason)


def _sound(journal: Journal, store: VersionStore, serving: Serving, booted: Booted) -> Version | None:
    """The version that serves, or the one before where it is damaged, or none."""
    found = serving.current
    if found is None or not (problem := store.problem(found)):
        return found
    before = serving.before if serving.before is not None and not store.problem(serving.before) else None
    text = f"{serving.slot}: {title_of(found)} cannot be used ({problem}); {title_of(before)} serves"
    booted.remarks.append(text)
    _log.error("update_version_damaged", slot=serving.slot, problem=problem, serves=title_of(before))
    with _written(booted, f"{serving.slot}: the journal stays as it is"):
        journal.adopt(replace(serving, current=before, before=None, has_before=before is not None), text)
    return before


def _rebuild(journal: Journal, store: VersionStore) -> None:
    """From the links and what lies in the store. Of a number that was committed and is gone `numbers.json` knows, and where it does, what
    is above it was only on trial: nobody would watch it any more, nor count the deaths of the process.
    """
    numbers, linked, sure = store.numbers(), store.linked(), store.has_numbers()
    everything = [one for one in store.versions() if not sure or one.release.number <= numbers.get(one.release.slot, 0)]
    for slot in sorted({*numbers, *linked}):
        known = [one for one in everything if one.release.slot == slot]
        current = linked.get(slot)
        if current is not None and current not in known:
            current = known[0] if known else None
        before = None  # one that is damaged lies here until it is tidied away, and is no way back
        if current is not None:
            before = next((one for one in known if one != current and not store.problem(one)), None)
        highest = max([numbers.get(slot, 0), *([current.release.number] if current else [])])
        serving = Serving(slot, current, before, has_before=current is not None, highest=highest)
        journal.adopt(serving, "from the store: the journal says nothing")


def serving_attributes(slots: Mapping[str, Serving]) -> dict[str, str]:
    """For the server: model and number by slot."""
    found: dict[str, str] = {}
    for slot, one in slots.items():
        if one.current is not None:
            name = slot.replace("/", "-", 1)
            found |= {f"model.{name}": one.current.release.title, f"number.{name}": str(one.current.release.number)}
    return found
