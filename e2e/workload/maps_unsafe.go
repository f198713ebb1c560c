package main

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapAnew puts a new mapping in the place of memory.
func mapAnew(memory []byte) error {
	_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(&memory[0]), uintptr(len(memory)),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED)
	return err
}

// mappingsOf are the lines of /proc/self/maps about memory.
func mappingsOf(memory []byte) string {
	start := uintptr(unsafe.Pointer(&memory[0]))
	content, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err.Error()
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%x-%x:\n", start, start+uintptr(len(memory)))
	for line := range strings.Lines(string(content)) {
		var from, to uintptr
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil && from < start+uintptr(len(memory)) && start < to {
			text.WriteString(line)
		}
	}
	return text.String()
}
