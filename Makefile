# Two commands: `make demo` and `make test`. Each does its own set-up and may be run again.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test install up lerobot clean

demo: install
	@MUJOCO_GL=osmesa $(BIN)/wamflow demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	MUJOCO_GL=osmesa $(BIN)/pytest

up: install
	@$(BIN)/wamflow up

install: .venv/.installed .venv/.osmesa

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit(f"wamflow needs Python 3.11; {sys.executable} is {v[0]}.{v[1]}. Install python3.11 and python3.11-venv, or run: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

# MuJoCo renders without a GPU through OSMesa, the one library that pip cannot bring.
.venv/.osmesa: .venv/.installed
	@if PATH="$$PATH:/usr/sbin:/sbin" ldconfig -p | grep -q libOSMesa; then :; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq libosmesa6; \
	else echo "Rendering needs one system library. Run this, then make again: sudo apt-get install libosmesa6"; exit 1; fi
	@touch $@

# The real lerobot package in an environment of its own: export WAMFLOW_LEROBOT_PYTHON=.venv-lerobot/bin/python
lerobot: .venv-lerobot/.installed

.venv-lerobot/.installed: tests/lerobot-package.txt constraints.txt
	@$(PYTHON) -m venv --clear .venv-lerobot
	@grep '^torch==' constraints.txt > .venv-lerobot/torch.txt
	.venv-lerobot/bin/python -m pip install --quiet -r .venv-lerobot/torch.txt
	.venv-lerobot/bin/python -m pip install --quiet --no-deps -r $<
	@touch $@

clean:
	rm -rf .venv .venv-lerobot .runs .wamflow .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
