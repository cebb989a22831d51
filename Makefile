# picket: build, demonstrate, test. `make` alone tells what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# Where packages and tarballs put Go without putting it into PATH.
export PATH := $(PATH):/usr/local/go/bin:/usr/lib/go-1.26/bin
# A clone owned by another user (CI) must build too: git refuses to answer Go there.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
export STATICCHECK := v0.8.2

VERSION ?= $(shell cat packaging/VERSION)$(shell git rev-parse --short=9 HEAD 2>/dev/null | sed 's/^/+g/')
LDFLAGS := -s -w -X github.com/picket-ha/picket/cmd/picket/app.Version=$(VERSION)
PREFIX ?= /usr
DESTDIR ?=
GO_BUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'

.PHONY: help
help: ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2} /^## / {printf "\n%s\n", substr($$0, 4)}' $(MAKEFILE_LIST)

## Use it
.PHONY: build
build: go ## build bin/picket and bin/picket-lab (static, no C needed)
	@mkdir -p bin
	$(GO_BUILD) -o bin/picket ./cmd/picket
	$(GO_BUILD) -o bin/picket-lab ./cmd/picket-lab

.PHONY: demo
demo: namespaces build ## watch three nodes fail over for about a minute (root or not)
	bin/picket-lab demo

.PHONY: install
install: build ## install binaries, systemd unit, group file and man page under $(DESTDIR)$(PREFIX)
	install -D -m 0755 bin/picket $(DESTDIR)$(PREFIX)/bin/picket
	install -D -m 0755 bin/picket-lab $(DESTDIR)$(PREFIX)/bin/picket-lab
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's#^ExecStart=/usr/bin/#ExecStart=$(PREFIX)/bin/#' packaging/picket.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/picket.service
	chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/picket.service
	install -D -m 0644 packaging/picket.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/picket.conf
	install -D -m 0644 packaging/picket.8 $(DESTDIR)$(PREFIX)/share/man/man8/picket.8
	@[ -n "$(DESTDIR)" ] || getent group picket >/dev/null || groupadd --system picket || echo 'note: group picket is missing; until it is there, only root sees status: groupadd --system picket'

## Test it
.PHONY: test
test: go tools ## all tiers and the closing summary (under 30 minutes on 2 cores)
	@packaging/tiers.sh

.PHONY: verify
verify: go ## gofmt, go vet, staticcheck, house rules, module file, systemd unit
	@TIERS=3 OUT=out/verify packaging/tiers.sh

.PHONY: unit
unit: go ## tier 1 alone: every room, with the race detector
	@TIERS=1 OUT=out/unit packaging/tiers.sh

.PHONY: stories
stories: go tools namespaces ## tier 2 alone: real processes in namespaces
	@TIERS=2 OUT=out/stories packaging/tiers.sh

.PHONY: sim
sim: go ## tier 0 alone, with more seeds (SEEDS=2000)
	@SEEDS=$${SEEDS:-2000} TIERS=0 OUT=out/sim packaging/tiers.sh

## Volume
.PHONY: sim-long
sim-long: go ## the simulated cluster for hours (SEEDS=100000)
	go test -count=1 -timeout 24h ./consensus/sim -seeds $${SEEDS:-100000}

.PHONY: stories-long
stories-long: go tools namespaces ## every story in namespaces again and again (COUNT=20)
	PICKET_STORIES_REPEAT=$${COUNT:-20} go test -count=1 -p 1 -timeout 24h -v ./integration/stories
	go test -count=$${COUNT:-20} -p 1 -timeout 24h ./integration/netlab/... ./cmd/picket-lab

.PHONY: fuzz
fuzz: go ## every fuzz target for a short while (FUZZTIME=20s)
	@set -e; for p in $$(go list ./...); do \
		for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do \
			echo "== $$p $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $${FUZZTIME:-20s} $$p; \
		done; done

.PHONY: bench
bench: go tools namespaces ## figures: takeover split into its parts (out/bench), and the rooms' benchmarks
	go test -run '^$$' -bench . -benchtime 1x -timeout 120m ./integration/bench
	go test -run '^$$' -bench . -benchtime $${BENCHTIME:-1s} -p 1 -timeout 60m $$(go list ./... | grep -v /integration/bench)

.PHONY: golden
golden: go ## rewrite golden files and stories, then show what changed: read it before you commit it
	go test -count=1 ./cmd/picket/config ./cmd/picket/cli -update
	@for p in $$(grep -rl --include='*_test.go' cockroachdb/datadriven . | xargs -n 1 dirname | sort -u); do go test -count=1 -skip 'Seeds|Mutant' $$p -rewrite || exit 1; done
	git diff --stat -- '*testdata*'

.PHONY: clean
clean: ## remove what was built and what tests left in out/
	rm -rf bin out

# What a target needs, in one sentence when it is missing.
.PHONY: linux go namespaces tools
linux:
	@packaging/host.sh linux
go: linux
	@packaging/host.sh go
namespaces: linux
	@packaging/host.sh namespaces
tools: linux
	@packaging/host.sh tools
