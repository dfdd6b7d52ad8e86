# make demo         sets up .venv, draws chests, trains, samples, and writes one page to look at and one folder to load
# make demo-open    the same on real films: OPEN=folder with kermany as downloaded, PAIRS=a CXR tree with reports, if any,
#                   OPEN_CONFIG=open-gpu.toml at the paper's sizes, on a GPU
# make test         sets up .venv and runs the tests
# make test-oldest  runs the tests on the oldest versions that requirements.txt allows
# make counterfactuals   films with one finding changed, and what else changed in them; after make demo
# make utility      what are the films good for? classifiers trained on real and synthetic ones, twins too; after the demo
# make privacy      are drawn patients found among the films and reports of models that were trained on them?
# make privacy-controls  the same of a model of the others of them, and of one that was trained on few for too long
# make bench        how quick beside diffusers, transformers and other peers? DEVICE=cuda: at the paper's sizes, on a GPU
# make soak         kills every script at random moments, and compares what completes with an uninterrupted run
# make parts        the demo's pretrained parts anew, in two hours or more; goes on where it was cut
# make lint         style checks
# make lock         writes requirements-tested.txt, the versions in .venv, which the tests ran on
# make clean        removes the demos' results (not .venv)

PYTHON ?= python3
RUN := .venv/bin/python
OLDEST := .venv-oldest/bin
DEMO := --config demo.toml
OPEN ?= downloads
PAIRS ?=
OPEN_CONFIG ?= open.toml
PARTS := $(addprefix parts/,chests vae decoder quick clip uvit unet vit bart prior bert)
export HF_HUB_OFFLINE ?= 1

.PHONY: demo/clipUViT demo/bart demo/clipSD demo/prior demo/written demo/reports-clipUViT demo/reports-clipSD
.PHONY: demo/selected-clipUViT demo/pairs-clipUViT demo/selected-clipSD demo/pairs-clipSD
.PHONY: demo demo-open parts $(PARTS) test test-oldest counterfactuals privacy privacy-controls utility bench soak
.PHONY: demo/patients demo/films demo/report-models demo/audit lint lock clean
.DELETE_ON_ERROR:

# two parts of the demo at a time, of those that can begin the first named, each with half of the cores: small networks
# gain little from more than one
HALF_THE_CORES = OMP_NUM_THREADS=$$($(PYTHON) -c "import os; print(max(1, os.cpu_count() // 2))")
# what one of them prints goes into a file, whose end is shown if it fails
logged = echo "beside it: $@, see $@.log"; ($(1)) > $@.log 2>&1 || (tail -n 20 $@.log; exit 1)

# a stamp is newer than what it was made from, so that a second call installs nothing
.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

.venv/installed-%: pyproject.toml .venv/installed
	$(RUN) -m pip install --quiet --editable ".[$*]"
	touch $@

.venv-oldest/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet uv
	$(OLDEST)/uv pip install --quiet --python $(OLDEST)/python --resolution lowest-direct --editable ".[test]"
	touch $@

demo: .venv/installed
	$(RUN) -m phantom $(DEMO)
	$(HALF_THE_CORES) $(MAKE) --jobs=2 demo/clipUViT demo/bart demo/clipSD demo/prior demo/reports-clipUViT \
	    demo/written demo/reports-clipSD demo/selected-clipUViT demo/pairs-clipUViT demo/pairs-clipSD demo/selected-clipSD
	$(RUN) -m evaluation.gallery $(DEMO)
	$(RUN) pipeline.py $(DEMO)

demo/clipUViT:
	$(RUN) train_diffusion_clipUViT.py $(DEMO)
	$(RUN) sample_diffusion_clipUViT.py $(DEMO)

demo/bart:
	@$(call logged,$(RUN) train_bart.py $(DEMO))

demo/clipSD:
	@$(call logged,$(RUN) train_diffusion_clipSD.py $(DEMO) && $(RUN) sample_diffusion_clipSD.py $(DEMO))

demo/prior: demo/bart
	$(RUN) train_prior_model.py $(DEMO)

demo/written: demo/prior
	@$(call logged,\
	    $(RUN) sample_prior_model.py $(DEMO) --DATA_ROOT demo/phantom --SPLIT test --OUTPUT_ROOT demo/written \
	    --RECONSTRUCT True)

demo/reports-clipUViT: demo/prior demo/clipUViT
	$(RUN) sample_prior_model.py $(DEMO)

demo/reports-clipSD: demo/prior demo/clipSD
	@$(call logged,$(RUN) sample_prior_model.py $(DEMO) --OUTPUT_ROOT demo/synthetic/clipSD)

# trains the judge of both selections and that of all evaluations
demo/selected-clipUViT: demo/reports-clipUViT
	$(RUN) select_pairs.py $(DEMO)
	$(RUN) evaluate_pairs.py $(DEMO) --SYNTHETIC demo/synthetic/clipUViT-selected \
	    --OUTPUT demo/evaluation/clipUViT-selected

demo/pairs-clipUViT: demo/selected-clipUViT demo/written
	$(RUN) evaluate_pairs.py $(DEMO) --WRITTEN demo/written

demo/selected-clipSD: demo/reports-clipSD demo/selected-clipUViT
	@$(call logged,$(RUN) select_pairs.py $(DEMO) --SYNTHETIC demo/synthetic/clipSD \
	    --OUTPUT_ROOT demo/synthetic/clipSD-selected && \
	    $(RUN) evaluate_pairs.py $(DEMO) --SYNTHETIC demo/synthetic/clipSD-selected \
	    --OUTPUT demo/evaluation/clipSD-selected)

demo/pairs-clipSD: demo/reports-clipSD demo/selected-clipUViT
	@$(call logged,\
	    $(RUN) evaluate_pairs.py $(DEMO) --SYNTHETIC demo/synthetic/clipSD --OUTPUT demo/evaluation/clipSD)

counterfactuals: .venv/installed
	$(RUN) sample_counterfactuals.py $(DEMO)
	$(RUN) -m phantom $(DEMO) --TWINS_OF demo/counterfactuals/clipUViT --OUTPUT_ROOT demo/twins
	$(MAKE) demo/twins-of-clipUViT demo/twins-of-clipSD

demo/twins-of-%:
	$(RUN) sample_counterfactuals.py $(DEMO) --CHECKPOINT demo/runs/$*/best --OUTPUT_ROOT demo/counterfactuals/$*
	$(RUN) sample_prior_model.py $(DEMO) --OUTPUT_ROOT demo/counterfactuals/$* --CANDIDATES 8 --FLOW_TEMPERATURE 0.5
	$(RUN) evaluate_pairs.py $(DEMO) --SYNTHETIC demo/counterfactuals/$* --TWINS demo/twins \
	    --OUTPUT demo/evaluation/counterfactuals/$*

# an audit; the variables are others in privacy-controls: its name, the groups that are held out, what is trained and how
NAME = clipUViT
HELD_OUT = --HOLD_OUT "p14,p15,p16,p17,p18,p19,one study"
BACKBONE = clipUViT
TRAINING = --MAX_STEPS 300
TRAINED = best
PATIENTS := --config demo.toml --DATA_ROOT demo/patients
OTHERS := --HOLD_OUT "p10,p11,p12,p13,p17,p18,p19,one study"
ALL_BUT_ONE := --HOLD_OUT "p11,p12,p13,p14,p15,p16,p17,p18,p19,one study"

demo/patients: .venv/installed
	$(RUN) -m phantom $(DEMO) --OUTPUT_ROOT $@ --STUDIES 6400 --STUDIES_PER_PATIENT 4 --CANARIES 0.2

demo/films:
	$(RUN) audit_privacy.py $(PATIENTS) $(HELD_OUT) --OUTPUT demo/privacy/$(NAME)
	$(RUN) train_diffusion_$(BACKBONE).py $(PATIENTS) $(HELD_OUT) --RUN_DIR demo/privacy/runs/$(NAME) $(TRAINING)
	$(RUN) sample_diffusion_$(BACKBONE).py $(PATIENTS) --CHECKPOINT demo/privacy/runs/$(NAME)/$(TRAINED) --MAX_LABELS 0 \
	    --LABELS_CSV demo/privacy/$(NAME)/requests.csv --IMAGES_PER_LABEL 4 --OUTPUT_ROOT demo/films/$(NAME)

demo/films-%:
	$(MAKE) demo/films NAME=$* BACKBONE=$*

demo/report-models:
	$(RUN) train_bart.py $(PATIENTS) $(HELD_OUT) --RUN_DIR demo/privacy/runs/bart
	$(RUN) train_prior_model.py $(PATIENTS) $(HELD_OUT) --BART_CHECKPOINT demo/privacy/runs/bart/best \
	    --RUN_DIR demo/privacy/runs/prior --CACHE_DIR demo/privacy/cache

demo/audit:
	$(RUN) audit_privacy.py $(PATIENTS) $(HELD_OUT) --OUTPUT demo/privacy/$(NAME) --SYNTHETIC demo/films/$(NAME)

demo/audit-%:
	$(RUN) sample_prior_model.py $(DEMO) $(HELD_OUT) --CHECKPOINT demo/privacy/runs/prior/best --OUTPUT_ROOT demo/films/$*
	$(RUN) audit_privacy.py $(PATIENTS) $(HELD_OUT) --OUTPUT demo/privacy/$* --SYNTHETIC demo/films/$* \
	    --BART_CHECKPOINT demo/privacy/runs/bart/best

privacy: demo/patients
	$(HALF_THE_CORES) $(MAKE) --jobs=2 demo/films-clipUViT demo/report-models demo/films-clipSD
	$(MAKE) demo/audit-clipUViT demo/audit-clipSD

privacy-controls: demo/patients
	$(MAKE) demo/films demo/audit NAME=exchanged HELD_OUT='$(OTHERS)'
	$(MAKE) demo/films demo/audit NAME=few HELD_OUT='$(ALL_BUT_ONE)' TRAINED=last \
	    TRAINING='--MAX_STEPS 6000 --LEARNING_RATE 1e-3 --CHECKPOINT_EVERY 1000'

demo-open: .venv/installed-imagenet
	$(RUN) -m open_data --SOURCE kermany --ROOT $(OPEN)/kermany --OUTPUT open/kermany
	$(RUN) train_diffusion_clipUViT.py --config $(OPEN_CONFIG)
	$(RUN) sample_diffusion_clipUViT.py --config $(OPEN_CONFIG)
ifdef PAIRS
	$(RUN) train_bart.py --config $(OPEN_CONFIG) --DATA_ROOT $(PAIRS)
	$(RUN) train_prior_model.py --config $(OPEN_CONFIG) --DATA_ROOT $(PAIRS)
	$(RUN) sample_prior_model.py --config $(OPEN_CONFIG)
endif
	$(RUN) evaluate_pairs.py --config $(OPEN_CONFIG)

parts: .venv/installed
	$(HALF_THE_CORES) $(MAKE) --jobs=2 $(PARTS)

$(PARTS): parts/%:
	$(RUN) -m assets.make_demo_assets --PARTS $*,

parts/vae parts/clip: parts/chests
parts/decoder: parts/vae
parts/quick: parts/decoder
parts/bert: parts/clip
parts/uvit parts/unet parts/vit: parts/decoder parts/clip
parts/prior: parts/vit parts/bart

# two tests at a time, too: most of them hold one core
IN_TWO_PROCESSES = --numprocesses 2 --dist worksteal

test: .venv/installed-test
	$(HALF_THE_CORES) $(RUN) -m pytest $(IN_TWO_PROCESSES)

test-oldest: .venv-oldest/installed
	$(HALF_THE_CORES) $(OLDEST)/python -m pytest $(IN_TWO_PROCESSES)

utility: .venv/installed
	$(RUN) -m benchmarks.utility

bench: .venv/installed
	$(RUN) -m benchmarks.peers $(if $(filter cuda%,$(DEVICE)),--DEVICE $(DEVICE) --SIZES paper)

soak: .venv/installed
	$(RUN) -m tests.soak

lint: .venv/installed-lint
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

lock: .venv/installed-test
	$(RUN) -m pip freeze --exclude-editable > requirements-tested.txt

clean:
	rm -rf demo open
