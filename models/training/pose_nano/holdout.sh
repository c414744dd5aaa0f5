#!/bin/sh
# Simulated hold-out scenes: four of each scenario, six pictures each, five seconds apart. Usage: holdout.sh FOLDER
set -eu
number=0
for scenario in $(python -c "from agent.simulation.scripts import SCENARIOS; print(*[s for s in SCENARIOS if s != 'empty'])"); do
  for _ in 1 2 3 4; do
    number=$((number + 1))
    seed=$((1000000 + number))
    python -m agent.simulation.export --scenario "$scenario" --seed "$seed" --people $((1 + number % 6)) \
      --seconds 30 --fps 0.2 --images --out "$1/$scenario-$seed"
  done
done
