# Everything a person does with this tree. `make` alone lists it.
# Each target installs what it needs first (scripts/setup.sh says what, and is quick when nothing is missing).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO := scripts/cargo.sh
# runs what cargo builds as root, with a bpffs of its own
ROOT_CARGO := $(CARGO) --config "target.'cfg(all())'.runner = '$(CURDIR)/scripts/run-as-root.sh'"
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
TRIPLE := $(shell uname -m)-unknown-linux-gnu
# --target always: build scripts must not get the crt-static below
BIN_DIR := $(TARGET_DIR)/$(TRIPLE)/release
# libelf.a and libz.a of the -dev packages
STATIC_LIBS := /usr/lib/$(shell uname -m)-linux-gnu
STATIC := LIBBPF_SYS_LIBRARY_PATH=$(STATIC_LIBS) RUSTFLAGS="-C target-feature=+crt-static"
BPF_SOURCES := $(wildcard bpf/c/*.c bpf/c/*.h)
SCRIPTS := $(filter-out %/needs-tcx,$(wildcard scripts/*.sh tests/vm/*.sh tests/vm/guest/*)) .ci/run
export PODGATE_BIN_DIR := $(abspath $(BIN_DIR))

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## install what any target here needs (the targets do it for themselves)
	@scripts/setup.sh build demo test lint vm

.PHONY: setup-build setup-demo setup-test setup-lint setup-vm
setup-build setup-demo setup-test setup-lint setup-vm: setup-%:
	@scripts/setup.sh build $*

.PHONY: build
build: setup-build ## podgate, policyd and podgatectl as static release binaries
	@# One call, so that all three share what they use: other features would be another build of it.
	$(STATIC) $(CARGO) build --release --target $(TRIPLE) --bins -p podgate-cni -p policyd -p podgatectl --features policyd/static
	@ls -l $(BIN_DIR)/podgate $(BIN_DIR)/policyd $(BIN_DIR)/podgatectl

# another name: make image IMAGE=registry.example/podgate:mine
IMAGE ?= ghcr.io/podgate/podgate:0.1.0
IMAGE_ARCHIVE := $(TARGET_DIR)/image/podgate.tar

.PHONY: image
image: build ## the container image as an OCI archive, without a container tool
	@scripts/image.sh $(BIN_DIR) $(IMAGE) $(IMAGE_ARCHIVE)

.PHONY: deploy-lint
deploy-lint: setup-test ## render deploy/ with the real helm and kustomize and check what comes out
	$(CARGO) test -q -p podgate-tests --test runtime_deploy

.PHONY: demo
demo: setup-demo ## the example worlds: real packets between real namespaces, who reaches whom and why (root)
	@scripts/preflight.sh
	@$(MAKE) build
	@scripts/preflight.sh programs $(BIN_DIR)/policyd
	@scripts/demo.sh $(BIN_DIR) $(WORLD)

.PHONY: test
test: setup-test ## all tiers: unit, kernel, runtime and cluster (root)
	@scripts/preflight.sh runtime
	@$(MAKE) build
	@scripts/preflight.sh programs $(BIN_DIR)/policyd
	@scripts/test.sh unit kernel runtime cluster

.PHONY: test-unit
test-unit: setup-test ## the tier that needs nothing
	@scripts/test.sh unit

.PHONY: test-kernel
test-kernel: setup-test ## the programs in this kernel, packets between namespaces (root)
	@scripts/preflight.sh
	@$(MAKE) build
	@scripts/preflight.sh programs $(BIN_DIR)/policyd
	@scripts/test.sh kernel

.PHONY: test-fuzz
test-fuzz: setup-test ## the programs against random and damaged frames: PODGATE_FUZZ_SECONDS=3600 make test-fuzz (root)
	@scripts/preflight.sh
	@$(ROOT_CARGO) test --workspace --test kernel_fuzz -- --nocapture

.PHONY: test-flood
test-flood: setup-test ## live traffic while policyd is killed and all changes: PODGATE_FLOOD_SECONDS=3600 make test-flood (root)
	@scripts/preflight.sh
	@$(MAKE) build
	@$(ROOT_CARGO) test --workspace --test kernel_flood -- --nocapture

.PHONY: test-runtime
test-runtime: setup-test ## pods made by containerd with the chain installed (root)
	@scripts/preflight.sh runtime
	@$(MAKE) build
	@scripts/test.sh runtime

.PHONY: test-cluster
test-cluster: setup-test ## a real Kubernetes on this machine: policies by kubectl, pods by the kubelet (root)
	@scripts/preflight.sh runtime
	@$(MAKE) build
	@scripts/test.sh cluster

.PHONY: test-differences
test-differences: setup-test ## random services beside the real kube-proxy, in both of its modes (root)
	@scripts/preflight.sh runtime
	@$(MAKE) build
	@scripts/test.sh differences

.PHONY: conformance
conformance: setup-test ## the conformance suite of ClusterNetworkPolicy with its own waiting times; writes its report to docs (root)
	@scripts/preflight.sh runtime
	@$(MAKE) image
	@PODGATE_WRITE_CONFORMANCE=1 PODGATE_CLUSTER_BIN=$$(scripts/cluster-programs.sh) \
	  $(ROOT_CARGO) test --workspace --test cluster_conformance -- --nocapture

# the form that CI runs, of 5.10 and 6.1: make test-vm VM=short; other kernels: make test-vm KERNELS="6.12 newest"
VM ?= long
KERNELS ?=

.PHONY: test-vm
test-vm: setup-test setup-vm ## podgate on other kernels, booted under software emulation: 5.10 to the newest
	@$(MAKE) build
	@scripts/test-vm.sh $(VM) $(BIN_DIR) $(KERNELS)

.PHONY: lint
lint: setup-lint ## rustfmt, clippy, clang-format, shellcheck, cargo deny, new commits' messages: nothing is changed
	$(CARGO) fmt --all --check
	clang-format --dry-run --Werror $(BPF_SOURCES)
	shellcheck $(SCRIPTS)
	scripts/lint-commits.sh
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	scripts/deny.sh

.PHONY: fmt
fmt: setup-lint ## format the Rust and the C in place
	$(CARGO) fmt --all
	clang-format -i $(BPF_SOURCES)

.PHONY: bench
bench: setup-test ## what a packet, a chained ADD and an event of the cluster cost on this machine (root)
	@scripts/preflight.sh
	@$(MAKE) build
	@$(ROOT_CARGO) test -q -p podgate-bpf --test cost -- --nocapture
	@$(ROOT_CARGO) bench -q --profile dev -p podgate-tests --bench services
	@$(ROOT_CARGO) bench -q --profile dev -p podgate-tests --bench add_latency
	@$(CARGO) bench -q -p podgate-policy --bench growth
	@$(CARGO) bench -q -p podgate-policy --bench engine
	@$(ROOT_CARGO) bench -q -p podgate-tests --bench event_to_map
	@$(CARGO) bench -q -p podgate-tests --bench manifests

.PHONY: bench-cluster
bench-cluster: setup-test ## policyd against a real API server with thousands of pods: memory, CPU, latency (root)
	@scripts/preflight.sh runtime
	@$(MAKE) build
	@PODGATE_CLUSTER_BIN=$$(scripts/cluster-programs.sh) $(ROOT_CARGO) bench -q --profile dev -p podgate-tests --bench cluster_scale

.PHONY: clean
clean: ## remove what was built
	$(CARGO) clean
