// Package check is the independent witness of the labs: observers that are not picket (an ARP
// prober, an ICMP prober, a writer and a lock per address, the power record) and a checker that
// merges what they saw and says whether an address ever had two owners.
//
// Nothing here reads picket's status or links its code: a witness that believes the accused is
// no witness.
package check

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Stream names one observer's record file, <stream>.jsonl in the record directory.
type Stream string

// The streams. Each is written by exactly one observer.
const (
	// StreamARP holds one record per ARP probe window, answered or not.
	StreamARP Stream = "arp"
	// StreamEcho holds one record per ICMP echo reply and one tally per second.
	StreamEcho Stream = "echo"
	// StreamWriter holds the sightings of an address by the agent on a node.
	StreamWriter Stream = "writer"
	// StreamLock holds what happened to the shared lock of an address.
	StreamLock Stream = "lock"
	// StreamPower holds every beginning and end of a node, whoever caused it.
	StreamPower Stream = "power"
	// StreamBMC holds the commands the BMCs received.
	StreamBMC Stream = "bmc"
	// StreamFault holds what the harness did on purpose (cut, heal, kill, pause).
	StreamFault Stream = "fault"
)

// Streams lists every stream in a fixed order.
func Streams() []Stream {
	return []Stream{StreamARP, StreamEcho, StreamWriter, StreamLock, StreamPower, StreamBMC, StreamFault}
}

// Kinds of records, by stream.
const (
	// KindProbe (arp): the window of probe N closed; MACs lists who answered in it.
	KindProbe = "probe"
	// KindReply (echo): the reply to probe N arrived at T.
	KindReply = "reply"
	// KindTally (echo): N probes were sent and Got answered so far: the prober is alive.
	KindTally = "tally"
	// KindAcquire (writer): the address was seen on the node for the first time.
	KindAcquire = "acquire"
	// KindWrite (writer): the address is still on the node; Seq rises by one.
	KindWrite = "write"
	// KindRelease (writer): the address is gone; From is the last sighting.
	KindRelease = "release"
	// KindBusy (lock): somebody else held the lock when the address appeared here.
	KindBusy = "busy"
	// KindLocked (lock): the lock was taken, Wait after it was first asked for.
	KindLocked = "locked"
	// KindUnlocked (lock): the address went and the lock was given back.
	KindUnlocked = "unlocked"
	// KindBoot (power): the node runs; Boot is its new boot id.
	KindBoot = "boot"
	// KindOff (power): every process of the node has been reaped.
	KindOff = "off"
	// KindReset (power): the node ended itself in order to boot again (reboot(2)).
	KindReset = "reset"
	// KindHalt (power): the node ended itself and stays off.
	KindHalt = "halt"
)

// Record is one line of a stream. It is flat on purpose: all streams merge into one time line.
// All times are nanoseconds of CLOCK_MONOTONIC_RAW of the host, which every namespace of the
// lab shares, so times of different nodes may be compared.
type Record struct {
	// T is when the harness wrote the record down (for KindReply: when the reply arrived).
	T      int64  `json:"t"`
	Stream Stream `json:"stream"`
	Kind   string `json:"kind"`
	Node   string `json:"node,omitempty"`
	Boot   string `json:"boot,omitempty"`
	VIP    string `json:"vip,omitempty"`
	// From and To enclose the sighting: the kernel was asked at From and had answered at To.
	From int64 `json:"from,omitempty"`
	To   int64 `json:"to,omitempty"`
	// Seq counts the writes of one stay of an address on a node, from 1.
	Seq uint64 `json:"seq,omitempty"`
	// N is the number of a probe, or the number of probes sent; Got is how many were answered.
	N   uint64 `json:"n,omitempty"`
	Got uint64 `json:"got,omitempty"`
	// MACs lists who answered an ARP probe, each once, in order of arrival.
	MACs []string `json:"macs,omitempty"`
	// Wait is how long a lock was waited for, in nanoseconds.
	Wait int64 `json:"wait,omitempty"`
	// Source says who caused a power record: "lab", "bmc" or "self".
	Source string `json:"source,omitempty"`
	// Text is free text for people.
	Text string `json:"text,omitempty"`
}

// Now reads the harness clock: nanoseconds of CLOCK_MONOTONIC_RAW (clock_gettime(2)). It is not
// slewed by NTP and is not changed by any namespace the lab uses.
func Now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
		// The clock exists on every Linux since 2.6.28; without it no record means anything.
		panic(fmt.Sprintf("check: CLOCK_MONOTONIC_RAW: %v", err))
	}
	return ts.Nano()
}

// seconds renders a span of nanoseconds for people, as signed seconds with milliseconds.
func seconds(ns int64) string {
	return fmt.Sprintf("%+.3fs", time.Duration(ns).Seconds())
}
