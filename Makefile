# Everything a developer or CI runs. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
ARCH    ?= $(patsubst x86_64,amd64,$(patsubst aarch64,arm64,$(shell uname -m)))
IMAGE   ?= ghcr.io/kubectl-yurt/yurtd:v$(VERSION)
PROFILE ?= release

.PHONY: help build fmt lint deny test test-unit test-kernel fuzz tools image plugin print-image completions docs dist clean

# `yurtd` leaves its image for a host with another libc, so it is linked statically. glibc's static form cannot look
# names up through NSS; the program has its own resolver.
TRIPLE_amd64 := x86_64-unknown-linux-gnu
TRIPLE_arm64 := aarch64-unknown-linux-gnu
TRIPLE       := $(TRIPLE_$(ARCH))
HOST_TRIPLE  := $(shell rustc -vV | sed -n 's/^host: //p')
PROFILE_DIR  := $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# Native builds go without --target, so that they share their dependencies with the tests.
CROSS        := $(if $(filter-out $(HOST_TRIPLE),$(TRIPLE)),--target $(TRIPLE))
OUTPUT       := target/$(if $(CROSS),$(TRIPLE)/)$(PROFILE_DIR)
PROGRAMS     := yurtd yurtd-keeper yurtd-cloud
BINARIES     := $(addprefix $(OUTPUT)/,$(PROGRAMS))
IMAGE_TAR    := target/image/yurtd-$(ARCH).tar
# Another profile is quicker to try.
DIST_PROFILE      ?= release
DIST              := target/dist/kubectl-yurt-linux-$(ARCH).tar.gz
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
# arm64 on another machine: Debian's gcc-aarch64-linux-gnu and libc6-dev-arm64-cross, `rustup target add`.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER ?= aarch64-linux-gnu-gcc
export CC_aarch64_unknown_linux_gnu ?= aarch64-linux-gnu-gcc

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

build: ## Build everything (debug)
	cargo build --locked --workspace

fmt: ## Format
	cargo fmt --all

lint: tools ## Format check, and clippy: warnings are errors
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

deny: tools ## Licences, sources and banned crates
	cargo deny --locked check --deny unmatched-skip --deny unnecessary-skip --deny license-not-encountered bans licenses sources

# The story is played with the build for development here, which shares its dependencies with the tests and has overflow
# checks and debug assertions on; `make demo` and `make test-e2e` play it with the release build.
test: lint deny test-unit test-kernel test-torture ## Everything that CI runs; root for the kernel tests and the story
	$(MAKE) test-e2e PROFILE=dev
	@echo 'make test: all passed'

test-unit: ## Unit and in-process tests
	cargo test --locked --workspace --exclude yurt-tests
	cargo test --locked --package yurt-tests --lib --bins

# What changes a kernel's rules, addresses and mounts runs in namespaces of its own. The one test left out wants a systemd
# user instance; the story tries the same code against the system's.
test-kernel: ## The tests that need namespaces of their own (root)
	@if [ "$$(id --user)" != 0 ]; then \
	  if [ "$$CI" = true ]; then echo 'error: CI must run the kernel tests as root' >&2; exit 1; fi; \
	  echo 'skipped: the kernel tests need root'; exit 0; fi; \
	$(TESTBED) deps && \
	unshare --net --mount sh -c 'ip link set lo up && \
	  cargo test --locked --workspace --exclude yurt-tests --lib -- --ignored --skip a_real_systemd --test-threads=1 && \
	  cargo test --locked --package yurt-tests --lib --bins -- --ignored'

# libFuzzer with the pinned compiler: coverage is asked for by flags that a stable compiler has, of our crates alone
# (`fuzz/rustc`), so that the build of everything else is shared. A sample of the same is in `test-unit`.
FUZZ_RUNS    ?= 200000
FUZZ_TARGETS ?= $(notdir $(wildcard fuzz/corpus/*))
FUZZ_PROFILE ?= fuzz
FUZZ_DIR     := target/fuzz-corpus
fuzz: ## Fuzz every parser of what comes over a wire (FUZZ_RUNS=200000 inputs each, FUZZ_TARGETS="…"; C++ compiler)
	RUSTC_WORKSPACE_WRAPPER='$(CURDIR)/fuzz/rustc' cargo build --locked --profile $(FUZZ_PROFILE) \
	  --package yurt-fuzz --features libfuzzer --bin fuzz
	@set -e; program=$$PWD/target/$(if $(filter dev,$(FUZZ_PROFILE)),debug,$(FUZZ_PROFILE))/fuzz; \
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p $(FUZZ_DIR)/$$target $(FUZZ_DIR)/failures; echo "fuzz: $$target"; \
	  FUZZ_TARGET=$$target "$$program" -runs=$(FUZZ_RUNS) -seed=1 -verbosity=0 -print_final_stats=1 -timeout=10 \
	    -artifact_prefix=$(FUZZ_DIR)/failures/$$target- $(FUZZ_DIR)/$$target fuzz/corpus/$$target; \
	done

# One version of everything that is not part of the Rust toolchain.
CARGO_DENY := 0.20.2
tools: ## Install what the checks need: rustfmt, clippy, cargo-deny
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
	@cargo deny --version 2>/dev/null | grep -qF ' $(CARGO_DENY)' || \
	  cargo install --locked --debug --no-default-features --version $(CARGO_DENY) cargo-deny

image: ## Build target/image/yurtd-$(ARCH).tar (static, no daemon; ARCH=amd64|arm64 PROFILE=release|dev)
	@test -n '$(TRIPLE)' || { echo 'error: ARCH must be amd64 or arm64, not $(ARCH)' >&2; exit 2; }
	for program in $(PROGRAMS); do \
	  cargo rustc --locked --profile $(PROFILE) $(CROSS) --package yurtd --bin $$program -- \
	    -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,-Map=$(OUTPUT)/$$program.map || exit; \
	done
	@for program in $(BINARIES); do \
	  ! readelf --program-headers $$program | grep -q INTERP || { echo "error: $$program is not static" >&2; exit 1; }; \
	done
	image/pack.sh $(ARCH) $(IMAGE) $(IMAGE_TAR) $(BINARIES)
	@echo '$(IMAGE) is in $(IMAGE_TAR)'

docs: ## Write what of docs/ is generated: metrics.md
	YURT_WRITE_DOCS=1 cargo test --quiet --locked --package yurt-hub --lib the_document_says_what_is_exported

# The folder as krew would lay it out. Linked against the machine's libc, which looks servers' names up; plugin and
# daemon share the build of what they have in common.
plugin: ## Build the plugin into target/plugin/ (ARCH=amd64|arm64 PROFILE=release|dev)
	@test -n '$(TRIPLE)' || { echo 'error: ARCH must be amd64 or arm64, not $(ARCH)' >&2; exit 2; }
	cargo build --locked --profile $(PROFILE) $(CROSS) --package kubectl-yurt
	@mkdir -p target/plugin
	@install -m 755 $(OUTPUT)/kubectl-yurt completions/kubectl_complete-yurt target/plugin/
	@echo 'the plugin is in target/plugin: put this folder on the PATH'

completions: ## Write completions/ anew from the plugin's command line
	cargo build --locked --package kubectl-yurt
	@mkdir -p completions
	target/debug/kubectl-yurt completion bash > completions/kubectl-yurt.bash
	target/debug/kubectl-yurt completion zsh > completions/_kubectl-yurt
	target/debug/kubectl-yurt completion fish > completions/kubectl-yurt.fish
	target/debug/kubectl-yurt completion kubectl > completions/kubectl_complete-yurt
	chmod +x completions/kubectl_complete-yurt

# The same sources give the same bytes: paths of this machine are mapped away, times are those of the commit.
dist: ## Build target/dist/kubectl-yurt-linux-$(ARCH).tar.gz, the archive that .krew.yaml names (ARCH=amd64|arm64)
	@test -n '$(TRIPLE)' || { echo 'error: ARCH must be amd64 or arm64, not $(ARCH)' >&2; exit 2; }
	RUSTFLAGS='--remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo' \
	  cargo build --locked --profile $(DIST_PROFILE) --target $(TRIPLE) --package kubectl-yurt
	@rm -rf target/dist/root && mkdir -p target/dist/root
	@install -m 755 target/$(TRIPLE)/$(DIST_PROFILE)/kubectl-yurt completions/kubectl_complete-yurt target/dist/root/
	@install -m 644 LICENSE target/dist/root/
	@tar --create --format=ustar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@$(SOURCE_DATE_EPOCH) \
	  --directory target/dist/root LICENSE kubectl-yurt kubectl_complete-yurt | gzip --no-name --best > $(DIST)
	@rm -r target/dist/root
	@cd $(dir $(DIST)) && sha256sum $(notdir $(DIST))

print-image: ## Print the image's reference
	@echo $(IMAGE)

clean: ## Remove build output
	cargo clean

include tests/testbed.mk
