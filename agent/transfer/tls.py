"""What connections are made with, and what to say when the other side is not trusted or does not trust us."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

_EXPIRED, _NOT_YET = 10, 9
_OTHER_NAME = frozenset({62, 64})
"""X509_V_ERR_CERT_HAS_EXPIRED, _CERT_NOT_YET_VALID, _HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH of OpenSSL."""
_SPEAKS_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})


@dataclass(frozen=True, slots=True)
class Tls:
    """context: None = the system's authorities, no certificate of ours. authority, certificate: what errors tell a person to look
    at, setting and file; certificate: empty = there is no way to give one."""

    context: ssl.SSLContext | None = None
    authority: str = "SSL_CERT_FILE"
    certificate: str = ""


def passes(error: BaseException) -> bool:
    """A clock that is not set yet is nobody's to mend: it may be right in a moment."""
    cause = _tls_error(error)
    return isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code == _NOT_YET


def trouble(error: BaseException, place: str, tls: Tls) -> str:
    """Why there is no TLS with the host `place`, and what to do; empty when that is not what `error` is about."""
    cause = _tls_error(error)
    if cause is None:
        return ""
    if isinstance(cause, ssl.SSLCertVerificationError):
        hint = _hint(cause.verify_code, tls)
        return f"{place}: no trustworthy TLS connection: {cause.verify_message} (hint: {hint})"
    reason = cause.reason or ""
    if "ALERT" in reason:
        said = reason.rpartition("ALERT_")[2].replace("_", " ").lower()
        hint = f"{tls.certificate}: signed by whom the server trusts, and not expired?"
        return f"{place} refuses this device's TLS: {said}{f' (hint: {hint})' if tls.certificate else ''}"
    if reason in _SPEAKS_NO_TLS:
        return f"{place}: no trustworthy TLS connection: it speaks no TLS (hint: http:// in place of https://, or another port?)"
    return f"{place}: no trustworthy TLS connection: {reason or cause}"


def _hint(code: int, tls: Tls) -> str:
    if code == _EXPIRED:
        return "renew the server's certificate; or is the clock of this device wrong?"
    if code == _NOT_YET:
        return "the clock of this device? `timedatectl set-ntp true`"
    if code in _OTHER_NAME:
        return "give the address by a name that the server's certificate is for"
    return f"the authority that signed the server's certificate, or that of a proxy that opens TLS, belongs into {tls.authority}"


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """aiohttp keeps the real error in one of several places."""
    for one in (getattr(error, "certificate_error", None), getattr(error, "os_error", None), error.__cause__, error):
        if isinstance(one, ssl.SSLError) and type(one).__module__ == "ssl":
            return one
    return None
