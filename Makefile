# Pagurus: see CONTRIBUTING.md for what each target is for.
GO       ?= go
TOOL     := $(GO) tool -modfile=$(CURDIR)/tools/go.mod
BIN      := $(CURDIR)/bin
COMMANDS := migratectl migrate-agent migrate-coordinator

# Packages whose tests touch nothing but their own memory and loopback: they run
# under the race detector where there is a C compiler for it. The tests of the
# others stop processes, join control groups and bring labs up: one package
# after the other.
PURE := . ./agent ./coordinator/... ./migrate ./migrate/image ./migrate/wire ./pageserver/... ./trust
REST  = $(filter-out $(shell $(GO) list $(PURE)),$(shell $(GO) list ./...))

export CGO_ENABLED ?= 0

.PHONY: build
build: ## the three programs, into bin/
	$(GO) build -trimpath -o $(BIN)/ $(addprefix ./cmd/,$(COMMANDS))

# The second half is never taken from the cache, which does not know what programs
# the tests build and run.
.PHONY: test
test: ## all tests, end to end included; without root those that do not need it
	@[ "$$(id -u)" = 0 ] || echo "Not root: tests that stop processes, join control groups or bring a lab up are left out."
	@command -v qemu-system-x86_64 >/dev/null || echo "No qemu-system-x86_64 (Debian: qemu-system-x86): tests on another kernel are left out."
	@apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || echo "No package linux-image-cloud-amd64 (apt-get update?): tests on another kernel are left out."
	@for p in python3 node javac redis-server memcached nginx mosquitto dnsmasq iperf3; do command -v $$p >/dev/null || echo "No $$p: moves of programs that need it are left out."; done
	@command -v cc >/dev/null || echo "No C compiler: the race detector is left out."
	if command -v cc >/dev/null; then \
		CGO_ENABLED=1 $(GO) test -race -timeout 15m $(PURE); \
	else \
		$(GO) test -timeout 15m $(PURE); \
	fi
	$(GO) test -count=1 -p 1 -timeout 40m $(REST)

.PHONY: test-vm
test-vm: ## the tests on Debian's own kernel in qemu: the soft-dirty tracker, another kernel's interfaces
	$(GO) test -v -count=1 -timeout 20m ./e2e/vm

.PHONY: demo
demo: ## three hosts in this machine and a process that moves between them (root)
	$(GO) run ./e2e/demo

.PHONY: bench
bench: ## downtime over resident size (root), page stream against memory copy and raw TCP
	$(GO) run ./e2e/bench
	$(GO) test -run '^$$' -bench . ./pageserver

# How often the two below repeat their tests.
ROUNDS ?= 10

.PHONY: soak
soak: ## real programs back and forth, ROUNDS times (root); each in a lab of its own, whose PIDs are far apart
	for n in $$(seq $(ROUNDS)); do $(GO) test -count=1 -timeout 0 -run '^(TestPrograms|TestRehearsals|TestServers|TestConnections|TestNewConnections)$$' ./e2e || exit 1; done

.PHONY: chaos
chaos: ## agents and leaders killed at instants that nobody chose, ROUNDS times (root)
	$(GO) test -count=$(ROUNDS) -timeout 0 -run '^TestKillsAtRandom$$' ./e2e

.PHONY: generate
generate: ## the Go code of the .proto files
	cd proto && $(TOOL) buf generate

.PHONY: lint
lint: ## formatting, static analysis; generated code and go.mod as they must be
	cd proto && $(TOOL) buf lint
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && (cd proto && $(TOOL) buf generate -o "$$dir") && \
		(cd "$$dir" && find . -name '*.go') | while read -r f; do \
			cmp -s "$$dir/$$f" "proto/$$f" || { echo "proto/$$f is not what its .proto file gives: make generate"; exit 1; }; \
		done
	$(GO) mod tidy -diff
	$(GO) vet ./...
	$(TOOL) golangci-lint run ./...

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16
