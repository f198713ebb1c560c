// Package logline turns the text lines that hashicorp's libraries log into
// records of log/slog. raft and memberlist both write lines of the form
//
//	[WARN]  raft: heartbeat timeout reached, starting election: last-leader-addr=...
//
// so one reader of lines serves both. It may be used from any goroutine.
package logline

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
)

var levels = map[string]slog.Level{
	"TRACE": slog.LevelDebug - 4,
	"DEBUG": slog.LevelDebug,
	"INFO":  slog.LevelInfo,
	"WARN":  slog.LevelWarn,
	"ERR":   slog.LevelError,
	"ERROR": slog.LevelError,
}

// A Writer logs each write, which is one line with these libraries, until it is closed: some of
// their goroutines outlive what has been shut down, and complain of it.
type Writer struct {
	mu     sync.RWMutex // held to log
	log    *slog.Logger
	closed bool
}

// NewWriter returns one that logs to l.
func NewWriter(l *slog.Logger) *Writer { return &Writer{log: l} }

// Write never fails.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if !w.closed {
		level, message := parse(p)
		w.log.Log(context.Background(), level, message)
	}
	return len(p), nil
}

// Close waits for writes that are under way; later ones say nothing. It never fails.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return nil
}

// parse finds the level in brackets; a line without one is worth a look.
func parse(line []byte) (slog.Level, string) {
	line = bytes.TrimSpace(line)
	if before, rest, ok := bytes.Cut(line, []byte("[")); ok && len(bytes.TrimSpace(before)) == 0 {
		if name, message, ok := bytes.Cut(rest, []byte("]")); ok {
			if level, ok := levels[string(name)]; ok {
				return level, string(bytes.TrimSpace(message))
			}
		}
	}
	return slog.LevelWarn, string(line)
}
