package verdict

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAskAndAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ask")
	questions := Questions(t.Context(), path)
	// An answer that an earlier asker did not wait for does not count.
	if err := Answer(path, Verdict{Token: "earlier"}); err != nil {
		t.Fatal(err)
	}
	want := Verdict{Program: "test", OK: true, Problems: []string{}, Counts: map[string]int64{"a": 1}}
	go func() {
		for token := range questions {
			want.Token = token
			_ = Answer(path, want)
			return
		}
	}()
	got, err := Ask(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestAskNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ask")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Ask(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("asking nobody: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the question is still there")
	}
}
