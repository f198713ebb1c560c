package procfs

import (
	"fmt"
	"testing"
)

const meminfo = "MemTotal:       24641796 kB\nMemFree:  1 kB\nMemAvailable:   23000000 kB\nHugePages_Total:       0\n"

func TestParseMeminfo(t *testing.T) {
	if m, err := ParseMeminfo([]byte(meminfo)); err != nil || m != (Meminfo{Total: 24641796 << 10, Available: 23000000 << 10}) {
		t.Errorf("got %+v, %v", m, err)
	}
	for _, bad := range []string{
		"", "MemTotal: 1 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n", "MemTotal: 1 kB\nMemTotal: 1 kB\n",
		"MemTotal: 18446744073709551615 kB\nMemAvailable: 1 kB\n",
	} {
		if m, err := ParseMeminfo([]byte(bad)); err == nil {
			t.Errorf("%q was read as %+v", bad, m)
		}
	}
	if m, err := ReadMeminfo(); err != nil || m.Available == 0 || m.Available > m.Total {
		t.Errorf("of this machine: %+v, %v", m, err)
	}
}

func FuzzParseMeminfo(f *testing.F) {
	f.Add([]byte(meminfo))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseMeminfo(data)
		if err != nil {
			return
		}
		again, err := ParseMeminfo(fmt.Appendf(nil, "MemTotal: %d kB\nMemAvailable: %d kB\n", m.Total>>10, m.Available>>10))
		if err != nil || again != m {
			t.Errorf("%q: %+v, and written again %+v, %v", data, m, again, err)
		}
	})
}
