"""aiokafka's producer, set up so that nothing is lost and nothing changes places."""

from __future__ import annotations

import ssl

from agent.errors import ConfigError, ConfigProblem
from aiokafka import AIOKafkaProducer

from recognizer_kafka.options import KafkaOptions


def make_producer(
    options: KafkaOptions, password: str, tls: ssl.SSLContext | None, timeout_s: float
) -> AIOKafkaProducer:
    """A producer that is not connected; on the running event loop. timeout_s: of the agent, for one delivery.

    acks=all: an event counts once every in-sync replica has it. Idempotent: the client's own retries make no doubles. The client
    gives up before the agent does, so that what the agent tries again is not still on its way here.
    """
    sasl = {}
    if options.security.startswith("SASL"):
        sasl = {
            "sasl_mechanism": options.sasl_mechanism,
            "sasl_plain_username": options.username,
            "sasl_plain_password": password,
        }
    return AIOKafkaProducer(
        bootstrap_servers=list(options.bootstrap_servers),
        client_id=options.client_id,
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        request_timeout_ms=max(1, int(timeout_s * 800)),
        compression_type=None if options.compression == "none" else options.compression,
        max_request_size=options.max_request_bytes,
        security_protocol=options.security,
        ssl_context=tls,
        **sasl,
    )


def tls_context(options: KafkaOptions, where: str) -> ssl.SSLContext:
    """Raises ConfigError when a file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.cert_file is not None:
            context.load_cert_chain(options.cert_file, options.key_file)
    except OSError as error:
        problem = f"certificates cannot be used: {error}"
        hint = "PEM files, the key unencrypted"
        raise ConfigError([ConfigProblem(problem, path=where, hint=hint)]) from error
    return context
