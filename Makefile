# The environment is .venv. Each set of requirements is installed at its first use, from its hashed lock.
PYTHON ?= python3
BIN := .venv/bin
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-annotate --no-header
# The environments beside .venv find our packages in the current folder.
unexport PYTHONSAFEPATH
# A path may contain $, quotes and spaces.
override PHOTOS := $(value PHOTOS)
quote = '$(subst ','\'',$(1))'
model = $(or $(value MODEL),models/$(shell $(BIN)/python -IB training/names.py $(call quote,$(PHOTOS))))
run = $(or $(value RUN),runs/$(shell basename -- $(call quote,$(model))))
# argparse takes abbreviations, such as --dry.
DRY_RUN = $(filter -h --he% --dr%,$(FLAGS))
# Container images: BASE_IMAGE=... for another base, BUILD_FLAGS=... for other options of the engine.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
ENGINE ?= $(or $(shell command -v podman),$(shell command -v docker))
# podman omits HEALTHCHECK from images in its own format.
BUILD = BUILDAH_FORMAT=docker $(ENGINE) build $(BUILD_FLAGS) $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
	--build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD)
OVERLAY ?= local
SOAK_MINUTES ?= 30
PARTS ?= serve paint generator train # of `make bench`; scale and memory take 5 minutes each
# Each overlay with the Jobs that work on it.
K8S_SETS := local+train+paint+roll-back+load gpu+train-gpu+paint+roll-back+load production+train+paint-tls+roll-back+load canary+paint
K8S_RELEASES := 1.35.0 1.36.0 1.37.0
STUBS := serving/pb/ringo/v1/picture_service_pb2_grpc.py

.DEFAULT_GOAL := help
.PHONY: help run test fuzz chaos lint format policy audit sbom train bench stubs images deploy cluster lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/serve .venv/train $(STUBS) ## serve the bundled model on http://localhost:8080
	@$(BIN)/python -m serving run

# Each process takes whole files, so it starts the servers of a file once. The files of training, the slowest, come first.
test: .venv/dev $(STUBS) ## run the tests in two processes, without those of `make chaos`
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

fuzz: .venv/dev $(STUBS) ## send 20,000 random requests, 5,000 HTTP heads, messages and damaged photos
	FUZZ_REQUESTS=20000 FUZZ_HEADS=5000 FUZZ_MESSAGES=5000 FUZZ_FILES=5000 \
		$(BIN)/python -m pytest tests/serving/gateway/test_openapi.py tests/end_to_end/test_fuzz.py -k "fuzzer or test_fuzz"

chaos: .venv/dev $(STUBS) ## test faults and load for 25 minutes, and a soak of SOAK_MINUTES (30)
	SOAK_MINUTES=$(SOAK_MINUTES) $(BIN)/python -m pytest tests/faults -m chaos -s

lint: .venv/dev $(STUBS) ## check style, types and import layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile.serve Dockerfile.train
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive serving training

policy: .venv-policy/ready .venv/dev ## check manifests, Dockerfiles and workflows; needs kubectl
	@rm -rf build/policy && mkdir -p build/policy
	@for set in $(K8S_SETS); do overlay=$${set%%+*}; jobs=$$(echo "$${set#*+}" | tr + ' '); \
		{ kubectl kustomize "k8s/overlays/$$overlay" && \
		  for job in $$jobs; do echo --- && kubectl kustomize "k8s/jobs/$$job" || exit; done; } \
		  > "build/policy/$$overlay.yaml" || exit; done
	for release in $(K8S_RELEASES); do $(BIN)/kubernetes-validate --strict --quiet -k $$release build/policy/*.yaml || exit; done
	.venv-policy/bin/checkov --framework kubernetes --directory build/policy
	.venv-policy/bin/checkov --framework dockerfile --file Dockerfile.serve Dockerfile.train
	.venv-policy/bin/checkov --framework github_actions --directory .github

audit: .venv-audit/ready ## look up vulnerabilities of all locked packages; needs the network
	@failed=0; for lock in requirements/*.txt; do \
		echo "$$lock:"; \
		.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
			--requirement "$$lock" 2> .venv-audit/errors && cat .venv-audit/errors && continue; \
		if grep -qE 'not found on PyPI|ConnectionError|ServiceError' .venv-audit/errors; then \
			echo "Not audited: no vulnerability service is reachable ($$(tail -n 1 .venv-audit/errors))." >&2; exit 1; \
		fi; \
		cat .venv-audit/errors >&2; failed=1; \
	done; exit $$failed

sbom: .venv-audit/ready ## list the packages of each lock as a software bill of materials in build/sbom
	@mkdir -p build/sbom
	@for lock in serve messages train train-gpu; do .venv-audit/bin/cyclonedx-py requirements --output-reproducible \
		--output-file build/sbom/$$lock.json requirements/$$lock.txt || exit; done
	@echo "Wrote build/sbom: serve and messages are in ringo-serve, train or train-gpu in ringo-train."

format: .venv/dev ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

train: .venv/train ## fit a GAN on PHOTOS=folder and export it; FLAGS="--size 128" as in `fit --help`
	@test -n $(call quote,$(PHOTOS)) || { echo "PHOTOS is not set; run: make train PHOTOS=folder"; exit 2; }
	$(if $(filter --o%,$(FLAGS)),@echo "FLAGS has --out; set RUN=folder instead."; exit 2)
	$(BIN)/python $(if $(DRY_RUN),-B) -m training fit --photos=$(call quote,$(PHOTOS)) --out $(call quote,$(run)) $(FLAGS)
	$(if $(DRY_RUN),,$(BIN)/python -m training export $(call quote,$(run)) --to $(call quote,$(model)))

bench: .venv-bench/ready $(STUBS) ## measure speed, cost and memory, and write docs/benchmarks.md: half an hour; FLAGS=--quick: 8
	@$(if $(filter serve,$(PARTS)),command -v wrk,true) > /dev/null || { echo "wrk is not on the PATH; run: apt-get install wrk"; exit 2; }
	for part in $(PARTS); do .venv-bench/bin/python -m benchmarks.$$part $(FLAGS) || exit; done
	$(if $(findstring --quick,$(FLAGS)),,.venv-bench/bin/python -m benchmarks.page)

stubs: .venv/serve $(STUBS) ## generate serving/pb from proto/

images: .venv/dev $(STUBS) ## build and test the container images, with podman or docker
	@test -n "$(ENGINE)" || { echo "Neither podman nor docker is on the PATH; install one."; exit 2; }
	$(BUILD) -f Dockerfile.serve --target model -t docker.io/library/ringo-model:$(VERSION) .
	$(BUILD) -f Dockerfile.serve --target serve -t docker.io/library/ringo-serve:$(VERSION) .
	$(BUILD) -f Dockerfile.train -t docker.io/library/ringo-train:$(VERSION) .
	CONTAINER_ENGINE=$(ENGINE) $(BIN)/python -m pytest tests/deploy/test_containers.py tests/deploy/test_play.py

deploy: ## apply k8s/overlays/OVERLAY (local) with kubectl, and wait
	kubectl apply -k k8s/overlays/$(OVERLAY)
	kubectl -n ringo rollout status --timeout=10m deployment/model-server deployment/gateway deployment/batch

cluster: ## test deployment, rendering and roll-out on a kind cluster, with the images of `make images`
	tests/deploy/cluster.sh $(VERSION)

lock: .venv/dev ## resolve requirements/*.in again; review the difference
	$(UV_COMPILE) --upgrade requirements/dev.in -o requirements/dev.txt
	$(UV_COMPILE) requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	$(UV_COMPILE) requirements/serve.in -c requirements/dev.txt -o requirements/serve.txt
	$(UV_COMPILE) requirements/telemetry.in -c requirements/dev.txt -o requirements/telemetry.txt
	$(UV_COMPILE) requirements/train.in -c requirements/dev.txt -o requirements/train.txt
	$(UV_COMPILE) requirements/train-gpu.in -c requirements/dev.txt -o requirements/train-gpu.txt
	@mkdir -p build && sed -n '/^opentelemetry/d; s/^\([a-z].*\) \\$$/\1/p' requirements/dev.txt > build/pins.txt
	$(UV_COMPILE) requirements/bench.in -c build/pins.txt -o requirements/bench.txt
	$(UV_COMPILE) --upgrade requirements/audit.in -o requirements/audit.txt
	$(UV_COMPILE) --upgrade requirements/policy.in -o requirements/policy.txt
	$(UV_COMPILE) --no-deps requirements/messages.in -c requirements/dev.txt -o requirements/messages.txt

clean: ## remove the environments and all caches; runs/ stays
	rm -rf .venv .venv-* build .*_cache .hypothesis serving/pb
	find . -name __pycache__ -prune -exec rm -rf {} +

# protoc sees proto/ as serving/pb/, so that the generated modules import each other by these names.
$(STUBS): proto/ringo/v1/picture_service.proto .venv/build
	@$(BIN)/python -m grpc_tools.protoc -Iserving/pb=proto --python_out=. --grpc_python_out=. $<
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Ringo needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }
	@pwd > "$$(echo .venv/lib/python3*/site-packages)/ringo.pth" # finds our packages with PYTHONSAFEPATH=1, too

# Tools that need other releases of our packages have environments of their own.
.venv-%/ready: requirements/%.txt | $(BIN)/python
	@echo "Installing $< into .venv-$*: half a minute ..."
	@rm -rf .venv-$* && $(BIN)/python -m venv .venv-$*
	@.venv-$*/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.venv/%: requirements/%.txt | $(BIN)/python
	@echo "Installing $< into .venv: a minute or two ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@
