// Package clustertest runs whole clusters in one process: coordinators on the
// loopback address with raft, gossip, TLS and files as in real life, and agents
// without Linux (package agenttest) that are asked and report over the network.
//
// A coordinator is killed without a word and started again on the files and
// ports that it had, and so is an agent. The cluster ends with its test.
package clustertest
