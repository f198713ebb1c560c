package resource

import (
	"fmt"
	"strings"
	"testing"
)

func FuzzParseWatch(f *testing.F) {
	f.Add("        5 events:       19 data:                5  pos:0 ino:2 sdev:f")
	f.Add("12 events: 40000001 data: ffffffffffffffff")
	f.Add("")
	f.Fuzz(func(t *testing.T, value string) {
		w, err := parseWatch(value)
		if err != nil {
			return
		}
		if w.FD < 0 {
			t.Errorf("%q: descriptor %d", value, w.FD)
		}
		again, err := parseWatch(fmt.Sprintf("%d events: %x data: %x", w.FD, w.Events, w.Data))
		if err != nil || again != w {
			t.Errorf("%q: %+v, and written again %+v, %v", value, w, again, err)
		}
	})
}

func FuzzParseOffsets(f *testing.F) {
	f.Add("monotonic           0         0\nboottime            0         0\n")
	f.Add("monotonic       -3600 500000000\nboottime        86400         1\n")
	f.Add("monotonic 9223372036854775807 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		o, err := parseOffsets(text)
		if err != nil {
			return
		}
		line := func(name string, offset int64) string {
			seconds, rest := offset/1e9, offset%1e9
			if rest < 0 {
				seconds, rest = seconds-1, rest+1e9
			}
			return fmt.Sprintf("%s %d %d\n", name, seconds, rest)
		}
		again, err := parseOffsets(line("monotonic", o.monotonic) + line("boottime", o.boottime))
		if err != nil || again != o {
			t.Errorf("%q: %+v, and written again %+v, %v", strings.TrimSpace(text), o, again, err)
		}
	})
}
