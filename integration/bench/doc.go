// Package bench measures a picket cluster in a lab: what its clients see of a takeover and where the
// time goes, what its daemons use while nothing happens, and both beside peers and limits in the same
// run. All of it is in the tests; README.md says what each figure means.
package bench
