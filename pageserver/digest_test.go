package pageserver_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pagurus-project/pagurus/pageserver"
	"github.com/pagurus-project/pagurus/pageserver/pagetest"
)

func digestOf(t rapid.TB, src pageserver.Source, runs ...pageserver.Run) pageserver.Digest {
	t.Helper()
	d, err := pageserver.DigestOf(context.Background(), src, runs)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// However a range is split and in whatever order its parts come, the digest is the same.
func TestDigestDoesNotDependOnTheSplit(t *testing.T) {
	m := new(pagetest.Memory)
	fill(m, newRand(1), run(1, 100, 300))
	whole := digestOf(t, m, run(1, 50, 400))
	rapid.Check(t, func(t *rapid.T) {
		cuts := rapid.SliceOfN(rapid.IntRange(51, 449), 0, 20).Draw(t, "cuts")
		slices.Sort(cuts)
		var runs []pageserver.Run
		first := 50
		for _, cut := range append(slices.Compact(cuts), 450) {
			runs = append(runs, run(1, pageserver.PageNo(first), uint64(cut-first)))
			first = cut
		}
		if got := digestOf(t, m, rapid.Permutation(runs).Draw(t, "order")...); got != whole {
			t.Errorf("%016x in %d parts, %016x in one", got, len(runs), whole)
		}
	})
}

// Two memories have the same digest exactly if they have the same pages.
func TestDigestSeesWhatDiffers(t *testing.T) {
	content := bytes.Repeat([]byte{1}, pageserver.PageSize)
	memory := func(change func(m *pagetest.Memory)) *pagetest.Memory {
		m := new(pagetest.Memory)
		m.Set(1, 0, content)
		m.Set(1, 1, nil)
		m.Set(1, 2, []byte("two"))
		change(m)
		return m
	}
	want := digestOf(t, memory(func(*pagetest.Memory) {}), run(1, 0, 4), run(2, 0, 4))
	for _, test := range []struct {
		name   string
		change func(m *pagetest.Memory)
		same   bool
	}{
		{"last bit of a page", func(m *pagetest.Memory) {
			p := bytes.Clone(content)
			p[len(p)-1] ^= 0x80
			m.Set(1, 0, p)
		}, false},
		{"zero page gone", func(m *pagetest.Memory) { m.Remove(1, 1) }, true},
		{"zero page where there was none", func(m *pagetest.Memory) { m.Set(1, 3, nil) }, true},
		{"page gone", func(m *pagetest.Memory) { m.Remove(1, 2) }, false},
		{"page more", func(m *pagetest.Memory) { m.Set(1, 3, []byte("three")) }, false},
		{"pages exchanged", func(m *pagetest.Memory) { m.Set(1, 2, content); m.Set(1, 0, []byte("two")) }, false},
		{"page in another space", func(m *pagetest.Memory) { m.Remove(1, 2); m.Set(2, 2, []byte("two")) }, false},
	} {
		got := digestOf(t, memory(test.change), run(1, 0, 4), run(2, 0, 4))
		if (got == want) != test.same {
			t.Errorf("%s: the digests are equal: %t", test.name, got == want)
		}
	}
}

func TestDifferingFindsThePages(t *testing.T) {
	runs := []pageserver.Run{run(1, 0, 10), run(1, 1000, 300), run(2, 5, 1), run(2, 7, 100)}
	a, b := new(pagetest.Memory), new(pagetest.Memory)
	for _, r := range runs {
		fill(a, newRand(1), r)
		fill(b, newRand(1), r)
	}
	for _, one := range []pageserver.Run{run(1, 9, 1), run(1, 1000, 1), run(2, 106, 1)} {
		b.Set(one.Space, one.First, []byte("different"))
	}
	for _, test := range []struct {
		chunk uint64
		want  []pageserver.Run
	}{
		{1, []pageserver.Run{run(1, 9, 1), run(1, 1000, 1), run(2, 106, 1)}},
		{16, []pageserver.Run{run(1, 0, 10), run(1, 1000, 6), run(2, 96, 11)}},
		{1 << 20, runs},
	} {
		chunks := func(m *pagetest.Memory) []pageserver.Digest {
			d, err := pageserver.DigestChunks(t.Context(), m, runs, test.chunk)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		got, err := pageserver.Differing(runs, test.chunk, chunks(a), chunks(b))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(test.want, got); d != "" {
			t.Errorf("by %d pages: %s", test.chunk, d)
		}
		if got, err := pageserver.Differing(runs, test.chunk, chunks(a), chunks(a)); got != nil || err != nil {
			t.Errorf("by %d pages: %v differ from themselves, %v", test.chunk, got, err)
		}
		if _, err := pageserver.Differing(runs, test.chunk, chunks(a), nil); err == nil {
			t.Errorf("by %d pages: digests of other runs are accepted", test.chunk)
		}
	}
}

// The digest of a round is that of its pages, so that it can be compared with
// one that was made from memory later.
func TestDigestOfARound(t *testing.T) {
	m := new(pagetest.Memory)
	fill(m, newRand(1), run(1, 0, 200))
	s := pageserver.NewSender(new(bytes.Buffer), m, pageserver.SenderOptions{})
	stats, err := s.Round(t.Context(), pageserver.RoundSpec{Runs: slices.Values(m.Runs())})
	if err != nil {
		t.Fatal(err)
	}
	if want := digestOf(t, m, m.Runs()...); stats.Digest != want {
		t.Errorf("%016x of the round, %016x of its pages", stats.Digest, want)
	}
}

func TestDigestErrors(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pageserver.DigestOf(canceled, new(pattern), []pageserver.Run{run(0, 0, 1000)}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := pageserver.DigestOf(t.Context(), &failing{after: 1}, []pageserver.Run{run(6, 0, 1000)}); !errors.Is(err, errTest) || !strings.Contains(err.Error(), "space 6") {
		t.Errorf("failing source: %v", err)
	}
	if _, err := pageserver.DigestOf(t.Context(), new(pattern), []pageserver.Run{run(0, 1<<52, 1)}); err == nil {
		t.Error("a page that cannot be was summed up")
	}
	if d, err := pageserver.DigestOf(t.Context(), new(pattern), nil); d != 0 || err != nil {
		t.Errorf("no pages: %016x, %v", d, err)
	}
}
