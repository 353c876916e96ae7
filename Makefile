# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: demo docs test lint resolve mutants fuzz setup setup-gpu

demo: setup  ## set up, then run the whole recipe in the pocket world
	.venv/bin/python -m orchestrator.run +experiment=pocket

docs: setup  ## set up, then build the pages of docs/ as a site: docs/_build/index.html
	.venv/bin/python -m sphinx -q -W --keep-going -b html docs docs/_build

test: lint  ## set up, then pass the linters and the tests
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile

resolve: setup  ## see whether the pins resolve on every supported Python and machine
	timeout 900 .venv/bin/python -m pytest -m registry --numprocesses 4 tests/deploy/test_resolve.py

fuzz: setup  ## set up, then try some thousands of hostile inputs
	PYTHONPATH=tests .venv/bin/python -m fuzz

mutants: setup  ## change one line at a time and see whether a test notices (tens of minutes)
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 .venv/bin/python -m mutants

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/basedpyright
	@if [ "$$(uname -m)" = x86_64 ]; then \
	  set -x; .venv/bin/shellcheck .ci/run deploy/*.sh deploy/slurm/train.sbatch; \
	else echo "lint: no shellcheck wheel for $$(uname -m), scripts are not checked"; fi
	.venv/bin/hadolint deploy/docker/Dockerfile.*

setup:
	@deploy/setup.sh cpu

setup-gpu:
	@deploy/setup.sh gpu
