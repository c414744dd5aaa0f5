"""What a failed download means to the caller, and aiohttp's errors in these terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp

from agent.errors import ModelError, TransientError


class DownloadError(TransientError):
    """The file did not come, another try or another place may help. wait_s: what the server asked for."""

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class NoNetworkError(DownloadError):
    """The host cannot be reached at all."""


class RefusedDownloadError(ModelError):
    """This place will not give the file, or what it gives cannot be the file; trying again is of no use."""


@contextmanager
def network_errors(place: str) -> Iterator[None]:
    """Translates what aiohttp raises while it speaks with the host `place`."""
    try:
        yield
    except (aiohttp.ClientError, TimeoutError) as error:
        raise _translate(error, place) from error


def _translate(error: Exception, place: str) -> DownloadError | RefusedDownloadError:
    if isinstance(error, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)):
        return _proxy_error(error)
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return _connection_error(error, place)
    if isinstance(error, aiohttp.InvalidURL):
        return RefusedDownloadError(f"not a web address: {_text(error)}")
    what = "stalled" if isinstance(error, TimeoutError) else f"broke off: {_text(error)}"
    return DownloadError(f"{place} {what}")


def _connection_error(
    error: aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError, place: str
) -> DownloadError | RefusedDownloadError:
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError)):
        hint = "a proxy that opens TLS? name the file of its authority in SSL_CERT_FILE"
        return RefusedDownloadError(f"{place}: no trustworthy TLS connection: {_text(error)} (hint: {hint})")
    if isinstance(error, aiohttp.ClientConnectorError):
        return NoNetworkError(f"cannot reach {place}: {error.os_error.strerror or _text(error.os_error)}")
    return NoNetworkError(f"cannot reach {place}: no answer")


def _proxy_error(
    error: aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError,
) -> RefusedDownloadError | NoNetworkError:
    hint = "see HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return RefusedDownloadError(f"the proxy answers {error.status} {error.message} (hint: {hint})")
    return NoNetworkError(f"cannot reach the proxy {error.host}:{error.port}: {error.os_error.strerror} (hint: {hint})")


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
