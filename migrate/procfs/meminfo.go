package procfs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Meminfo is what is needed of /proc/meminfo, in bytes.
type Meminfo struct {
	Total     uint64
	Available uint64 // what programs could still get of it
}

// ReadMeminfo reads /proc/meminfo.
func ReadMeminfo() (Meminfo, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Meminfo{}, err
	}
	m, err := ParseMeminfo(data)
	if err != nil {
		return m, fmt.Errorf("reading /proc/meminfo: %w", err)
	}
	return m, nil
}

// ParseMeminfo parses /proc/meminfo.
func ParseMeminfo(data []byte) (Meminfo, error) {
	var m Meminfo
	fields := map[string]*uint64{"MemTotal": &m.Total, "MemAvailable": &m.Available}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		to := fields[name]
		if to == nil {
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 54)
		if err != nil {
			return Meminfo{}, fmt.Errorf("%s: %w", name, err)
		}
		*to = kib << 10
		delete(fields, name)
	}
	for name := range fields {
		return Meminfo{}, fmt.Errorf("no %s", name)
	}
	return m, nil
}
