# Pagurus: see CONTRIBUTING.md for what each target is for.
GO       ?= go
TOOL     := $(GO) tool -modfile=$(CURDIR)/tools/go.mod
BIN      := $(CURDIR)/bin
COMMANDS := migratectl migrate-agent migrate-coordinator

export CGO_ENABLED ?= 0

.PHONY: build
build: ## the three programs, into bin/
	$(GO) build -trimpath -o $(BIN)/ $(addprefix ./cmd/,$(COMMANDS))

.PHONY: generate
generate: ## the Go code of the .proto files
	cd proto && $(TOOL) buf generate

.PHONY: lint
lint: ## formatting, static analysis, generated code up to date
	cd proto && $(TOOL) buf lint
	$(TOOL) golangci-lint run ./...

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16
