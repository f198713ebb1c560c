package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"

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
	switch f, ok := to.(*os.File); {
	case quiet:
		return &silent{to: to}
	case ok && isTerminal(f):
		return newBar(to)
	default:
		return &lines{to: to}
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
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

// bar is one line on a terminal that changes in place: of the round while
// there is one, of the phase otherwise.
type bar struct {
	to       io.Writer
	progress *mpb.Progress
	bar      *mpb.Bar

	ended sync.Once

	mu     sync.Mutex // the bar is drawn by a goroutine of its own
	report migrate.Report
}

func newBar(to io.Writer) *bar {
	b := &bar{to: to, progress: mpb.New(mpb.WithOutput(to), mpb.WithWidth(24))}
	b.bar = b.progress.AddBar(1,
		mpb.PrependDecorators(decor.Any(b.phase)),
		mpb.AppendDecorators(decor.Any(b.detail)),
	)
	return b
}

func (b *bar) current() migrate.Report {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.report
}

func (b *bar) phase(decor.Statistics) string {
	r := b.current()
	if r.Progress != nil {
		return fmt.Sprintf("%s round %d ", r.State, r.Progress.Round)
	}
	return string(r.State) + " "
}

func (b *bar) detail(decor.Statistics) string {
	r := b.current()
	if r.Progress == nil {
		return fmt.Sprintf(" %s: %s to %s", name(r), r.From, r.To)
	}
	return " " + speed(r.Progress)
}

func (b *bar) show(r migrate.Report) {
	b.mu.Lock()
	b.report = r
	b.mu.Unlock()
	pages, sent := uint64(0), uint64(0)
	if r.Progress != nil {
		pages, sent = r.Progress.RoundPages, min(r.Progress.RoundSent, r.Progress.RoundPages)
	}
	// One more than can be reached: a full bar would be finished for ever, and
	// there may be another round.
	b.bar.SetCurrent(0)
	b.bar.SetTotal(int64(pages)+1, false)
	b.bar.SetCurrent(int64(sent))
}

func (b *bar) say(line string) { fmt.Fprintln(b.progress, line) }

func (b *bar) end() {
	b.ended.Do(func() {
		b.bar.Abort(true)
		b.progress.Wait()
	})
}
