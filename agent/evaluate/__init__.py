"""Measuring the agent against annotated data; each report is a plain dictionary for JSON."""
