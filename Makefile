# Everything a newcomer needs: `make demo` runs the main job, `make test` passes the tests. Both set themselves up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test fuzz lint types docs clean

demo: $(STAMP)
	$(BIN)/deploykit export tiny-convnext --ort --openvino

test: $(STAMP)
	$(BIN)/pytest -m "not slow and not gpu" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# MINUTES=60 CASES=100000 LOADERS="onnxruntime pt2" choose how long, how many of each, and which.
fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10) --cases $(or $(CASES),10000) $(LOADERS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python scripts/generate.py --check

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python scripts/generate.py

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[export,openvino,trt-rtx,diffusion,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist deploy
