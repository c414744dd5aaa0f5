# What a developer asks for most. `make help` lists it.
BIN ?= .venv/bin

.PHONY: help reports test lint

help:
	@echo "make reports   measure again what docs/reports tells (ONLY='tracking pose-*' picks, DATA=folder of the data sets)"
	@echo "make test      the test suite"
	@echo "make lint      ruff and mypy"

reports:
	@PATH="$(abspath $(BIN)):$$PATH" docs/reports/make.sh $(ONLY)

test:
	$(BIN)/pytest

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
