"""Recognizer agent: action recognition at the edge, from camera to MQTT, no event lost."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("recognizer-agent")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
