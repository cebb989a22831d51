#!/bin/sh
# What this machine must have for a make target, each answered in one sentence.
#
#   host.sh go           Go, new enough for go.mod
#   host.sh linux        a Linux kernel
#   host.sh namespaces   the right to make namespaces, and the tools a lab needs
#   host.sh tools        install what the tests use, where this user may; say what stays missing
set -u

say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

case "${1:-}" in
linux)
	os=$(uname -s)
	[ "$os" = Linux ] || die "picket: need Linux, found $os; netlink, namespaces and ARP are the kernel's (use a virtual machine)"
	;;

go)
	want=1.26
	where="install from Debian backports or go.dev"
	have go || die "go: need Go $want, found none; $where"
	# The toolchain that is really there: Go would otherwise try to fetch the one of go.mod.
	found=$(GOTOOLCHAIN=local GOFLAGS= go env GOVERSION 2>/dev/null) || found="one that does not run"
	v=${found#go}
	major=${v%%.*}
	minor=${v#*.}
	minor=${minor%%[!0-9]*}
	case "$major.$minor" in
	[0-9]*.[0-9]*) ;;
	devel*) exit 0 ;; # a Go built from source knows what it does
	*) die "go: need Go $want, found $found; $where" ;;
	esac
	[ "$major" -gt 1 ] || [ "$minor" -ge "${want#1.}" ] || die "go: need Go $want, found $found; $where"
	;;

namespaces)
	missing=
	for t in unshare:util-linux ip:iproute2 nft:nftables; do
		have "${t%:*}" || missing="$missing ${t#*:}"
	done
	[ -z "$missing" ] || die "lab: missing$missing; install: apt-get install$missing"
	if [ "$(id -u)" = 0 ]; then
		err=$(unshare --net --mount --pid --uts --fork true 2>&1) ||
			die "lab: root may not make namespaces here (${err#unshare: }); in a container, run it with --privileged"
	else
		err=$(unshare --user --map-root-user --net --mount --pid --uts --fork true 2>&1) ||
			die "lab: this user may not make namespaces (${err#unshare: }); run as root, or allow it: sysctl -w kernel.unprivileged_userns_clone=1 (Debian before 11), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)"
	fi
	;;

tools)
	# tool:package:what is skipped without it
	list="ip:iproute2:every story in namespaces
nft:nftables:every story that cuts a cable
unshare:util-linux:every story in namespaces
nsenter:util-linux:stories without root
ipmitool:ipmitool:the tests that let ipmitool speak to our BMC
gcc:gcc libc6-dev:the race detector"
	wanted=$(echo "$list" | while IFS=: read -r tool pkg _; do have "$tool" || printf '%s ' "$pkg"; done)
	[ -n "$wanted" ] || exit 0
	wanted=$(printf '%s\n' $wanted | sort -u | tr '\n' ' ')
	if [ "$(id -u)" = 0 ] && have apt-get; then
		say "installing: $wanted"
		# Never fatal: a test that lacks its tool is skipped aloud.
		export DEBIAN_FRONTEND=noninteractive
		log=$(mktemp)
		# One by one when all at once fails: one unknown package must not keep the others away.
		{ timeout 300 apt-get update -q && timeout 300 apt-get install -qy --no-install-recommends $wanted; } >"$log" 2>&1 </dev/null ||
			for p in $wanted; do
				timeout 120 apt-get install -qy --no-install-recommends "$p" >>"$log" 2>&1 </dev/null ||
					say "not installed: $p ($(grep '^E:' "$log" | tail -n 1))"
			done
		rm -f "$log"
	fi
	echo "$list" | while IFS=: read -r tool pkg what; do
		have "$tool" || say "note: $tool is missing (apt-get install $pkg): $what will be skipped"
	done
	;;

*)
	die "usage: host.sh go|linux|namespaces|tools"
	;;
esac
