#!/usr/bin/env bash
# Writes the lock files beside this script from pyproject.toml. Needs uv. Run it after a dependency changed, or with
# `--upgrade` to take newer versions within the bounds. Local wheel folders are ignored, so nothing of this machine or
# its package index gets into the files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=requirements
unset UV_FIND_LINKS PIP_FIND_LINKS

compile() { # NAME PURPOSE INPUT [uv options]
  local name=$1 purpose=$2 input=$3
  shift 3
  local body
  body=$(mktemp)
  if [ -f "$out/$name.txt" ]; then cp "$out/$name.txt" "$body"; fi # keeps versions unless --upgrade is given
  uv pip compile "$input" --universal --python-version 3.11 --generate-hashes --quiet \
    --no-header --no-emit-index-url --no-emit-find-links --overrides "$out/overrides.in" \
    --output-file "$body" "$@" "${upgrade[@]}"
  {
    echo "# $purpose"
    echo "# Exact versions and hashes for Python 3.11 and up. Written by requirements/lock.sh; do not edit."
    grep -v '^# ' "$body" # the header of the file that versions were kept from
  } > "$out/$name.txt"
  rm -f "$body"
}

upgrade=("$@")
same=(--constraints "$out/cpu.txt") # one version of a package over all files, so that they install together
compile cpu "The agent on the CPU: core and the extra 'cpu'." pyproject.toml --extra cpu
compile gpu "The agent on an NVIDIA GPU: core and the extra 'gpu'." pyproject.toml --extra gpu "${same[@]}"
compile tools "What 'demo' and 'evaluate' need besides cpu.txt or gpu.txt." pyproject.toml \
  --extra demo --extra evaluate "${same[@]}"
compile fleet "The fleet server: core and the extras 'fleet' and 'postgres'." pyproject.toml \
  --extra fleet --extra postgres --extra cpu "${same[@]}"
compile dev "The test environment: core and the extras 'cpu' and 'dev'." pyproject.toml \
  --extra cpu --extra dev "${same[@]}" --constraints "$out/tools.txt" --constraints "$out/fleet.txt"
compile posenet_litert "The plug-in examples/plugins/posenet_litert, beside cpu.txt or gpu.txt." \
  examples/plugins/posenet_litert/pyproject.toml --overrides "$out/overrides-plugins.in" "${same[@]}"
compile build "What builds the packages of this repository." "$out/build.in"
