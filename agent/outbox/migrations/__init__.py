"""Numbered SQL files, applied in order; see `agent.outbox.database.migrate`."""
