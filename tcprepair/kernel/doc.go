// Package kernel knows where what lies in the structs of the running kernel, by the kernel's own
// description (BTF, /sys/kernel/btf). It reads no memory: who has a copy of a struct asks it where to look.
//
// All of it is plain data, to be used from any goroutine.
package kernel
