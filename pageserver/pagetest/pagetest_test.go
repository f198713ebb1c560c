package pagetest_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/s2"
	"go.uber.org/goleak"

	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/pageserver/pagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pass writes data into one end, closes it and returns what comes out of the
// other, and how long the first byte and all of it took.
func pass(t *testing.T, link pagetest.Link, data []byte) (got []byte, first, all time.Duration, writeErr error) {
	t.Helper()
	a, b := pagetest.Pair(link, pagetest.Link{})
	start := time.Now()
	done := make(chan error)
	go func() {
		_, err := a.Write(data)
		a.Close()
		done <- err
	}()
	buf := make([]byte, 1)
	n, err := b.Read(buf)
	first = time.Since(start)
	if err == nil {
		got, err = io.ReadAll(b)
	}
	all = time.Since(start)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return append(buf[:n], got...), first, all, <-done
}

func TestLink(t *testing.T) {
	data := make([]byte, 1<<20)
	pagetest.Random(rand.New(rand.NewPCG(1, 1)), data)
	damaged := bytes.Clone(data)
	damaged[0] ^= 1
	damaged[500_000] ^= 0x80
	for _, test := range []struct {
		name       string
		link       pagetest.Link
		want       []byte
		first, all time.Duration
		writeErr   error
	}{
		{"plain", pagetest.Link{}, data, 0, 0, nil},
		{"tiny buffer", pagetest.Link{BufferBytes: 10}, data, 0, 0, nil},
		{"slow", pagetest.Link{BytesPerSecond: 1 << 20}, data, time.Second / 64, time.Second, nil},
		{"distant", pagetest.Link{Delay: time.Second, BufferBytes: 1 << 20}, data, time.Second, time.Second, nil},
		{"slow and distant", pagetest.Link{BytesPerSecond: 1 << 20, Delay: time.Second, BufferBytes: 2 << 20}, data, time.Second + time.Second/64, 2 * time.Second, nil},
		{"damaged", pagetest.Link{Damage: map[int64]byte{0: 1, 500_000: 0x80}}, damaged, 0, 0, nil},
		{"cut", pagetest.Link{CutAfter: 100_001}, data[:100_001], 0, 0, io.ErrClosedPipe},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got, first, all, err := pass(t, test.link, data)
				if !bytes.Equal(got, test.want) {
					t.Errorf("%d bytes came out, not the %d expected", len(got), len(test.want))
				}
				if first != test.first || all != test.all {
					t.Errorf("the first byte took %v, all %v; want %v and %v", first, all, test.first, test.all)
				}
				if !errors.Is(err, test.writeErr) {
					t.Errorf("writing: %v", err)
				}
			})
		})
	}
}

func TestPairDeadlinesAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pagetest.Pair(pagetest.Link{BufferBytes: 10}, pagetest.Link{})
		ended := func(name string, want error, wantAfter time.Duration, f func([]byte) (int, error)) {
			t.Helper()
			start := time.Now()
			if _, err := f(make([]byte, 20)); !errors.Is(err, want) || time.Since(start) != wantAfter {
				t.Errorf("%s: %v after %v, want %v after %v", name, err, time.Since(start), want, wantAfter)
			}
		}
		if err := a.SetDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		ended("read", os.ErrDeadlineExceeded, time.Second, a.Read)
		ended("write", os.ErrDeadlineExceeded, 0, a.Write)
		if err := a.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Minute, func() { b.Close() })
		ended("write of more than the other end reads before it closes", io.ErrClosedPipe, time.Minute, a.Write)
		ended("read of a closed other end", io.EOF, 0, a.Read)
		ended("read of an end closed here", net.ErrClosed, 0, b.Read)
	})
}

func TestMemory(t *testing.T) {
	m, other := new(pagetest.Memory), new(pagetest.Memory)
	ranges := []pageserver.Range{{First: 3, Pages: 2}, {First: 9, Pages: 1}}
	content := bytes.Repeat([]byte("123456789abcdef\n"), 3*pageserver.PageSize/16)
	if err := errors.Join(m.Write(1, ranges, content), m.Zero(2, ranges), m.Drop(1, ranges[1:])); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 3*pageserver.PageSize)
	missing, err := m.Read(1, ranges, buf)
	if err != nil || len(missing) != 1 || missing[0] != ranges[1] || !bytes.Equal(buf[:2*pageserver.PageSize], content[:2*pageserver.PageSize]) {
		t.Errorf("read back: %v missing, %v", missing, err)
	}
	if got := m.Page(2, 4); !bytes.Equal(got, make([]byte, pageserver.PageSize)) {
		t.Error("the zero page is not zero")
	}
	if m.Differs(other) == "" {
		t.Error("it does not differ from empty memory")
	}
	for _, run := range m.Runs() {
		for i := range pageserver.PageNo(run.Pages) {
			other.Set(run.Space, run.First+i, m.Page(run.Space, run.First+i))
		}
	}
	if d := m.Differs(other); d != "" {
		t.Errorf("differs from its copy: %s", d)
	}
	other.Set(2, 9, []byte{1})
	if m.Differs(other) == "" {
		t.Error("a changed byte makes no difference")
	}
}

// What codecs make of it is what the content is for.
func TestContent(t *testing.T) {
	b := make([]byte, 4<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	pagetest.Random(rng, b)
	if n := len(s2.Encode(nil, b)); n < len(b) {
		t.Errorf("random content shrank from %d to %d bytes", len(b), n)
	}
	pagetest.Heap(rng, b)
	if n := len(s2.Encode(nil, b)); n < len(b)/5 || n > len(b)*2/3 {
		t.Errorf("content like a heap shrank from %d to %d bytes", len(b), n)
	}
	zero := 0
	for i := 0; i < len(b); i += pageserver.PageSize {
		if bytes.Equal(b[i:i+pageserver.PageSize], make([]byte, pageserver.PageSize)) {
			zero++
		}
	}
	if pages := len(b) / pageserver.PageSize; zero < pages/20 || zero > pages/4 {
		t.Errorf("%d of %d pages are zero", zero, pages)
	}
}
