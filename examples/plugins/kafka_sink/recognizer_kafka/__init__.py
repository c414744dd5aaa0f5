"""Events in a Kafka topic: the sink `kafka` of the Recognizer agent."""

from __future__ import annotations

from functools import partial

from agent.config.delivery import PluginSinkConfig
from agent.ports import EventSink

from recognizer_kafka.options import parse_options
from recognizer_kafka.producer import make_producer, tls_context
from recognizer_kafka.sink import KafkaSink

__all__ = ["create"]


def create(name: str, config: PluginSinkConfig) -> EventSink:
    """The entry point: the sink `name` with `config.options` as `KafkaOptions` says. Nothing is connected yet.

    Raises ConfigError for what is wrong there, or in the files that it names.
    """
    where = f"sinks.{name}.options"
    options = parse_options(config.options, where)
    password = options.read_password(where)
    tls = tls_context(options, where) if options.security.endswith("SSL") else None
    return KafkaSink(partial(make_producer, options, password, tls, config.timeout_s), options.topic)
