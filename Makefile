# Everything a person or a machine does with this project. `make` alone lists it.

CARGO ?= cargo
PORT ?=
TOUR ?=
HEAL ?=
SYNC ?=
SUITE ?=
SOAK_MINUTES ?= 30
CONFIG ?= config/pgregent.example.toml
DEMO_FLAGS = $(if $(PORT),--port $(PORT)) $(if $(filter-out 0,$(TOUR)),--tour) \
	$(if $(filter-out 0,$(HEAL)),--keep-healing) $(if $(filter-out 0,$(SYNC)),--synchronous)

.DEFAULT_GOAL := help
.PHONY: help setup setup-drivers build demo test soak faults storm follow sim consistency random-statements hit-rate lint unit fmt check bench bench-compare suite-drivers test-matrix suites suite-regress suite-contrib suite-isolation suite-pipeline suite-programs suite-sessions suites-pgbouncer reference fuzz-quick clean

help: ## List the targets
	@echo "make TARGET, where TARGET is one of:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-17s %s\n", $$1, $$2 }'

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

faults: build ## Kill, stop, freeze and cut off real servers; print what came of it (RUNS, ROWS, SYNC=1, FAULTS=n, FALSE_MINUTES, ALLOW_SKIPS=1)
	PGREGENT=$${PGREGENT:-$${CARGO_TARGET_DIR:-target}/release/pgregent} $(CARGO) test --test faults the_whole_matrix -- --ignored --nocapture

storm: build ## Faults at random, several at once, on two proxies and three nodes; nothing may go wrong (STORMS, STORM_SECONDS, SEED, SYNC=1)
	PGREGENT=$${PGREGENT:-$${CARGO_TARGET_DIR:-target}/release/pgregent} $(CARGO) test --test faults storms -- --ignored --nocapture

follow: setup-drivers ## A real Patroni, and repmgr, promote; the proxy follows (CASES=parts of names, separated by commas)
	$(CARGO) test --test follow -- --ignored --nocapture

sim: ## Several proxies, PostgreSQL and a network, simulated from seeds (SEEDS=1000, or SEED=n TRACE=1 for a replay)
	@CARGO_PROFILE_DEV_OPT_LEVEL=2 SEEDS=$${SEEDS:-1000} $(CARGO) test --test sim no_seed -- --nocapture

consistency: setup ## A million reads while standbys lag in every way: no session reads less than it wrote (CONSISTENCY_READS=n)
	CONSISTENCY_READS=$${CONSISTENCY_READS:-1000000} $(CARGO) test --test consistency -- --nocapture

random-statements: setup ## Random statements, ours and sqlsmith's: what is classified as a read runs on a standby and writes nothing (STATEMENTS, SEED)
	STATEMENTS=$${STATEMENTS:-20000} $(CARGO) test --test random_statements -- --nocapture

hit-rate: setup-drivers ## How often a statement's class is known, under pgbench and under an ORM (SECONDS per run of pgbench)
	SECONDS=$${SECONDS:-5} $(CARGO) test --test hit_rate -- --nocapture

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

suite-drivers: build ## Run drivers' own test suites directly and through the proxy, and compare (SUITE=asyncpg for one)
	python3 tests/suites/drivers.py $(SUITE)

test-matrix: setup ## Run cluster and failover tests on PostgreSQL 14, 16, 17 and 18 from the npm registry (TESTS, MATRIX_TESTS)
	scripts/test-matrix.sh

RUN_SUITE = PGREGENT=$${PGREGENT:-target/release/pgregent} python3 tests/suites/run.py

suites: suite-regress suite-contrib suite-isolation suite-pipeline suite-programs suite-sessions ## All suites below; each runs directly and through the proxy, and fails on a new difference

suite-regress: build ## PostgreSQL's core regression tests through the proxy (transaction pooling, reads on standbys)
	$(RUN_SUITE) regress

suite-contrib: build ## Regression tests of contrib modules through the proxy
	$(RUN_SUITE) contrib

suite-isolation: build ## PostgreSQL's isolation tests through the proxy
	$(RUN_SUITE) isolation

suite-pipeline: build ## libpq's pipeline tests, with traces, and libpq's examples through the proxy
	$(RUN_SUITE) pipeline

suite-programs: build ## psql, pgbench, pg_dump, pg_restore, vacuumdb and their like through the proxy
	$(RUN_SUITE) programs

suite-sessions: build ## Random sessions of psql, directly and through the proxy: the same answers
	$(RUN_SUITE) sessions

suites-pgbouncer: setup ## The same suites through PgBouncer in transaction mode, for comparison (hours: it hangs tests)
	for suite in regress contrib isolation pipeline programs sessions; do $(RUN_SUITE) $$suite --way pgbouncer; done

reference: ## Write config/reference.toml from the table of settings
	@mkdir -p config
	$(CARGO) run --quiet -- reference > config/reference.toml.new
	mv config/reference.toml.new config/reference.toml

fuzz-quick: ## Fuzz each target for ten seconds, FUZZ_SECONDS=n for longer (says what it needs)
	@scripts/fuzz-quick.sh $(FUZZ_SECONDS)

clean: ## Remove build results
	$(CARGO) clean
