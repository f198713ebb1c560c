package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// An exchange is one request that the stand-in for a coordinator knows, and
// what it answers: one document, or events one after the other.
type exchange struct {
	Request string            `json:"request"` // as "GET /v1/hosts"
	Having  string            `json:"having"`  // is part of the request's body
	Status  int               `json:"status"`  // 0 for 200
	Body    json.RawMessage   `json:"body"`
	Events  []json.RawMessage `json:"events"`
	// Until is a request that is waited for before the last event.
	Until string `json:"until"`
}

// serveAPI is the command "api FILE": it answers on a unix socket what FILE
// says, notes requests in the file requests, and lets migratectl find it.
func serveAPI(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: api FILE")
	}
	var exchanges []exchange
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &exchanges))
	socket := ts.MkAbs("api.sock")
	l, err := net.Listen("unix", socket)
	ts.Check(err)
	requests, err := os.Create(ts.MkAbs("requests"))
	ts.Check(err)
	c := &fakeCoordinator{exchanges: exchanges, seen: make(map[string]chan struct{}), requests: requests}
	server := &http.Server{Handler: c}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			ts.Logf("serving: %v", err)
		}
	})
	ts.Defer(func() {
		_ = server.Close()
		serving.Wait()
		_ = requests.Close()
	})
	ts.Setenv("MIGRATE_SERVER", socket)
}

type fakeCoordinator struct {
	exchanges []exchange

	mu       sync.Mutex
	seen     map[string]chan struct{} // closed when the request has come
	requests io.Writer
}

// arrival is closed when a request has come.
func (c *fakeCoordinator) arrivalLocked(request string) chan struct{} {
	if c.seen[request] == nil {
		c.seen[request] = make(chan struct{})
	}
	return c.seen[request]
}

func (c *fakeCoordinator) arrive(request string, body []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.requests, "%s %s\n", request, body)
	came := c.arrivalLocked(request)
	select {
	case <-came:
	default:
		close(came)
	}
}

func (c *fakeCoordinator) arrival(request string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.arrivalLocked(request)
}

func (c *fakeCoordinator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	request := r.Method + " " + r.URL.RequestURI()
	body, _ := io.ReadAll(r.Body)
	c.arrive(request, body)
	for _, e := range c.exchanges {
		if e.Request != request || !strings.Contains(string(body), e.Having) {
			continue
		}
		if e.Status != 0 {
			w.WriteHeader(e.Status)
		}
		if e.Events == nil {
			_, _ = w.Write(e.Body)
			return
		}
		for i, event := range e.Events {
			if e.Until != "" && i == len(e.Events)-1 {
				select {
				case <-c.arrival(e.Until):
				case <-r.Context().Done():
					return
				}
			}
			var line bytes.Buffer
			_ = json.Compact(&line, event) // it was valid when it was read
			fmt.Fprintf(w, "data: %s\n\n", line.Bytes())
			w.(http.Flusher).Flush()
		}
		return
	}
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprintf(w, `{"code": "not-found", "detail": "no such thing: %s"}`, request)
}
