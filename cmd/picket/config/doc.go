// Package config turns files that people write into clean values: the replicated cluster file into
// state.Config (cluster.go and its neighbours) and the small local node file into Node (node.go). It
// is strict: what it does not know it refuses, and every refusal names file, line and column, and
// says how to mend it.
package config
