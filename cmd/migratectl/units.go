package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// bitRate is a flag such as 1Gbit; it is kept in bytes a second.
type bitRate uint64

func (r *bitRate) Type() string { return "rate" }

func (r *bitRate) String() string {
	if *r == 0 {
		return ""
	}
	return strconv.FormatUint(8*uint64(*r), 10) + "bit"
}

// rateUnits are those of tc(8), in bits a second; the longest come first.
var rateUnits = []struct {
	name string
	bits float64
}{{"tbit", 1e12}, {"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}

func (r *bitRate) Set(s string) error {
	for _, unit := range rateUnits {
		number, ok := strings.CutSuffix(strings.ToLower(strings.TrimSuffix(s, "/s")), unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		bytes := n * unit.bits / 8
		if err != nil || !(bytes >= 1) || bytes >= math.MaxUint64 {
			break
		}
		*r = bitRate(bytes)
		return nil
	}
	return fmt.Errorf("%q is not a rate like 500Mbit or 1Gbit", s)
}

// size is a number of bytes for people.
func size(bytes uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	n, unit := float64(bytes), 0
	for n >= 999.5 && unit < len(units)-1 {
		n /= 1024
		unit++
	}
	if unit == 0 || n >= 99.5 {
		return fmt.Sprintf("%.0f %s", n, units[unit])
	}
	return fmt.Sprintf("%.1f %s", n, units[unit])
}

// duration is a number of milliseconds for people.
func duration(ms float64) string {
	switch {
	case ms < 100:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0f ms", ms)
	case ms < 100_000:
		return fmt.Sprintf("%.1f s", ms/1000)
	}
	return time.Duration(ms * float64(time.Millisecond)).Round(time.Second).String()
}

// plural is a number and what it counts.
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
