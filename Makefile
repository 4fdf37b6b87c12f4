# The environment lives in .venv; each set of requirements is installed when first needed, from its hashed lock.
PYTHON ?= python3
BIN := .venv/bin
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-annotate --no-header
# A model bears its folder's name in lower case, of what addresses allow; models/apple is the one that ships.
NAME = $(or $(patsubst apple,my-apple,$(shell basename "$$(realpath -m -- "$(PHOTOS)" 2>/dev/null)" | LC_ALL=C tr A-Z a-z \
	| LC_ALL=C tr -cs 'a-z0-9\n' - | sed 's/^-//; s/-$$//')),photos)
MODEL ?= models/$(NAME)
RUN ?= runs/$(notdir $(MODEL))
# Container images: BASE_IMAGE=... for another base, BUILD_FLAGS=... for whatever else the engine is to be told.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
ENGINE ?= $(or $(shell command -v podman),$(shell command -v docker))
# podman leaves a HEALTHCHECK out of images of its own format.
BUILD = BUILDAH_FORMAT=docker $(ENGINE) build $(BUILD_FLAGS) $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
	--build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD)
OVERLAY ?= local
STUBS := serving/pb/ringo/v1/picture_service_pb2_grpc.py

.DEFAULT_GOAL := help
.PHONY: help run test fuzz lint format train bench stubs images deploy cluster lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/serve .venv/train $(STUBS) ## serve the shipped generator on http://localhost:8080
	@$(BIN)/python -m serving run

test: .venv/dev $(STUBS) ## run all tests
	$(BIN)/python -m pytest

fuzz: .venv/dev $(STUBS) ## send the API 5,000 requests made up from its description
	FUZZ_REQUESTS=5000 $(BIN)/python -m pytest tests/test_openapi.py -k fuzzer

lint: .venv/dev $(STUBS) ## check style, types and who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile.serve Dockerfile.train

format: .venv/dev ## put the code into its standard form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

train: .venv/train ## fit a GAN on PHOTOS=folder and export it; FLAGS="--size 128" as in `fit --help`
	@test -n "$(PHOTOS)" || { echo "Say which photos: make train PHOTOS=folder"; exit 2; }
	$(BIN)/python -m training fit --photos "$(PHOTOS)" --out "$(RUN)" $(FLAGS)
	$(BIN)/python -m training export "$(RUN)" --to "$(MODEL)"

bench: .venv/dev $(STUBS) ## measure speed, as ratios, and peak memory
	$(BIN)/python -m benchmarks.generator
	$(BIN)/python -m benchmarks.paint
	$(BIN)/python -m benchmarks.memory

stubs: .venv/serve $(STUBS) ## generate serving/pb from proto, for `python -m serving batch`

images: .venv/dev ## build the container images with podman or docker, and try them
	@test -n "$(ENGINE)" || { echo "Neither podman nor docker is on the PATH."; exit 2; }
	$(BUILD) -f Dockerfile.serve --target model -t ringo-model:$(VERSION) .
	$(BUILD) -f Dockerfile.serve --target serve -t ringo-serve:$(VERSION) .
	$(BUILD) -f Dockerfile.train -t ringo-train:$(VERSION) .
	CONTAINER_ENGINE=$(ENGINE) $(BIN)/python -m pytest tests/test_containers.py

deploy: ## apply k8s/overlays/OVERLAY (local) to the cluster of kubectl, and wait for it
	kubectl apply -k k8s/overlays/$(OVERLAY)
	kubectl -n ringo rollout status --timeout=10m deployment/model-server deployment/gateway deployment/batch

cluster: ## on a cluster of kind: deploy, paint, roll out, with the images of `make images` in docker
	tests/cluster.sh $(VERSION)

lock: .venv/dev ## resolve requirements/*.in anew; review the difference before you commit it
	$(UV_COMPILE) --upgrade requirements/dev.in -o requirements/dev.txt
	$(UV_COMPILE) requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	$(UV_COMPILE) requirements/serve.in -c requirements/dev.txt -o requirements/serve.txt
	$(UV_COMPILE) requirements/train.in -c requirements/dev.txt -o requirements/train.txt
	$(UV_COMPILE) requirements/train-gpu.in -c requirements/dev.txt -o requirements/train-gpu.txt
	$(UV_COMPILE) --no-deps requirements/messages.in -c requirements/dev.txt -o requirements/messages.txt

clean: ## remove the environment and all caches; runs/ stays
	rm -rf .venv .*_cache .hypothesis serving/pb
	find . -name __pycache__ -prune -exec rm -rf {} +

# For protoc proto/ lies at serving/pb/, so that the modules it makes import each other by the names they have here.
$(STUBS): proto/ringo/v1/picture_service.proto .venv/build
	@$(BIN)/python -m grpc_tools.protoc -Iserving/pb=proto --python_out=. --grpc_python_out=. $<
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Ringo needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/%: requirements/%.txt | $(BIN)/python
	@echo "Installing $< into .venv: a minute or two ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@
