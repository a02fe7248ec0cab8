# make demo   audit bundled real data and write a report      make test   every check
# make bench  speed beside peers (long)                       make reproduce   the measured gates (long)
# make docs   the documentation site, in build/site
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export WHENCE_DATA ?= ../shared/data

.PHONY: demo test check docs bench reproduce reproduce-attack reproduce-influence reproduce-understanding reproduce-detectors reproduce-crossloss clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,hf,docs]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/whence audit examples/data/sms_spam.csv.gz --label label --out runs/demo

check: $(VENV)/.ready
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/mypy

docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site: build/site/index.html"

test: check
	$(BIN)/python -m pytest

THREADS ?= 2
bench: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -r benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r benchmarks/requirements-nodeps.txt
	$(BIN)/python benchmarks/speed.py --threads $(THREADS) $(if $(TINY),--tiny)
	$(BIN)/python benchmarks/matrix.py --threads $(THREADS) $(if $(TINY),--tiny)

reproduce: $(VENV)/.ready
	$(BIN)/python benchmarks/oracle_gates.py --threads $(THREADS) $(if $(TINY),--tiny)
	$(BIN)/python benchmarks/retraining.py --cache runs/retraining --threads $(THREADS) $(if $(TINY),--tiny)
	$(BIN)/python benchmarks/lds.py --cache runs/lds --threads $(THREADS) $(if $(TINY),--tiny)
	$(BIN)/python benchmarks/brittleness.py --cache runs/brittleness --threads $(THREADS) $(if $(TINY),--tiny)
	$(BIN)/python benchmarks/index.py --threads $(THREADS) $(if $(TINY),--tiny)
	$(BIN)/python benchmarks/label_errors.py --threads $(THREADS) $(if $(TINY),--tiny)
	$(BIN)/python benchmarks/explorer.py --threads $(THREADS) $(if $(TINY),--tiny)
	$(BIN)/python benchmarks/explorer_drive.py --threads $(THREADS) $(if $(TINY),--tiny)
	$(BIN)/python benchmarks/predicted_change.py --threads $(THREADS) $(if $(TINY),--tiny)

reproduce: reproduce-attack
reproduce-attack: $(VENV)/.ready
	$(BIN)/python benchmarks/influence_attack.py --cache runs/attack --threads $(THREADS) $(if $(TINY),--tiny)

INFLUENCE := hinge mismatch mislabels groups linear
reproduce: reproduce-influence reproduce-understanding
reproduce-influence: $(INFLUENCE:%=reproduce-%)
$(INFLUENCE:%=reproduce-%): reproduce-%: $(VENV)/.ready
	$(BIN)/python benchmarks/influence_$*.py --threads $(THREADS) $(if $(TINY),--tiny)
reproduce-understanding: $(VENV)/.ready
	$(BIN)/python benchmarks/influence_understanding.py --cache runs/attack --threads $(THREADS) $(if $(TINY),--tiny)

reproduce: reproduce-detectors
reproduce-detectors: $(VENV)/.ready
	$(BIN)/python benchmarks/detectors.py --cache runs/detectors --threads $(THREADS) $(if $(TINY),--tiny)

reproduce: reproduce-turnover
reproduce-turnover: $(VENV)/.ready
	$(BIN)/python benchmarks/turnover.py --threads $(THREADS) $(if $(TINY),--tiny)

CROSSLOSS := mixture digits scale words
reproduce: reproduce-crossloss
reproduce-crossloss: $(CROSSLOSS:%=reproduce-crossloss-%)
$(CROSSLOSS:%=reproduce-crossloss-%): reproduce-crossloss-%: $(VENV)/.ready
	$(BIN)/python benchmarks/crossloss_$*.py $(if $(filter words,$*),--cache runs/crossloss) --threads $(THREADS) $(if $(TINY),--tiny)

clean:
	rm -rf $(VENV) runs build dist
