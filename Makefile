# make ablation  does the reference image help? text only against fused prompts, at the demo's size
# make test    sets up .venv and runs the tests
# make demo    sets up .venv, draws chests, trains, samples, and writes one page to look at
# make lint    style checks
# make clean   removes the demo's results (not .venv)

PYTHON ?= python3
RUN := .venv/bin/python
DEMO := --config demo.toml
export HF_HUB_OFFLINE ?= 1

.PHONY: demo ablation test lint clean
.DELETE_ON_ERROR:

# the stamp is newer than requirements.txt, so that a second call installs nothing
.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

demo: .venv/installed
	$(RUN) -m utils.phantom $(DEMO)
	$(RUN) train_diffusion_clipUViT.py $(DEMO)
	$(RUN) sample_diffusion_clipUViT.py $(DEMO)
	$(RUN) train_diffusion_clipSD.py $(DEMO)
	$(RUN) sample_diffusion_clipSD.py $(DEMO)
	$(RUN) train_bart.py $(DEMO)
	$(RUN) train_prior_model.py $(DEMO)
	$(RUN) sample_prior_model.py $(DEMO)
	$(RUN) sample_prior_model.py $(DEMO) --OUTPUT_ROOT demo/synthetic/clipSD
	$(RUN) sample_prior_model.py $(DEMO) --DATA_ROOT demo/phantom --SPLIT test --OUTPUT_ROOT demo/written
	$(RUN) evaluate_pairs.py $(DEMO) --WRITTEN demo/written
	$(RUN) evaluate_pairs.py $(DEMO) --SYNTHETIC demo/synthetic/clipSD --OUTPUT demo/evaluation/clipSD \
	    --PAGE demo/synthetic/clipSD.html
	$(RUN) -m utils.gallery $(DEMO)

ablation: .venv/installed
	$(RUN) -m benchmarks.ablation

test: .venv/installed
	$(RUN) -m pytest

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf demo
