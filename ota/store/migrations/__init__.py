"""Numbered SQL files, applied in order; see `ota.store.migrate`."""
