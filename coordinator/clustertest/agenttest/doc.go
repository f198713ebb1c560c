// Package agenttest has agents without Linux: they answer a coordinator's
// orders and report as real ones do, and move processes that exist as entries
// of a [World] only. The world knows which host runs what, and fails its test
// when two of them run the same process.
//
// A test steers by [World.OnStep]: it is called before each step of each agent
// and may kill somebody there, or wait. What an agent has on its host (its
// halves of migrations: frozen processes, shells, what the undo journal says)
// survives [Agent.Kill], as it does in a kernel, and [Agent.Restart] takes it
// up again.
package agenttest
