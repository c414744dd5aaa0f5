"""Drift watch: does the model still behave on this device as it did when it was released, or when it was new here? Pure."""
