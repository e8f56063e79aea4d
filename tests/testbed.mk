# The testbed and the story: a real cluster on this machine. Root is needed.
TESTBED = cargo run --quiet --locked -p yurt-tests --bin testbed --

.PHONY: bench-hub bench-rig cluster clean-cluster demo size test-e2e test-flannel test-torture torture can-run

# Said before minutes of building, not after.
can-run:
	@[ "$$(id --user)" = 0 ] || { echo 'error: a cluster of machines on this one needs root; run this as root' >&2; exit 1; }
	@[ -n "$$YURT_TESTBED_BIN" ] || command -v go >/dev/null || \
	  { echo 'error: Go 1.26 must be on the PATH: the cluster is built from source (https://go.dev/dl)' >&2; exit 1; }

cluster: can-run ## Start a two-node cluster, leave it running, say how to reach it
	$(TESTBED) up

clean-cluster: ## Remove the cluster
	$(TESTBED) down

demo: can-run image plugin ## Play the story S1-S8 on a new cluster, step by step
	$(TESTBED) demo

size: can-run image plugin ## What the programs weigh: on the disk, by crate, and in memory on a cluster
	@for program in $(PROGRAMS); do \
	  echo; echo "$$program: $$(stat -c %s $(OUTPUT)/$$program) bytes"; $(TESTBED) sections $(OUTPUT)/$$program.map --rows 20; \
	done
	$(TESTBED) demo --only S4,size

test-flannel: can-run image plugin ## Convert, cut and power cut on a cluster whose network is flannel
	$(TESTBED) demo --only flannel

bench-hub: can-run image plugin ## The hub beside the API server and a vanilla node: speed, uplink, memory (ten minutes)
	cargo build --locked --release -p yurt-load
	$(TESTBED) demo --only bench-vanilla,S4,bench-hub

# The same two questions where nothing else is: no machines and not the testbed's lock. FIGURES takes what
# `yurt-torture --help` says (`--no-lists`, `--rounds 3`, `--beside ANOTHER-BUILD`).
FIGURES ?=
bench-rig: can-run ## The hub beside the API server and a relay with nothing in it: speed, CPU, context switches (two minutes)
	cargo build --locked --release -p yurtd --bin yurtd
	cargo build --locked --release -p yurt-load
	cargo run --quiet --locked -p yurt-torture -- --yurtd $${CARGO_TARGET_DIR:-target}/release/yurtd --figures 5 \
	  --bulk 100 $(FIGURES)

test-e2e: image plugin ## The story and what must hold besides, as a test (a quarter of an hour)
	cargo test --locked -p yurt-tests --test story

# The hub between a real API server and clients written with client-go, in namespaces of its own: it needs no machines
# and not the testbed's lock. TORTURE takes what `yurt-torture --help` says (`--lenient`, `--rate 100`).
KILLS   ?= 1000
STORES  ?= 500
MINUTES ?= 60
TORTURE ?=
torture: can-run ## Kill the hub, damage its store, cut its link (KILLS=1000 STORES=500 MINUTES=60 SEED=…)
	cargo build --locked --release -p yurtd --bin yurtd
	cargo run --quiet --locked -p yurt-torture -- --yurtd $${CARGO_TARGET_DIR:-target}/release/yurtd --kills $(KILLS) \
	  --stores $(STORES) --seconds $$(( $(MINUTES) * 60 )) $(if $(SEED),--seed $(SEED)) $(TORTURE)

# Always the same one. Intermediate events are counted here and demanded by `make torture`.
test-torture: ## A sample of `make torture` (a minute; root)
	cargo build --locked -p yurtd --bin yurtd
	cargo run --quiet --locked -p yurt-torture -- --yurtd $${CARGO_TARGET_DIR:-target}/debug/yurtd --kills 12 \
	  --stores 19 --seconds 20 --rate 40 --bulk 1500 --seed 1 --lenient
	@if ! command -v go >/dev/null; then \
	  if [ "$$CI" = true ]; then echo 'error: CI must test the judge of what clients heard: no Go' >&2; exit 1; fi; \
	  echo 'skipped: the judge of what clients heard is not tested: no Go'; exit 0; fi; \
	  cd tests/testbed/torture && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS='-buildvcs=false -mod=readonly' \
	  go test -trimpath ./...
