"""What a failed download means to the caller, and aiohttp's errors in these terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import aiohttp

from agent.errors import ModelError, TransientError
from agent.transfer.tls import Tls, passes, trouble

_TRY_AGAIN = frozenset({408, 425, 429})


class DownloadError(TransientError):
    """The file did not come, another try or another place may help. wait_s: what the server asked for."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class NoNetworkError(DownloadError):
    """The host cannot be reached at all."""


class RefusedDownloadError(ModelError):
    """This place will not give the file, or what it gives cannot be the file; trying again is of no use."""


class TlsError(RefusedDownloadError):
    """One side does not trust the other: a person has to mend it, here or there; nothing is known about the file."""


def may_pass(status: int) -> bool:
    """Whether an HTTP `status` says that the same request may go well later."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRY_AGAIN


@contextmanager
def network_errors(place: str, tls: Tls | None = None) -> Iterator[None]:
    """Translates what aiohttp raises while it speaks with the host `place`. tls: what it speaks with."""
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:  # ValueError: an address that is none
        raise _translate(error, place, tls or Tls()) from error


def _translate(error: Exception, place: str, tls: Tls) -> DownloadError | RefusedDownloadError:
    if isinstance(error, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)):
        return _proxy_error(error)
    if text := trouble(error, place, tls):
        return DownloadError(text) if passes(error) else TlsError(text)
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return _connection_error(error, place)
    if isinstance(error, ValueError):  # ours have been looked at: it is the proxy's
        hint = "that of a proxy looks like http://host:3128; see HTTPS_PROXY and HTTP_PROXY"
        return RefusedDownloadError(f"not a web address: {_text(error)} (hint: {hint})")
    what = "stalled" if isinstance(error, TimeoutError) else f"broke off: {_text(error)}"
    return DownloadError(f"{place} {what}")


def _connection_error(
    error: aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError, place: str
) -> NoNetworkError:
    if isinstance(error, aiohttp.ClientConnectorError):
        return NoNetworkError(f"cannot reach {place}: {error.os_error.strerror or _text(error.os_error)}")
    return NoNetworkError(f"cannot reach {place}: no answer")


def _proxy_error(
    error: aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError,
) -> DownloadError | RefusedDownloadError:
    hint = "see HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        kind = DownloadError if may_pass(error.status) else RefusedDownloadError
        return kind(f"the proxy answers {error.status} {error.message} (hint: {hint})")
    return NoNetworkError(f"cannot reach the proxy {error.host}:{error.port}: {error.os_error.strerror} (hint: {hint})")


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
