package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/coder/websocket"
)

// web serves HTTP/1.1 and HTTP/2 without encryption: POST /echo answers with what it was
// sent and the number of the request, /socket is a WebSocket that echoes.
type web struct {
	at      string
	journal *journal
	number  atomic.Int64
}

func newWeb(flags *flag.FlagSet, j *journal) program {
	w := &web{journal: j}
	flags.StringVar(&w.at, "at", "127.0.0.1:7312", "where it serves")
	return w
}

func (w *web) start() error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", w.echo)
	mux.HandleFunc("GET /socket", w.socket)
	server := &http.Server{Addr: w.at, Handler: mux, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { w.journal.problemf("serving: %v", server.ListenAndServe()) }()
	return nil
}

func (w *web) echo(out http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		_, err = fmt.Fprintf(out, "%s %s %d", r.Proto, body, w.number.Add(1))
	}
	if err != nil {
		w.journal.problemf("answering %s: %v", r.RemoteAddr, err)
	}
}

func (w *web) socket(out http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(out, r, nil)
	if err != nil {
		w.journal.problemf("accepting a WebSocket: %v", err)
		return
	}
	for err == nil {
		var kind websocket.MessageType
		var message []byte
		if kind, message, err = conn.Read(r.Context()); err == nil {
			err = conn.Write(r.Context(), kind, message)
		}
	}
	if websocket.CloseStatus(err) != websocket.StatusNormalClosure && !errors.Is(err, io.EOF) {
		w.journal.problemf("a WebSocket: %v", err)
	}
}

func (w *web) verify() findings {
	return findings{counts: map[string]int64{"requests": w.number.Load()}}
}
