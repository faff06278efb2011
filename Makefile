# Short names for what is done often; each is one or two plain commands, and all of them work without make.
# cargo finds libtorch in .deps/ by itself (.cargo/config.toml), so after `make setup` plain cargo commands do too.

PYTHON ?= python3
CARGO ?= cargo

export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup train-for setup-runtime setup-cuda setup-python-tests build quickstart runtime test test-scale test-page demo fmt lint clean-demo test-clients

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-20s %s\n", $$1, $$2 }'

setup: ## fetch libtorch (CPU), ONNX Runtime and a small LLM into .deps/ (660 MB, a minute or less; TORCH=2.11: another PyTorch's beside it)
	@$(PYTHON) scripts/setup.py $(if $(TORCH),--torch $(TORCH))

setup-runtime: ## fetch only what exporting and answering need: ONNX Runtime and the LLM, no libtorch (130 MB)
	@$(PYTHON) scripts/setup.py --runtime

setup-cuda: ## the same with CUDA, for GPU servers (2.7 GB)
	@$(PYTHON) scripts/setup.py --cuda

setup-python-tests: ## fetch the ONNX checker into .deps/python for the tests that use it
	@$(PYTHON) scripts/setup.py --python-tests

# Two commands, because one would unite features: models, export and runtime build and pass without libtorch.
build: setup ## build everything
	$(CARGO) build --release
	$(CARGO) build --release -p train

train-for: ## build `train` against another PyTorch: TORCH=2.11, or LIBTORCH=/path/to/torch of an installed one
	@$(PYTHON) scripts/train_for.py $(if $(TORCH),--torch $(TORCH)) $(if $(LIBTORCH),--libtorch $(LIBTORCH))

# Everything that must pass before a change lands.
test: setup setup-python-tests lint ## run all checks and tests
	scripts/check-packages.sh
	$(PYTHON) scripts/train_for.py --torch 2.11 --check
	$(CARGO) test --release
	$(CARGO) test --release -p models -p train -p c10d -p tests --features tests/torch
	$(PYTHON) runtime/deploy/test_ros2_bridge.py

test-scale: setup ## test what needs programs beside ours, from PyPI (PARTS="torchrun ..."; all by default); no part of `test`
	scripts/test-scale.sh $(PARTS)

test-clients: ## drive other people's clients against the server, from PyPI and npm (PARTS="plain npm ..."; all by default; BUNDLE, INDEX); no part of `test`
	scripts/test-clients.sh $(PARTS)

test-page: ## drive the page of a running server in Chromium (URL=http://127.0.0.1:8080; needs chromium-driver and selenium; AXE: axe-core's axe.min.js)
	$(PYTHON) runtime/web/test_page.py --url $(or $(URL),http://127.0.0.1:8080) $(if $(AXE),--axe $(AXE))

quickstart: setup-runtime ## build without libtorch and answer with the general student in models/pretrained/, nothing trained
	scripts/quickstart.sh

runtime: setup-runtime setup-python-tests ## build and test what runs without libtorch: models, export, runtime
	$(CARGO) build --release
	$(CARGO) test --release

demo: setup ## train, export, index and query on the data in data/, with the SmolLM2-135M that setup brought
	scripts/demo.sh

fmt: ## format
	$(CARGO) fmt --all

lint: setup ## format and lints, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets --features tests/torch -- -D warnings

clean-demo: ## remove what the demo wrote
	rm -rf .demo
