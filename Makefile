# Each target sets up what it needs in .venv; a second run skips what is there.

PYTHON ?= python3
JOBS ?= 2
SEED ?= 0
SEEDS ?= 3
NETWORKS ?= 5000

VENV := .venv
KERAS := .venv-keras
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

ON_KERAS := env OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo compare-demo test test-browser test-keras keras-zoo check docs pictures format train soak fuzz fuzz-files \
	bench-cut bench-oracle bench-score bench-workers bench-lenet bench-report bench-sparse export-zoo \
	versus vgg clean bench-dead bench-masks sparsify-zoo

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime  ## prune a LeNet-5 trained on MNIST
	$(BIN)/python examples/mnist/demo.py

test: $(VENV)/.test $(KERAS)/.created  ## run the tests, in JOBS processes; some on TensorFlow and JAX too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS)
	printf '%s\n' tensorflow jax | xargs -P $(JOBS) -I BACKEND $(ON_KERAS) KERAS_BACKEND=BACKEND \
		$(KERAS)/bin/python -m pytest -q -p no:cacheprovider -m smoke tests/with_keras

test-browser: $(VENV)/.test  ## open the report in the Chromium of this machine (or in CHROMIUM)
	OMP_NUM_THREADS=1 SECATEURS_BROWSER=required $(BIN)/python -m pytest -q tests/test_report_browser.py

check: $(VENV)/.dev  ## check format, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

docs: $(VENV)/.docs  ## build the site in site/; any warning fails
	$(BIN)/typer secateurs.cli.app utils docs --name secateurs --title "The command line" \
		--output docs/reference/commands.md >/dev/null
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --jobs $(JOBS) docs site

test-keras: $(KERAS)/.created  ## all tests of Keras models on TensorFlow, JAX and PyTorch
	for backend in tensorflow jax torch; do \
		$(ON_KERAS) KERAS_BACKEND=$$backend $(KERAS)/bin/python -m pytest -q -n $(JOBS) tests/with_keras \
			|| exit 1; \
	done

keras-zoo: $(KERAS)/.created  ## ten networks of keras.applications, cut, and loaded on every backend
	$(ON_KERAS) PYTHONPATH=benchmarks:examples/mnist $(KERAS)/bin/python benchmarks/keras_zoo.py \
		--out docs/results/keras-zoo.md

pictures: $(VENV)/.runtime  ## draw the pictures of the docs anew, from a real trace
	$(BIN)/python docs/pictures.py

format: $(VENV)/.dev  ## format the code and mend what lint can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

compare-demo: $(VENV)/.test  ## compare all criteria on a LeNet-5 trained on MNIST, in JOBS processes
	OMP_NUM_THREADS=1 PYTHONPATH=examples/mnist $(BIN)/secateurs compare --model lenet:pretrained \
		--input-shape 1,1,28,28 --train mnist --evaluate mnist --loss cross_entropy \
		--engine processes --jobs $(JOBS) --overwrite --out runs/compared

train: $(VENV)/.runtime  ## train the LeNet-5 of the demo from SEED
	$(BIN)/python examples/mnist/train.py --seed $(SEED)

soak: $(VENV)/.test  ## kill a run at 20 random moments, and resume it to the same result
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py

fuzz: $(VENV)/.test  ## the laws on NETWORKS random networks, drawn from SEED, in JOBS processes
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.generated --networks $(NETWORKS) --seed $(SEED) --jobs $(JOBS)

fuzz-files: $(VENV)/.test  ## read 1,000 broken files, made from SEED
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --files 1000 --seed $(SEED)

bench-cut: $(VENV)/.bench  ## time trace, plan and apply against Torch-Pruning
	PYTHONPATH=benchmarks $(BIN)/python benchmarks/cut_time.py

bench-score: $(VENV)/.test  ## time every criterion against a plain forward and backward
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/score_time.py

bench-workers: $(VENV)/.ray  ## time the oracle on one Ray worker and on two, one of them killed
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/compare_workers.py

bench-oracle: $(VENV)/.test  ## time the exact oracle against one forward per unit
	PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/oracle_time.py --share 16 \
		lenet5 vgg16 resnet20 vit_tiny_blocks --out docs/results/oracle.md
	PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/oracle_time.py --share 128 vit_tiny \
		--out docs/results/oracle.md

bench-dead: $(VENV)/.test  ## thin a LeNet-5 to 1% of its weights, and time it without its dead units
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/dead_units.py \
		$(firstword $(SPLICED:%=--weights=%)) --out docs/results/dead-units.md

sparsify-zoo: $(VENV)/.test  ## dynamic network surgery on 24 networks: masks, dead units, sparse files
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/sparsify_zoo.py \
		--out docs/results/sparsify-zoo.md

bench-masks: $(VENV)/.test  ## time a training step with masks against a plain one
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/mask_step.py

large: $(VENV)/.test  ## trace Llamas of 7 and 70 billion parameters by their shapes; a real one of 1 billion
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks $(BIN)/python -W ignore benchmarks/large.py

bench-lenet: $(VENV)/.runtime  ## the demo's error and latency at 20% and 10% of the MACs, 3 seeds
	PYTHONPATH=examples/mnist $(BIN)/python benchmarks/lenet_seeds.py

export-zoo: $(VENV)/.test  ## export 15 pruned networks as ONNX and .pt2, and compare outputs
	PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/export_zoo.py

bench-report: $(VENV)/.test  ## size and load time of two reports in Chromium, and pictures of them
	PYTHONPATH=.:benchmarks:examples/mnist $(BIN)/python benchmarks/report_page.py

# what `make splicing` keeps, where it has run; else networks are pruned for this
SPLICED = $(wildcard .cache/spliced/lenet5-spliced-108x-seed?.safetensors)
bench-sparse: $(VENV)/.test  ## sizes of sparse files, other codings, layers in compressed rows
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/sparse_files.py \
		$(SPLICED:%=--network %) --out docs/results/sparse-files.md

versus: $(VENV)/.bench  ## prune beside Torch-Pruning at equal MACs and updates, in JOBS processes
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/versus.py \
		--jobs $(JOBS) --out docs/results/versus.md

vgg: $(VENV)/.test  ## transfer a VGG to a task of two classes and prune its feature maps
	PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/vgg_recipe.py \
		--out docs/results/vgg.md

.PHONY: correlation flops iterative criteria-versus reproduce reproduce-quick
# QUICK=1 is a smaller form, whose pages go to runs/quick
PAGES := $(if $(QUICK),runs/quick,docs/results)
REPRODUCE := OMP_NUM_THREADS=1 PYTHONPATH=benchmarks:examples/mnist \
	$(BIN)/python
WITH := $(if $(QUICK),--quick) --seeds $(SEEDS) --jobs $(JOBS)
RUNS := $(if $(QUICK),runs/quick,runs)

correlation: $(VENV)/.test  ## every criterion against the exact oracle, on six networks
	$(REPRODUCE) benchmarks/correlation.py $(WITH) --folder $(RUNS)/correlation --out $(PAGES)/correlation.md

flops: $(VENV)/.test  ## pruning with and without FLOPs regularisation
	$(REPRODUCE) benchmarks/flops.py $(WITH) --results $(RUNS)/flops.jsonl --out $(PAGES)/flops.md

iterative: $(VENV)/.test  ## one cut against many, at equal updates
	$(REPRODUCE) benchmarks/iterative.py $(WITH) --folder $(RUNS)/iterative --out $(PAGES)/iterative.md

criteria-versus: $(VENV)/.bench  ## every criterion of Torch-Pruning beside its twin
	$(REPRODUCE) benchmarks/criteria_versus.py $(WITH) --results $(RUNS)/criteria-versus.jsonl \
		--out $(PAGES)/criteria-versus.md

reproduce: correlation flops iterative criteria-versus  ## the four above: three hours on 2 cores

reproduce-quick:  ## a small form of the four: ten minutes
	$(MAKE) reproduce QUICK=1

.PHONY: large obd
obd: $(VENV)/.test  ## Optimal Brain Damage on digits: predicted and true change, retraining
	$(REPRODUCE) benchmarks/obd_digits.py $(WITH) --results $(RUNS)/obd.jsonl --out $(PAGES)/obd.md

.PHONY: splicing splicing-quick splicing-full
splicing: $(VENV)/.test  ## dynamic network surgery: LeNets on MNIST, AlexNet at a quarter on CIFAR-10
	$(REPRODUCE) benchmarks/splicing.py $(WITH) --results $(RUNS)/splicing.jsonl \
		--out $(PAGES)/splicing.md

splicing-quick:  ## a small form of it: a minute
	$(MAKE) splicing QUICK=1

splicing-full: $(VENV)/.test  ## AlexNet at its widths, on a GPU
	$(REPRODUCE) benchmarks/splicing.py --net alexnet-full --jobs 1 --seeds $(SEEDS) \
		--results $(RUNS)/splicing-full.jsonl --out $(PAGES)/splicing-full.md

.PHONY: zoo
ONLY ?= *
zoo: $(VENV)/.zoo  ## the coverage table: every network of its list, cut, in JOBS processes
	PYTHONPATH=benchmarks:examples/mnist $(BIN)/python benchmarks/coverage_table.py \
		--jobs $(JOBS) --only "$(ONLY)" $(if $(AGAIN),--again) --out docs/coverage.md

.PHONY: keras-cifar
keras-cifar: $(KERAS)/.created  ## prune a Keras network trained on CIFAR-10 to half of its MACs, from SEED, on KERAS_BACKEND
	$(ON_KERAS) TF_NUM_INTRAOP_THREADS=1 PYTHONPATH=benchmarks:examples/mnist $(KERAS)/bin/python \
		benchmarks/keras_cifar.py --seed $(SEED) --out docs/results/keras-cifar.md

clean:  ## remove .venv and every cache
	rm -rf $(VENV) $(KERAS) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# TensorFlow and JAX, and behind them whatever .venv has
$(KERAS)/.created: $(VENV)/.test
	$(PYTHON) -m venv --clear $(KERAS)
	$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
		>"$$($(KERAS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/behind.pth"
	$(KERAS)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
		tensorflow-cpu jax
	touch $@

$(VENV)/.created:
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.runtime: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.runtime
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) --no-deps torch-pruning==1.6.1
	touch $@

$(VENV)/.zoo: $(VENV)/.bench
	$(PIP) transformers
	touch $@

$(VENV)/.ray: $(VENV)/.runtime
	$(PIP) --editable '.[ray]'
	touch $@

$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --editable '.[dev]'
	touch $@
