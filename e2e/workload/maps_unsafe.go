package main

import (
	"fmt"
	"os"
	"strings"
	"unsafe"
)

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
