#!/bin/sh
# Runs tuf-conformance (github.com/theupdateframework/tuf-conformance, not part of this repository) against the device's client.
# usage: tests/conformance/run.sh FOLDER [pytest arguments]     FOLDER: a checkout of tuf-conformance
# needs: the agent's development dependencies in $PYTHON (default: python3), and the program `faketime` for two of the tests
set -eu
[ $# -ge 1 ] && [ -d "$1/tuf_conformance" ] || { echo "usage: $0 FOLDER [pytest arguments]; FOLDER: a checkout of tuf-conformance" >&2; exit 2; }
suite=$(cd "$1" && pwd)
shift
here=$(cd "$(dirname "$0")" && pwd)
python=$(command -v "${PYTHON:-python3}")
case $python in /*) ;; *) python=$(pwd)/$python ;; esac
command -v faketime >/dev/null || echo "warning: faketime is not installed: the tests that set the clock will fail" >&2
PATH="$(dirname "$python"):$PATH" PYTHONPATH="$suite:$here/../..${PYTHONPATH:+:$PYTHONPATH}"
export PATH PYTHONPATH
cd "$suite"
exec "$python" -m pytest -q -p no:cacheprovider -c pyproject.toml tuf_conformance --entrypoint="$here/tuf_client.py" "$@"
