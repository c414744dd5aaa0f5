"""From the configuration of a sink to the sink."""

from __future__ import annotations

from pathlib import Path

from agent.config.delivery import FileSinkConfig, PluginSinkConfig, SinkConfig, WebhookSinkConfig
from agent.net import tls_client
from agent.plugins import create_sink
from agent.ports import EventSink
from agent.sinks.file import FileSink
from agent.sinks.secrets import read_secret
from agent.sinks.webhook import WebhookSink


def build_sink(name: str, config: SinkConfig, *, state_dir: Path, credentials: Path | None = None) -> EventSink:
    """The sink `name`; nothing is connected or opened yet, but its secrets are read.

    credentials: systemd's folder of this service's credentials. Raises ConfigError, ModelError (a plug-in that does not work).
    """
    match config:
        case WebhookSinkConfig():
            where = f"sinks.{name}"
            keys = [read_secret(path, f"{where}.secret_files", credentials) for path in config.secret_files]
            tls = tls_client(config.tls, f"{where}.tls") if config.tls is not None else None
            return WebhookSink(config.url, keys, timeout_s=config.timeout_s, tls=tls)
        case FileSinkConfig():
            path = state_dir / config.path
            return FileSink(path, max_bytes=config.max_bytes, keep_files=config.keep_files)
        case PluginSinkConfig():
            return create_sink(name, config)
