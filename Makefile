# Everything runs from .venv, which is made on first use and made anew when the requirements change.
PYTHON ?= python3
PY = .venv/bin/python
Q = runs/quickstart
INSTALLED = .venv/installed

.PHONY: install quickstart reproduce reproduce-mini test test-slow test-slurm lint format clean

$(INSTALLED): requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=..."'
	@echo "installing into .venv: about 6.7 GB, most of it CUDA's libraries; unpacking takes a minute after the downloads"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
	touch $@

install: $(INSTALLED)

# The ordinary tools in their order: clips -> latents -> sweep -> laws -> plan -> run -> videos -> report. Each continues
# or skips what is finished, so that the whole may be interrupted and repeated.
quickstart: $(INSTALLED)
	$(PY) tools/cache_latents.py --source synthetic --clips 12800 --validation 384 --out $(Q)/latents
	$(PY) tools/sweep.py run configs/sweep/quickstart.yaml
	$(PY) tools/fit.py all $(Q)/sweep --out $(Q)/law.json
	$(PY) tools/plan.py --law $(Q)/law.json --params 524288 --tokens 1e6 --base configs/train/quickstart.yaml --out $(Q)/planned.yaml
	$(PY) train.py --config $(Q)/planned.yaml name=quickstart/planned
	$(PY) sample.py --checkpoint $(Q)/planned --prompts configs/prompts.txt --format gif --guidance 3 --out $(Q)/samples
	$(PY) tools/report.py $(Q)/sweep --law $(Q)/law.json --planned $(Q)/planned --samples $(Q)/samples --out $(Q)/report.html

# The third and the second study (docs/reproduction.md) from their committed results: laws, and the same numbers as committed.
reproduce: $(INSTALLED)
	$(PY) tools/fit.py all results/doom/cells --out runs/doom/law.json
	$(PY) tools/study.py results/doom/cells --law runs/doom/law.json --expect results/doom/study.json
	$(PY) tools/report.py results/doom/cells --law runs/doom/law.json --figures runs/doom/figures --out runs/doom/report.html
	$(PY) tools/fit.py all results/study/cells --out runs/study/law.json
	$(PY) tools/study.py results/study/cells --law runs/study/law.json --expect results/study/study.json
	$(PY) tools/report.py results/study/cells --law runs/study/law.json --figures runs/study/figures --out runs/study/report.html

# The miniature study (docs/reproduction.md) analysed again from its committed results, and held against what is claimed.
# Its runs, hours of two cores, are made by tools/sweep.py from configs/sweep/mini.yaml.
reproduce-mini: $(INSTALLED)
	$(PY) tools/fit.py all results/mini/cells --method grids --prior configs/laws/paper.json --out runs/mini/law.json
	$(PY) tools/study.py results/mini/cells --law runs/mini/law.json --prior configs/laws/paper.json --expect results/mini/study.json
	$(PY) tools/study.py results/mini/cells --law results/mini/law_before_heldout.json --expect results/mini/heldout.json
	$(PY) tools/report.py results/mini/cells --law runs/mini/law.json --figures runs/mini/figures --out runs/mini/report.html

# Processes that tests start would compile the repository anew each where Python is set to keep no bytecode.
test test-slow test-slurm: export PYTHONDONTWRITEBYTECODE :=

# Minutes on two cores; test-slow is the rest, of which SHARD=0/4 takes the first of four parts.
test: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist worksteal -m "not slow and not slurm"

test-slow: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist worksteal -m "slow and not slurm" $(if $(SHARD),--shard $(SHARD))

# On a Slurm of their own, which they start and stop; without its daemons they skip themselves.
test-slurm: $(INSTALLED)
	$(PY) -m pytest -m slurm

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(INSTALLED)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

clean:
	rm -rf .venv runs samples
