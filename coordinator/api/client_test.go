package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pagurus-project/pagurus/migrate"
)

// serve answers on a unix socket, for a client of its own.
func serve(t *testing.T, patience time.Duration, handler http.HandlerFunc) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l) // until Close
	}()
	client, err := NewClient(Config{Socket: path, Patience: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		server.Close()
		<-served
	})
	return client
}

func problem(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(&Error{Status: status, Code: code, Detail: "because of " + code})
}

func TestRepeatsWhatIsNotAnswered(t *testing.T) {
	var keys []string
	client := serve(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
		var req MoveRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		keys = append(keys, req.Key)
		switch len(keys) {
		case 1:
			problem(w, http.StatusServiceUnavailable, CodeNoLeader)
		case 2:
			panic(http.ErrAbortHandler) // the connection breaks
		case 3:
			fmt.Fprint(w, `{"id": "m`) // in the middle of the answer
		default:
			fmt.Fprint(w, `{"id": "m1"}`)
		}
	})
	r, err := client.Move(t.Context(), MoveRequest{PID: 7})
	if err != nil || r.ID != "m1" {
		t.Errorf("got %+v, %v", r, err)
	}
	if len(keys) != 4 || keys[0] == "" {
		t.Fatalf("keys %q", keys)
	}
	for _, key := range keys {
		if key != keys[0] {
			t.Errorf("a repeated request has another key: %q", keys)
		}
	}
}

func TestErrorsThatStand(t *testing.T) {
	n := 0
	client := serve(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
		n++
		switch r.URL.Path {
		case "/v1/migrations/m1":
			problem(w, http.StatusNotFound, CodeNotFound)
		case "/v1/migrations/m2":
			http.Error(w, "I am no coordinator", http.StatusTeapot)
		}
	})
	_, err := client.Migration(t.Context(), "m1")
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeNotFound || e.Error() != "because of not-found" {
		t.Errorf("got %v", err)
	}
	_, err = client.Migration(t.Context(), "m2")
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeInternal || e.Status != http.StatusTeapot {
		t.Errorf("got %v", err)
	}
	if n != 2 {
		t.Errorf("asked %d times", n)
	}
}

func TestNoAnswer(t *testing.T) {
	client := serve(t, time.Nanosecond, func(w http.ResponseWriter, _ *http.Request) {
		problem(w, http.StatusServiceUnavailable, CodeNoLeader)
	})
	_, err := client.Hosts(t.Context())
	if e, ok := errors.AsType[*Error](err); !errors.Is(err, ErrNoAnswer) || !ok || e.Code != CodeNoLeader {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	client = serve(t, time.Minute, func(w http.ResponseWriter, _ *http.Request) {
		problem(w, http.StatusServiceUnavailable, CodeNoLeader)
		cancel()
	})
	if _, err := client.Hosts(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"nothing":         {},
		"both":            {Socket: "x", Servers: []string{"a:1"}},
		"without TLS":     {Servers: []string{"a:1"}},
		"without a port":  {Servers: []string{"a"}},
		"with a protocol": {Servers: []string{"https://a"}},
	} {
		if _, err := NewClient(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestWatch: streams break off before and after they have said something, and
// the watcher notices nothing.
func TestWatch(t *testing.T) {
	var streams atomic.Int32
	client := serve(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/migrations/m1/watch" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		switch streams.Add(1) {
		case 1:
			problem(w, http.StatusServiceUnavailable, CodeNoLeader)
		case 2: // says nothing
		case 3:
			fmt.Fprint(w, ": still there\n\ndata: {\"id\":\"m1\",\"state\":\"PRECOPY\"}\n\ndata: {\"id\":")
		case 4:
			fmt.Fprint(w, "data: {\"id\":\"m1\",\"state\":\"DONE\"}\n\n")
			fmt.Fprint(w, "data: {\"id\":\"m1\",\"state\":\"DONE\",\"settled\":true}\n\ndata: {\"state\":\"after the end\"}\n\n")
		}
	})
	var states []migrate.State
	for r, err := range client.Watch(t.Context(), "m1") {
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, r.State)
	}
	want := []migrate.State{migrate.StatePrecopy, migrate.StateDone, migrate.StateDone}
	if diff := cmp.Diff(want, states); diff != "" || streams.Load() != 4 {
		t.Errorf("%d streams: %s", streams.Load(), diff)
	}
}

func TestWatchEnds(t *testing.T) {
	client := serve(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "m9") {
			problem(w, http.StatusNotFound, CodeNotFound)
			return
		}
		fmt.Fprint(w, "data: {\"id\":\"m1\",\"state\":\"PRECOPY\"}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	// By the caller's leaving the loop, by the end of its context, and by an
	// answer that will not change.
	for range client.Watch(t.Context(), "m1") {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for _, err := range client.Watch(ctx, "m1") {
		cancel()
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("got %v", last)
	}
	n := 0
	for _, err := range client.Watch(t.Context(), "m9") {
		n++
		if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeNotFound {
			t.Errorf("got %v", err)
		}
	}
	if n != 1 {
		t.Errorf("%d reports on nothing", n)
	}
}

func TestReadEvents(t *testing.T) {
	for _, tt := range []struct {
		name, stream string
		want         []string
		stop         int // after so many, zero for never
	}{
		{"two", "data: a\n\ndata: b\n\n", []string{"a", "b"}, 0},
		{"two lines", "data: a\ndata: b\n\n", []string{"a\nb"}, 0},
		{"without a space", "data:a\n\n", []string{"a"}, 0},
		{"one space only", "data:  a\n\n", []string{" a"}, 0},
		{"carriage returns", "data: a\r\n\r\n", []string{"a"}, 0},
		{"empty data", "data\ndata:\n\n", nil, 0},
		{"comment", ": hello\n\ndata: a\n\n", []string{"", "a"}, 0},
		{"other fields", "event: x\nid: 1\nretry: 5\ndata: a\n\nevent: y\n\n", []string{"a"}, 0},
		{"cut off", "data: a\n\ndata: b\n", []string{"a"}, 0},
		{"enough", "data: a\n\ndata: b\n\n", []string{"a"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			err := readEvents(strings.NewReader(tt.stream), func(data []byte) (bool, error) {
				got = append(got, string(data))
				return len(got) != tt.stop, nil
			})
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Error(err, diff)
			}
		})
	}
	failed := errors.New("failed")
	if err := readEvents(strings.NewReader("data: a\n\n"), func([]byte) (bool, error) { return true, failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
}

// FuzzReadEvents: whatever a server sends, an event has no more bytes than
// were sent, and no line of it is made up.
func FuzzReadEvents(f *testing.F) {
	f.Add("data: a\ndata: b\n\n: c\n\nevent: d\n\n")
	f.Add("data\r\n\r\ndata:")
	f.Fuzz(func(t *testing.T, stream string) {
		total := 0
		_ = readEvents(strings.NewReader(stream), func(data []byte) (bool, error) {
			total += len(data)
			for line := range strings.Lines(string(data)) {
				if !strings.Contains(stream, strings.TrimSuffix(line, "\n")) {
					t.Errorf("%q is not in %q", line, stream)
				}
			}
			return true, nil
		})
		if total > len(stream) {
			t.Errorf("%d bytes out of %d", total, len(stream))
		}
	})
}
