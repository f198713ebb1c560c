// Package inettest helps to test what takes sockets apart: in a network that nobody else is in, and with
// every option changed. It is for tests alone.
package inettest
