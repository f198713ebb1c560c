package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/pagurus-project/pagurus/migrate"
)

// A display shows how a migration goes on. It is used by one goroutine.
type display interface {
	show(r migrate.Report)
	say(line string)
	end() // may be repeated
}

// newDisplay chooses what fits where it is shown.
func newDisplay(to io.Writer, quiet bool) display {
	switch {
	case quiet:
		return &silent{to: to}
	case columns(to) > 0 && os.Getenv("TERM") != "dumb":
		return &bar{to: to}
	default:
		return &lines{to: to}
	}
}

// silent shows nothing but what must be said.
type silent struct{ to io.Writer }

func (s *silent) show(migrate.Report) {}
func (s *silent) say(line string)     { fmt.Fprintln(s.to, line) }
func (s *silent) end()                {}

// lines writes a line for each phase and each round.
type lines struct {
	to    io.Writer
	last  migrate.Report
	begun bool
}

func (l *lines) say(line string) { fmt.Fprintln(l.to, line) }
func (l *lines) end()            {}

func (l *lines) show(r migrate.Report) {
	// How it ended is told by others, and at more length.
	switch {
	case r.State.Final():
	case !l.begun:
		fmt.Fprintf(l.to, "%s  %s: %s from %s to %s\n", r.ID, r.State, name(r), r.From, r.To)
	case r.State != l.last.State:
		fmt.Fprintf(l.to, "%s  %s\n", r.ID, r.State)
	}
	if p := r.Progress; p != nil && (l.last.Progress == nil || p.Round != l.last.Progress.Round) {
		fmt.Fprintf(l.to, "%s  round %d: %s\n", r.ID, p.Round, speed(p))
	}
	l.last, l.begun = r, true
}

// speed is what can be said of a round under way.
func speed(p *migrate.Progress) string {
	words := []string{fmt.Sprintf("%d of %d pages", p.RoundSent, p.RoundPages), size(p.Bytes) + " in all"}
	if p.RateBytes > 0 {
		words = append(words, size(uint64(p.RateBytes))+"/s")
	}
	if p.DirtyRateBytes > 0 {
		words = append(words, size(uint64(p.DirtyRateBytes))+"/s written")
	}
	if p.EstimateMS > 0 {
		words = append(words, "would stand still for "+duration(p.EstimateMS))
	}
	return strings.Join(words, ", ")
}

// figures are those of speed that stand beside a bar, in half of 80 columns and
// a little more.
func figures(p *migrate.Progress) string {
	words := []string{size(p.Bytes)}
	if p.RateBytes > 0 {
		words = append(words, size(uint64(p.RateBytes))+"/s")
	}
	if p.DirtyRateBytes > 0 {
		words = append(words, "dirty "+size(uint64(p.DirtyRateBytes))+"/s")
	}
	if p.EstimateMS > 0 {
		words = append(words, "downtime "+duration(p.EstimateMS))
	}
	return strings.Join(words, ", ")
}

// bar is one line on a terminal that changes in place. It asks for the width
// each time that it is drawn, and never fills the last column: a terminal would
// go on to the next line.
type bar struct {
	to   io.Writer
	last string // what stands there, "" for nothing
}

const (
	erase    = "\r\x1b[K" // the line that the cursor is on
	barCells = 24
	fewCells = 3 // a bar with fewer tells nothing
)

func (b *bar) show(r migrate.Report) {
	width := columns(b.to) - 1
	phase, detail := string(r.State), fmt.Sprintf("%s: %s to %s", name(r), r.From, r.To)
	if p := r.Progress; p != nil && p.RoundPages > 0 {
		phase, detail = fmt.Sprintf("%s round %d", r.State, p.Round), figures(p)
		cells := min(barCells, width-len(phase)-len(detail)-len(" [] "))
		if cells >= fewCells {
			full := int(uint64(cells) * min(p.RoundSent, p.RoundPages) / p.RoundPages)
			phase += " [" + strings.Repeat("=", full) + strings.Repeat("-", cells-full) + "]"
		}
	}
	b.draw(clip(phase+" "+detail, width))
}

func (b *bar) draw(line string) {
	fmt.Fprint(b.to, erase+line)
	b.last = line
}

func (b *bar) say(line string) {
	fmt.Fprintln(b.to, erase+line)
	b.draw(b.last)
}

func (b *bar) end() {
	if b.last != "" {
		b.draw("")
	}
}
