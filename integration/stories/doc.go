// Package stories holds the tests that play whole stories on real picket processes: the scenes of
// the demonstration again and again, and the faults that must never lead to two owners. Observers
// that are not picket judge every story (see integration/check).
package stories
