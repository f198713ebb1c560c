package control

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func pair(t *testing.T) (caller, host *Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	caller, err = Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	unix, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	host = NewConn(unix)
	t.Cleanup(func() { caller.Close(); host.Close() })
	return caller, host
}

// A message larger than any socket buffer arrives whole, with its descriptors.
func TestLongMessageWithDescriptors(t *testing.T) {
	caller, host := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := Request{Exec: &Exec{Args: []string{"true"}, Env: []string{strings.Repeat("x", 4<<20)}}}
	sent := make(chan error, 1)
	go func() { sent <- caller.Send(want, w, w, w) }()
	var got Request
	if err := host.Receive(&got); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	w.Close()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	files := host.Files()
	if len(files) != 3 {
		t.Fatalf("%d descriptors came, want 3", len(files))
	}
	for _, f := range files {
		if _, err := f.WriteString("."); err != nil {
			t.Error(err)
		}
		f.Close()
	}
	if through, err := io.ReadAll(r); err != nil || string(through) != "..." {
		t.Errorf("the pipe carried %q, %v", through, err)
	}
}

func TestReceiveAfterHangUp(t *testing.T) {
	caller, host := pair(t)
	caller.Close()
	if err := host.Receive(&Request{}); !errors.Is(err, io.EOF) {
		t.Errorf("receiving from a closed connection: %v, want io.EOF", err)
	}
}

func TestExitStatus(t *testing.T) {
	for _, tt := range []struct {
		exit Exit
		want int
	}{{Exit{}, 0}, {Exit{Code: 7}, 7}, {Exit{Signal: 15}, 143}} {
		if got := tt.exit.Status(); got != tt.want {
			t.Errorf("%+v.Status() = %d, want %d", tt.exit, got, tt.want)
		}
	}
}
