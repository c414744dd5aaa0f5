"""What a group of errors comes down to: task groups wrap even a single one."""

from __future__ import annotations

from collections.abc import Iterator

from agent.errors import RecognizerError


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside `error`, however deep the groups lie; itself when it is no group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to report: one that has a message for the user if there is any, else the first."""
    found = list(leaves(group))
    return next((leaf for leaf in found if isinstance(leaf, RecognizerError)), found[0])
