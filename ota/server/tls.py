"""TLS of the server: its certificate, taken anew when it was renewed on the disk, and the certificates of devices."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

from agent.errors import ConfigError, ConfigProblem
from agent.net import show_certificate
from agent.private_files import mark_of, require_private
from ota.server.settings import TlsSettings

_log = structlog.get_logger(__name__)
_LOOK_S = 30.0


class ServerTls:
    """`context` is for the listening socket. credentials: systemd's folder, see `read_private`. Raises ConfigError."""

    def __init__(self, given: TlsSettings, credentials: Path | None) -> None:
        self._given = given
        self._credentials = credentials
        self._seen = self._mark()
        self._newest = self._load()
        self.context = self._load()
        self.context.sni_callback = self._show_newest

    async def keep_fresh(self) -> None:
        """For ever: new connections get what lies on the disk, as soon as it can be used; a half-written renewal changes nothing."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if (mark := await asyncio.to_thread(self._mark)) == self._seen:
                continue
            self._seen = mark
            try:
                self._newest = await asyncio.to_thread(self._load)
            except ConfigError as error:
                _log.error("fleet_certificate_not_taken", error=str(error))
            else:
                _log.info("fleet_certificate_renewed", file=str(self._given.cert))

    def _show_newest(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called for each handshake, with or without a name."""
        connection.context = self._newest

    def _load(self) -> ssl.SSLContext:
        """A client may show a certificate of `client_ca`, and need not: who has to is decided by `auth`."""
        given = self._given
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.sslobject_class = _Explaining
        show_certificate(context, given.cert, given.key, "tls.cert")
        try:
            require_private(given.key, self._credentials)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            hint = f"chmod 600 {given.key}; owned by the server's user"
            raise ConfigError([ConfigProblem(f"{given.key}: {why}", path="tls.key", hint=hint)]) from error
        if given.client_ca is not None:
            try:
                context.load_verify_locations(given.client_ca)
            except OSError as error:
                raise ConfigError([ConfigProblem(f"{given.client_ca}: {error}", path="tls.client_ca")]) from error
            context.verify_mode = ssl.CERT_OPTIONAL
            # A ticket stands for a certificate that was good once, and each use gives the next one: it would let in for ever who has
            # expired, or whose authority is gone.
            context.num_tickets = 0
            context.options |= ssl.OP_NO_TICKET
        return context

    def _mark(self) -> tuple[object, ...]:
        return tuple(mark_of(path) for path in (self._given.cert, self._given.key, self._given.client_ca) if path)


class _Explaining(ssl.SSLObject):
    """Tells a client why its certificate is refused. asyncio closes a connection whose handshake failed before it has sent the alert
    that says so: the client would see it break off, and try for ever. So the failure is handed over one step later.
    """

    _failed: ssl.SSLCertVerificationError | None = None

    def do_handshake(self) -> None:
        """As in SSLObject."""
        if self._failed is not None:
            raise self._failed
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            self._failed = error
            _log.warning("fleet_client_certificate_refused", reason=error.verify_message)
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the alert goes out first") from error
