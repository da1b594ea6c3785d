# Everything runs in .venv, which the first command makes: it needs Python 3.11 and make.

PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
PINS = .ci/pins.toml .ci/setup.py pyproject.toml

.PHONY: help demo test bench check core-test pins wheel clean

help:
	@echo "make demo        make a corpus, train a SpeechLM on it, evaluate it: runs/demo/report.html"
	@echo "make test        run the tests; make test ARGS='-k units -x' passes arguments to pytest"
	@echo "make bench       time it against its peers; make bench ARGS='decoding --pairs 9', ARGS=--help"
	@echo "make check       format, lint and type checks, as in CI"
	@echo "make core-test   run the tests on the newest torch and transformers, without fairseq2"
	@echo "make wheel       build dist/*.whl"
	@echo "make pins        resolve the exact versions of both sets anew into .ci/pins.toml"
	@echo "make clean       remove environments, caches and built files; runs/ is kept"
	@echo
	@echo "The first of them sets up .venv. PYTHON=/path/to/python chooses another interpreter."

demo: .venv/.ready
	.venv/bin/speechlm demo $(ARGS)

test: .venv/.ready
	.venv/bin/python -m pytest $(ARGS)

core-test: .venv-core/.ready
	.venv-core/bin/python -m pytest $(ARGS)

bench: .venv/.ready
	.venv/bin/python tests/benchmarks/bench.py $(ARGS)

check: .venv/.ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

wheel: .venv/.ready
	.venv/bin/python -m hatchling build --target wheel

pins: .venv/.ready
	.venv/bin/python .ci/setup.py --pin

.venv/.ready: $(PINS)
	@$(if $(PYTHON),,echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3.11"; exit 1)
	@$(PYTHON) .ci/setup.py train .venv

.venv-core/.ready: $(PINS)
	@$(if $(PYTHON),,echo "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3.11"; exit 1)
	@$(PYTHON) .ci/setup.py core .venv-core

clean:
	rm -rf .venv .venv-core .venv-wheel dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
