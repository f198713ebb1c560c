package main

import "testing"

func TestBitRate(t *testing.T) {
	for text, want := range map[string]bitRate{
		"1Gbit": 125_000_000, "1.5gbit": 187_500_000, "500 Mbit": 62_500_000, "100kbit/s": 12500, "8bit": 1,
	} {
		var r bitRate
		if err := r.Set(text); err != nil || r != want {
			t.Errorf("%s is %d bytes a second, %v; want %d", text, r, err, want)
		}
	}
	for _, text := range []string{"", "5", "bit", "-1Gbit", "0bit", "NaNbit", "1e300Gbit", "1GB", "fast"} {
		var r bitRate
		if err := r.Set(text); err == nil {
			t.Errorf("%q is taken for %d bytes a second", text, r)
		}
	}
}

func TestNumbersForPeople(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{size(0), "0 B"},
		{size(999), "999 B"},
		{size(1000), "1.0 KiB"},
		{size(256 << 20), "256 MiB"},
		{size(1<<64 - 1), "16777216 TiB"},
		{duration(0.04), "0.0 ms"},
		{duration(12.345), "12.3 ms"},
		{duration(456.7), "457 ms"},
		{duration(12_345), "12.3 s"},
		{duration(3_600_000), "1h0m0s"},
		{plural(1, "blocker"), "1 blocker"},
		{plural(0, "blocker"), "0 blockers"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}
