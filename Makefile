# Each target sets up .venv first, once, and does again only what has changed. `make` alone lists the targets.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
READY := .venv/.ready
LIMIT = $(if $(shell command -v timeout 2>/dev/null),timeout $(1))
NBS := $(filter-out %.ipynb_checkpoints,$(wildcard nbs/*.ipynb nbs/*/*.ipynb))

# nothing here may ask a model or data hub for anything; processes side by side are fastest with one thread each
test test-slow docs quickstart step: export HF_HUB_OFFLINE = 1
test test-slow docs step: export OMP_NUM_THREADS = 1

.PHONY: help quickstart test test-slow docs readme lab step clean
help:
	@echo 'make quickstart  train, score and look at a sparse autoencoder: see quickstart/report.html'
	@echo 'make test        all tests: exports in step, notebooks, tests/, docs without a warning'
	@echo 'make test-slow   the cells and tests marked slow (the taught models, a wheel in a fresh environment)'
	@echo 'make docs        the site, in _docs/index.html'
	@echo 'make lab         JupyterLab on the notebooks'
	@echo 'make step        clean and export the notebooks, write README.md, say what changed'
	@echo 'make clean       remove what was built (not .venv)'

$(READY): settings.ini setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo 'saebook needs Python 3.10 or later (tested with 3.11): none was found as python3.11, python3 or python'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo '$(PYTHON) cannot make a virtual environment (Debian: apt install python3-venv)'; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip check
	@touch $@

quickstart: quickstart/report.html
	@echo 'Open quickstart/report.html. To run it anew: rm -r quickstart'

quickstart/report.html: $(READY) $(NBS)
	$(BIN)/saebook quickstart --out quickstart

test: $(READY)
	$(BIN)/python tools/step.py
	$(call LIMIT,2400) $(BIN)/nbdev_test --n_workers 2 --timing
	$(MAKE) docs
	$(call LIMIT,2400) $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

test-slow: $(READY)
	$(BIN)/python -m pytest -x -q -n 2 --dist loadfile -m slow tests
	@! grep -qE '#\| ?slow' $(NBS) || $(BIN)/nbdev_test --n_workers 2 --timing --do_print --flags slow

docs: _docs/.built
	@echo 'Open _docs/index.html'

_docs/.built: $(READY) $(NBS) tools/docs.py docs/conf.py docs/_static/nb.css CHANGELOG.md CONTRIBUTING.md
	$(call LIMIT,900) $(BIN)/python tools/docs.py
	@touch $@

readme: $(READY)
	$(BIN)/python tools/docs.py --readme

lab: $(READY)
	$(BIN)/jupyter lab --notebook-dir=nbs

step: $(READY)
	$(BIN)/python tools/step.py

clean:
	rm -rf _docs _proc build dist quickstart *.egg-info .pytest_cache
