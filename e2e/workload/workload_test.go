package main

import (
	"bufio"
	"context"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/workload/verdict"
)

const asWorkload = "TEST_AS_WORKLOAD"

// TestMain lets the test binary be the program.
func TestMain(m *testing.M) {
	if os.Getenv(asWorkload) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestPrograms(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		counts []string
	}{
		{[]string{"memory", "-size", "4MiB", "-churn"}, []string{"writes", "verified", "mmap", "mremap"}},
		{[]string{"float", "-unit", "avx", "-rounds", "1000"}, []string{"stretches", "references"}},
		{[]string{"float", "-threads", "3", "-rounds", "1000"}, []string{"stretches", "references"}},
		{[]string{"epoll", "-period", "2ms", "-file", "watched"}, []string{"epoll_wait", "futex", "read inotify", "read pipe"}},
		{[]string{"gosched"}, []string{"channel rounds", "pipe rounds", "ticks", "collections"}},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			dir := t.TempDir()
			ask := filepath.Join(dir, "ask")
			c := exec.Command("/proc/self/exe", append(tt.args, "-ask", ask)...)
			c.Dir = dir
			c.Env = append(os.Environ(), asWorkload+"=1")
			c.Stderr = os.Stderr
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
			lines := bufio.NewReader(out)
			if line, err := lines.ReadString('\n'); err != nil || !strings.HasPrefix(line, "ready "+tt.args[0]) {
				t.Fatalf("it says %q, %v", line, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for range 2 {
				v, err := verdict.Ask(ctx, ask)
				if err != nil {
					t.Fatal(err)
				}
				if !v.OK || v.PID != c.Process.Pid {
					t.Errorf("the verdict of process %d: %+v", c.Process.Pid, v)
				}
				for _, name := range tt.counts {
					if v.Counts[name] == 0 {
						t.Errorf("it has counted no %s: %v", name, v.Counts)
					}
				}
			}
			if err := c.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(lines)
			if err != nil || !strings.Contains(string(rest), `"ok":true`) {
				t.Errorf("at its end it says %q, %v", rest, err)
			}
			if err := c.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMemoryNoticesDamage(t *testing.T) {
	for name, damage := range map[string]func(o *owner){
		"one bit":          func(o *owner) { o.page(3)[1000] ^= 4 },
		"another page":     func(o *owner) { copy(o.page(3), o.page(2)) },
		"an older state":   func(o *owner) { fill(o.page(3), 3, o.generations[3]-1) },
		"a lost page":      func(o *owner) { clear(o.page(3)) },
		"a lost count":     func(o *owner) { o.generations[1]--; fill(o.page(1), 1, o.generations[1]) },
		"a page of before": func(o *owner) { fill(o.page(0), 0, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			const pages = 4
			o := &owner{pages: make([]byte, pages*pageSize), generations: make([]uint32, pages)}
			for i := range pages {
				// Until no page is zero by chance.
				for first := true; first || allZero(o.page(i)) || o.generations[i] < 2; first = false {
					o.write(i)
				}
			}
			w := newWatch(&journal{})
			o.verifyAll(w)
			if len(w.journal.problems) != 0 {
				t.Fatalf("before: %v", w.journal.problems)
			}
			damage(o)
			o.verifyAll(w)
			if len(w.journal.problems) == 0 {
				t.Error("nothing was noticed")
			}
		})
	}
}

func allZero(page []byte) bool {
	return !slices.ContainsFunc(page, func(b byte) bool { return b != 0 })
}

func TestFloatNoticesDamage(t *testing.T) {
	for _, unit := range vectorUnits {
		if !unit.has {
			t.Logf("this CPU has no %s", unit.name)
			continue
		}
		real := unit.spin
		for name, damage := range map[string]func(m *machine){
			"nothing":          nil,
			"one bit":          func(m *machine) { flip(&m.lanes[unit.width*2]) },
			"registers change": func(m *machine) { rotate(m.lanes[:2*unit.width], unit.width) },
			"rounding":         func(m *machine) { m.mxcsr = mxcsrTowardZero },
			"precision":        func(m *machine) { m.cw = cwDouble },
			"x87 stack":        func(m *machine) { m.stack[2] = 0 },
			"masks":            func(m *machine) { m.masks[6]++ },
		} {
			t.Run(unit.name+" "+name, func(t *testing.T) {
				w := &floatWorker{journal: &journal{}, unit: unit, rounds: 100}
				w.fill(0)
				calls := 0
				w.unit.spin = func(m *machine, rounds uint64) {
					if calls++; calls == 2 && damage != nil {
						damage(m)
					}
					real(m, rounds)
				}
				w.stretch()
				w.reference()
				if noticed := len(w.journal.problems) > 0; noticed != (damage != nil) {
					t.Errorf("problems: %v", w.journal.problems)
				}
			})
		}
	}
}

// flip changes the last bit but a few: what is lost by rounding is no test.
func flip(x *float64) { *x = math.Float64frombits(math.Float64bits(*x) ^ 1<<8) }

func TestWaiterNoticesWhatIsWrong(t *testing.T) {
	for name, err := range map[string]error{
		"interrupted": nothing(-1, unix.EINTR),
		"an event":    nothing(1, nil),
		"woken":       expired(nil, unix.ETIMEDOUT),
		"other error": expired(unix.EINTR, unix.ETIMEDOUT),
		"end of file": something(0, nil),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := expired(unix.ETIMEDOUT, unix.ETIMEDOUT); err != nil {
		t.Error(err)
	}
}
