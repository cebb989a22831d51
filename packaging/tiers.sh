#!/bin/bash
# All tiers of `make test`, one after another, and the closing summary. The exit status is the
# summary's: not 0 when a test failed or a tier ran none.
#
#   SEEDS=200      seeds of the simulated cluster (tier 0)
#   TIERS=0123     which tiers to run
#   OUT=out/test   where events go
set -u
cd "$(dirname "$0")/.." || exit 2

SEEDS=${SEEDS:-200} TIERS=${TIERS:-0123} OUT=${OUT:-out/test} STATICCHECK=${STATICCHECK:?run it through make}
module=github.com/picket-ha/picket
rm -rf "$OUT" && mkdir -p "$OUT" || exit 2
report=$PWD/$OUT/report
CGO_ENABLED=0 go build -o "$report" ./integration/report || exit 2

# A tier that cannot even list its packages must not end the run, only itself.
files=()
tier() { # NUMBER NAME ARGS...: go test with ARGS
	local n=$1 name=$2
	shift 2
	case $TIERS in *$n*) ;; *) return ;; esac
	files+=("$OUT/$n.json")
	"$report" run -out "$OUT/$n.json" -tier "$n $name" -- go test -json -count=1 "$@" || exit $?
}
step() { # NAME COMMAND...: one check of tier 3
	local name=$1
	shift
	"$report" step -out "$OUT/3.json" -tier "3 verify" -name "$name" -- "$@" || exit $?
}

all=$(go list ./...) || exit 2
# Stories bring up whole clusters in namespaces and measure time: they run alone, one package after
# the other. The helpers under integration/ are ordinary rooms.
stories=$(grep -E "^$module/(integration|cmd/picket-lab)(/|$)" <<<"$all" | grep -vE "/integration/(check|bmcsim|report)$")
rooms=$(grep -vxF -e "$stories" -e "$module/consensus/sim" <<<"$all")

# Word splitting is meant: package names hold no blanks.
# The checker is tested too: mutants of the product, each built anew, must be caught.
tier 0 "simulated cluster" -timeout 20m ./consensus/sim -seeds "$SEEDS" -mutants

# The race detector needs a C compiler. Two packages at a time: more would only disturb the timing of
# those that use real sockets.
race=-race
why=$(CGO_ENABLED=1 go build -race -o /dev/null ./consensus/ids 2>&1) || race=
tier 1 "rooms${race:+, race}" $race -p 2 -timeout 8m $rooms
if [ -z "$race" ]; then
	case $TIERS in *1*) "$report" step -out "$OUT/1.json" -tier "1 rooms" -name "race detector" -- \
		sh -c 'echo "needs a C compiler (apt-get install gcc libc6-dev): $1"; exit 77' - "$(tail -n 1 <<<"$why")" || exit $? ;; esac
fi

tier 2 "stories in namespaces" -p 1 -timeout 12m $stories

case $TIERS in *3*)
	files+=("$OUT/3.json")
	printf '\n== tier 3 verify\n'
	step gofmt packaging/verify.sh gofmt
	step "go vet" packaging/verify.sh vet
	step staticcheck packaging/verify.sh staticcheck
	step "house rules" packaging/verify.sh rules
	step "module file" packaging/verify.sh module
	step "systemd unit" packaging/verify.sh unit
	;;
esac

"$report" sum "${files[@]}"
