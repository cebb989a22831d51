// Package packaging embeds what an installation needs, so that the one binary carries it.
package packaging

import _ "embed"

// Unit is picket.service, the systemd unit of the daemon (systemd.service(5)).
//
//go:embed picket.service
var Unit string
