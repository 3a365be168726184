# Everything a person or a machine does with this project. `make` alone lists it.

CARGO ?= cargo
PORT ?=
TOUR ?=
HEAL ?=
SYNC ?=
SOAK_MINUTES ?= 30
CONFIG ?= config/pgregent.example.toml
DEMO_FLAGS = $(if $(PORT),--port $(PORT)) $(if $(filter-out 0,$(TOUR)),--tour) \
	$(if $(filter-out 0,$(HEAL)),--keep-healing) $(if $(filter-out 0,$(SYNC)),--synchronous)

.DEFAULT_GOAL := help
.PHONY: help setup setup-drivers build demo test soak lint unit fmt check bench bench-compare test-matrix reference fuzz-quick clean

help: ## List the targets
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

setup: ## Install the Debian packages that are missing (says which; starts no service)
	@scripts/setup.sh

setup-drivers: setup ## Install the client drivers that tests use, into target/drivers
	@if [ -x tests/drivers/setup.sh ]; then tests/drivers/setup.sh; fi

build: setup ## Build the release binary, target/release/pgregent
	$(CARGO) build --release

demo: build ## Play with a primary, two standbys and the proxy (PORT=5433, TOUR=1 unattended, HEAL=1, SYNC=1)
	@target/release/pgregent demo $(DEMO_FLAGS)

test: setup lint unit ## Everything that must hold: format, lints, all tests

soak: build ## Thirty minutes of clients, kills and restarts; memory must stay flat (SOAK_MINUTES=n)
	@SOAK_MINUTES=$(SOAK_MINUTES) CARGO=$(CARGO) scripts/soak.sh

lint: ## Check format and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

unit: setup-drivers ## Run all tests, real servers included
	@if $(CARGO) nextest --version >/dev/null 2>&1; then set -x; $(CARGO) nextest run; \
	else set -x; $(CARGO) test --lib --bins --tests; fi
	$(CARGO) test --doc

fmt: ## Format the sources
	$(CARGO) fmt

check: ## Check a configuration file (CONFIG=path)
	$(CARGO) run --quiet -- check --config $(CONFIG)

bench: setup ## Run the micro benchmarks
	$(CARGO) bench

bench-compare: build ## Measure direct, PgBouncer and pgregent side by side (CHECK=1 fails when a bar is missed)
	python3 benches/compare/run.py

test-matrix: setup ## Run cluster and failover tests on PostgreSQL 17 and 18 from the npm registry
	scripts/test-matrix.sh

reference: ## Write config/reference.toml from the table of settings
	@mkdir -p config
	$(CARGO) run --quiet -- reference > config/reference.toml.new
	mv config/reference.toml.new config/reference.toml

fuzz-quick: ## Fuzz each target for ten seconds, FUZZ_SECONDS=n for longer (says what it needs)
	@scripts/fuzz-quick.sh $(FUZZ_SECONDS)

clean: ## Remove build results
	$(CARGO) clean
