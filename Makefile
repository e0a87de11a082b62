# What can be done with this tree. `make help` reads the comments behind the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
TOOLS := bin/tools
# Google's store is spoken to by JSON: what its client has for gRPC would be a quarter of the program, and of its
# memory at the start.
export GOFLAGS += -tags=disable_grpc_modules

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps build $(TOOLS)/versitygw ## install what is missing, start the private stack and run the main job on it
	bin/devstack demo

.PHONY: test
test: deps build $(addprefix $(TOOLS)/,versitygw gotestsum fake-gcs-server) ## all tests, from nothing, on a stack of their own that is gone afterwards
	$(GO) vet ./...
	bin/devstack with --no-fsync -- $(TOOLS)/gotestsum --format pkgname -- -race -count=1 -timeout 20m $(TESTFLAGS) ./...

.PHONY: long
long: deps build $(TOOLS)/versitygw ## the archive killed 500 times at random, and a store that does not answer: an hour or more
	PGCUSTODY_KILLS=500 bin/devstack with --no-fsync -- $(GO) test ./jobs -run 'TestArchiveKilledAtAnyTime|TestArchiveFaultyStore' -count=1 -v -timeout 4h

.PHONY: majors
majors: deps build $(TOOLS)/versitygw ## the tests of the SQL on Postgres 16, 17 and 18 as well; fetches the servers by npm
	GO=$(GO) cmd/devstack/majors.sh

.PHONY: bench
bench: deps $(TOOLS)/versitygw ## the figures of the README, as ratios within one run, on a stack of their own
	$(GO) build -o bin/ ./cmd/devstack/bench ./cmd/pgcustody
	bin/bench $(BENCHFLAGS)

.PHONY: build
build: ## build bin/pgcustody and bin/devstack
	$(GO) build -o bin/ ./cmd/pgcustody ./cmd/devstack

.PHONY: generate
generate: deps build $(addprefix $(TOOLS)/,sqlc versitygw) ## write the generated files anew: db/, sql/snapshot/, sql/API.md
	$(TOOLS)/sqlc generate
	bin/devstack with --no-fsync -- $(GO) test ./sql -run TestSnapshots -count=1 -update

.PHONY: verify
verify: $(addprefix $(TOOLS)/,sqlc staticcheck) ## generated files are current, formatting and static checks hold
	$(TOOLS)/sqlc diff
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt -w these: $$unformatted" >&2; exit 1; }
	$(GO) mod verify
	$(TOOLS)/staticcheck ./...

.PHONY: lint
lint: $(TOOLS)/golangci-lint ## the linters that are too slow or too strict for verify
	$(TOOLS)/golangci-lint run -c .ci/golangci.yml ./...

.PHONY: up
up: deps build $(TOOLS)/versitygw ## start the private stack, or find it running; settings in .devstack/env
	bin/devstack up

.PHONY: down
down: build ## stop the private stack; its data stay (bin/devstack down --wipe removes them)
	bin/devstack down

.PHONY: deps
deps: ## install the Debian packages that are missing (as root or by sudo)
	@cmd/devstack/install.sh

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

# The tools have a module of their own, so that what they require stays out of the product's go.mod.
$(TOOLS)/%: cmd/devstack/tools/go.mod cmd/devstack/tools/go.sum
	@mkdir -p $(TOOLS)
	$(GO) build -C cmd/devstack/tools -trimpath -o $(CURDIR)/$(TOOLS)/ $$($(GO) -C cmd/devstack/tools list tool | grep '/$*$$')
	@touch $@
