package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/migrate"
)

// A terminal is the other end of a real one: it collects what is written.
type terminal struct {
	master *os.File
	ended  chan struct{}

	mu      sync.Mutex
	written bytes.Buffer
	more    chan struct{}
}

// onTerminal runs migratectl on a terminal of so many columns.
func onTerminal(t *testing.T, width uint16, server string, args ...string) (*terminal, *exec.Cmd) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{master: master, ended: make(chan struct{}), more: make(chan struct{}, 1)}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	term.resize(t, width)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("migratectl", args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.Env = append(os.Environ(), "MIGRATE_SERVER="+server)
	err = cmd.Start()
	_ = slave.Close()
	if err != nil {
		t.Fatal(err)
	}
	go term.collect()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // if the test has not waited for it
		<-term.ended
		_ = master.Close()
	})
	return term, cmd
}

// collect reads until nobody has the terminal open any more, which is EIO.
func (term *terminal) collect() {
	defer close(term.ended)
	buf := make([]byte, 4096)
	for {
		n, err := term.master.Read(buf)
		if err != nil {
			return
		}
		term.mu.Lock()
		term.written.Write(buf[:n])
		term.mu.Unlock()
		select {
		case term.more <- struct{}{}:
		default:
		}
	}
}

func (term *terminal) resize(t *testing.T, width uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(term.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: width}); err != nil {
		t.Fatal(err)
	}
}

func (term *terminal) text() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return strings.ReplaceAll(term.written.String(), "\r\n", "\n")
}

// frames are the lines that a text consists of; what stood on a line before it
// was erased is one, too.
func frames(text string) []string {
	lines := strings.Split(strings.ReplaceAll(text, erase, "\n"), "\n")
	return lines[:len(lines)-1] // the last may not be complete yet
}

// await waits for a line beyond the first skip ones, and returns its number.
func (term *terminal) await(t *testing.T, skip int, what string, is func(line string) bool) int {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		lines := frames(term.text())
		for i := skip; i < len(lines); i++ {
			if is(lines[i]) {
				return i
			}
		}
		select {
		case <-term.more:
		case <-term.ended:
			t.Fatalf("it ended without %s:\n%q", what, term.text())
		case <-deadline:
			t.Fatalf("no %s:\n%q", what, term.text())
		}
	}
}

// narrow checks that no line is wider than the terminal.
func narrow(t *testing.T, lines []string, width int) {
	t.Helper()
	for _, line := range lines {
		if utf8.RuneCountInString(line) > width {
			t.Errorf("in %d columns: %q", width, line)
		}
	}
}

// stage serves one migration, m1, whose reports the test sends.
func stage(t *testing.T) (server string, reports chan<- migrate.Report) {
	t.Helper()
	tell := make(chan migrate.Report)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/migrations", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(at(migrate.StatePending, nil))
	})
	mux.HandleFunc("GET /v1/processes", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.Processes{Processes: []migrate.Process{
			{Host: "host-a", PID: 42, Command: strings.Repeat("long ", 100)},
		}})
	})
	mux.HandleFunc("GET /v1/migrations/m1/watch", func(w http.ResponseWriter, r *http.Request) {
		for {
			select {
			case report := <-tell:
				line, _ := json.Marshal(report)
				fmt.Fprintf(w, "data: %s\n\n", line)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: mux}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		_ = s.Close()
		serving.Wait()
	})
	return socket, tell
}

func at(state migrate.State, p *migrate.Progress) migrate.Report {
	return migrate.Report{
		ID: "m1", PID: 42, Command: "/usr/bin/python3 -m thing", From: "host-a", To: "host-b",
		State: state, Settled: state == migrate.StateDone, Progress: p, DowntimeMS: 12.5, TotalMS: 2345,
	}
}

// halfway is as long as figures get.
var halfway = &migrate.Progress{
	Round: 1, RoundPages: 1000, RoundSent: 500, Bytes: 70_000_000,
	RateBytes: 1e8, DirtyRateBytes: 1e6, EstimateMS: 12,
}

func TestBarFitsTheTerminal(t *testing.T) {
	for _, width := range []int{20, 40, 80, 200} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			t.Setenv("TERM", "xterm")
			server, reports := stage(t)
			term, cmd := onTerminal(t, uint16(width), server, "move", "42", "--from", "host-a", "--to", "host-b")
			reports <- at(migrate.StatePreflight, nil)
			reports <- at(migrate.StatePrecopy, halfway)
			term.await(t, 0, "phase", func(l string) bool { return strings.HasPrefix(l, "PREFLIGHT") })
			reports <- at(migrate.StatePrecopy, halfway)
			term.await(t, 0, "round", func(l string) bool { return strings.HasPrefix(l, "PRECOPY round 1") })
			if width >= 80 {
				term.await(t, 0, "all figures beside a bar", func(l string) bool {
					return strings.Contains(l, "=") && strings.Contains(l, "66.8 MiB, 95.4 MiB/s, dirty 977 KiB/s, downtime 12.0 ms")
				})
			}
			reports <- at(migrate.StateDone, nil)
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			<-term.ended
			text := term.text()
			drawn := strings.LastIndex(text, erase)
			if drawn < 0 {
				t.Fatalf("nothing was drawn anew: %q", text)
			}
			narrow(t, frames(text[:drawn]), width)
			const want = "Moved 42 (python3) from host-a to host-b in 2.3 s; it stood still for 12.5 ms.\n"
			summary := text[drawn+len(erase):]
			if !strings.HasPrefix(summary, want) || strings.Contains(summary, "\x1b") || strings.Contains(summary, "[") {
				t.Errorf("in the end the terminal shows %q", summary)
			}
		})
	}
}

func TestBarFollowsAResize(t *testing.T) {
	t.Setenv("TERM", "xterm")
	server, reports := stage(t)
	term, cmd := onTerminal(t, 40, server, "watch", "m1")
	n := 0
	for _, width := range []int{40, 100, 20, 80} {
		term.resize(t, uint16(width))
		for range 2 { // a line is complete when the next one takes its place
			reports <- at(migrate.StatePrecopy, halfway)
		}
		want := "PRECOPY"
		if width >= 80 {
			want = "downtime 12.0 ms"
		}
		n = term.await(t, n, fmt.Sprint("bar in ", width, " columns"), func(l string) bool {
			return strings.Contains(l, want) && utf8.RuneCountInString(l) < width
		}) + 1
	}
	reports <- at(migrate.StateDone, nil)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// What cannot be drawn on gets lines.
func TestNoBar(t *testing.T) {
	for _, tt := range []struct {
		name  string
		width uint16
		term  string
	}{{"dumb", 80, "dumb"}, {"no size", 0, "xterm"}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TERM", tt.term)
			server, reports := stage(t)
			term, cmd := onTerminal(t, tt.width, server, "watch", "m1")
			reports <- at(migrate.StatePrecopy, halfway)
			term.await(t, 0, "line", func(l string) bool { return strings.HasPrefix(l, "m1  round 1: 500 of 1000 pages") })
			reports <- at(migrate.StateDone, nil)
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			<-term.ended
			if text := term.text(); strings.Contains(text, "\x1b") {
				t.Errorf("escape codes: %q", text)
			}
		})
	}
}

// A command line is cut on a terminal, and whole where a program may read it.
func TestLongCommandLines(t *testing.T) {
	server, _ := stage(t)
	term, cmd := onTerminal(t, 90, server, "ps")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	<-term.ended
	lines := frames(term.text())
	narrow(t, lines, 90)
	if len(lines) != 2 || !strings.HasSuffix(lines[1], "…") {
		t.Errorf("on a terminal: %q", lines)
	}
	out, err := exec.Command("migratectl", "ps", "--server", server).Output()
	if err != nil || !strings.Contains(string(out), strings.Repeat("long ", 100)) || strings.Contains(string(out), "\x1b") {
		t.Errorf("on a pipe: %v, %q", err, out)
	}
}
