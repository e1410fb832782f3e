# Short verbs; each prints the real command, so it can be copied by a reader without make.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo

.PHONY: help setup demo test test-keras2 test-deploy deploy-install wheel-check gpu lint format types compat compat-ci compat-install families clean

help:  ## list the verbs
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: .venv/.ready  ## make .venv with everything in it

# uv makes the same environment faster; where it cannot be had, pip does. Bytecode is compiled here
# once: torch and TensorFlow are imported by every process of the tests, some of which may not write it themselves.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt uv && $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## draw a small catalogue, train on it, hand over the Keras twin and prove it
	$(BIN)/lightning fit --config configs/demo.yaml --trainer.default_root_dir $(RUN)

# A file's tests share fixtures that take minutes, so a file stays together.
test: setup  ## run the tests, two at a time, within 8 GB of memory
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# In compat-ci's oldest environment; where its Python is not installed, they are skipped and say so.
test-keras2: setup  ## run the tests that need a Keras 2 beside the Keras 3 of .venv
	SHELFTWIN_KERAS2_PYTHON="$$($(BIN)/python benchmarks/compat.py --python tf.keras-2.12)" && export SHELFTWIN_KERAS2_PYTHON && \
	  $(BIN)/python -m pytest tests/export/test_keras_to_torch.py tests/export/test_upgrade_keras.py tests/export/keras_file/test_advice.py tests/export/keras_file/test_layer_cases.py tests/export/worker/test_consumers.py tests/test_deploy.py -k keras2

deploy-install: setup  ## make the environments of those who have no torch: ONNX Runtime, LiteRT, OpenVINO, Node, TensorFlow.js
	$(BIN)/python -m tests.runtimes

# Without those environments, its tests skip and say so.
test-deploy: setup  ## run every block of docs/service/deploy.md as a stranger would
	$(BIN)/python -m pytest tests/test_deploy.py

wheel-check: setup  ## install the wheel with all it needs on Python 3.11, 3.12 and 3.13, and run the demo with it
	SHELFTWIN_WHEEL_PYTHONS="3.11 3.12 3.13" $(BIN)/python -m pytest tests/test_wheel.py

lint: setup  ## check style, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: setup  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup  ## check types
	$(BIN)/mypy

compat: setup  ## load one exported .h5 in every Keras generation; writes docs/compat.md (about 20 minutes, 15 GB)
	$(BIN)/python benchmarks/compat.py

compat-ci: setup  ## the same for the oldest and newest of both generations, with a small network
	$(BIN)/python benchmarks/compat.py --ci

compat-install: setup  ## make the environments of compat-ci
	$(BIN)/python benchmarks/compat.py --ci --install

families: setup  ## which of timm's families convert; writes docs/families.md
	$(BIN)/python benchmarks/networks/convertible_families.py --certify

gpu: setup  ## check and measure on a GPU all that waits for one
	$(BIN)/python benchmarks/training/gpu_check.py

clean:  ## remove the environment, caches and runs
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache runs
