#!/bin/bash
# One check of the tree: gofmt, vet, staticcheck, rules, module or unit. Exit status 77: skipped, the
# last line says why.
set -u
cd "$(dirname "$0")/.." || exit 2

case "${1:-}" in
gofmt)
	bad=$(gofmt -l $(git ls-files '*.go' 2>/dev/null || find . -name '*.go' -not -path './out/*')) || exit 1
	[ -z "$bad" ] || { printf 'not formatted (gofmt -w mends it):\n%s\n' "$bad"; exit 1; }
	;;
vet)
	go vet ./...
	;;
staticcheck)
	tool=honnef.co/go/tools/cmd/staticcheck@${STATICCHECK:?run it through make}
	# Apart from the run: a tool that cannot be fetched is no finding.
	if ! err=$(go run "$tool" -version 2>&1); then
		echo "$err"
		echo "needs $tool, which cannot be fetched: $(tail -n 1 <<<"$err")"
		exit 77
	fi
	go run "$tool" ./...
	;;
rules)
	# Imports per room, what pure rooms may not use, sizes of files and functions.
	go test -count=1 ./consensus
	;;
module)
	# go.mod is complete and nothing in the cache was tampered with.
	go mod verify && go build -mod=readonly -o /dev/null ./cmd/picket
	;;
unit)
	command -v systemd-analyze >/dev/null || { echo "needs systemd-analyze: not installed"; exit 77; }
	# The binary of ExecStart is not installed where this runs.
	dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
	sed 's#^ExecStart=.*#ExecStart=/bin/true#; /^Documentation=/d' packaging/picket.service >"$dir/picket.service"
	out=$(systemd-analyze verify --man=no "$dir/picket.service" 2>&1)
	code=$?
	# What it says of other units of this machine is not ours.
	mine=$(grep -F picket.service <<<"$out")
	[ "$code" = 0 ] && [ -z "$mine" ] && exit 0
	case "$out" in *"Failed to initialize manager"* | *"Failed to lookup"*) echo "needs a working systemd-analyze: $(tail -n 1 <<<"$out")"; exit 77 ;; esac
	[ -z "$mine" ] && exit 0
	echo "$mine"
	exit 1
	;;
*)
	echo "usage: verify.sh gofmt|vet|staticcheck|rules|module|unit"
	exit 2
	;;
esac
