// Package pagetest is what tests of page streams need: a [Memory] that pages
// are read from and placed into, content that looks like a heap, and a [Pair]
// of joined connections that can be slow, distant, damaged and cut.
//
// Nothing here sleeps: a link's speed and distance are timers, so that tests
// under testing/synctest run in no time and come out the same each time.
package pagetest
