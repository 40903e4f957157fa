# make quickstart | test | oldest | style | quality: each makes its own virtual environment first, so python3 and make are enough.
# make test PYTHON=python3.12 chooses the Python (3.10 or newer).

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
OLDEST_VENV ?= .venv-oldest
QUICK_VENV ?= .venv-quickstart
RUN ?= runs/quickstart
# A notebook's, which its commands inherit, need not be installed here.
export MPLBACKEND = agg

.PHONY: quickstart test oldest style quality
.DELETE_ON_ERROR:

quickstart: $(QUICK_VENV)/.installed
	$(QUICK_VENV)/bin/smarttrim finetune recipes/quickstart.yaml --overwrite
	$(QUICK_VENV)/bin/smarttrim evaluate $(RUN) --baseline random
	$(QUICK_VENV)/bin/smarttrim profile $(RUN) --single-instance --num-instances 30
	$(QUICK_VENV)/bin/smarttrim profile recipes/meter/vqa_288_2.0x.yaml --random-weights --single-instance \
		--sparsity-from $(RUN) --num-instances 3
	$(QUICK_VENV)/bin/smarttrim visualize $(RUN)
	$(QUICK_VENV)/bin/smarttrim summary $(RUN)

test: $(VENV)/.installed
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# The tests with the oldest version of everything that pyproject.toml allows; best with the oldest Python.
oldest: $(OLDEST_VENV)/.installed
	$(OLDEST_VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

style: $(VENV)/.installed
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

quality: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.installed $(OLDEST_VENV)/.installed: EXTRAS = [dev]
$(OLDEST_VENV)/.installed: FLOORS = --constraint $(@D)/floors.txt
$(VENV)/.installed $(OLDEST_VENV)/.installed $(QUICK_VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "needs Python 3.10 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than Python 3.10: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --editable '.$(EXTRAS)' $(FLOORS)
	touch $@

$(OLDEST_VENV)/.installed: $(OLDEST_VENV)/floors.txt
$(OLDEST_VENV)/floors.txt: pyproject.toml
	mkdir -p $(@D)
	sed -nE 's/^ *"([A-Za-z0-9_-]+)>=([0-9.]+).*",$$/\1==\2/p' pyproject.toml | sort -u > $@
