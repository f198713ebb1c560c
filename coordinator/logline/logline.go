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
	"io"
	"log/slog"
)

var levels = map[string]slog.Level{
	"TRACE": slog.LevelDebug - 4,
	"DEBUG": slog.LevelDebug,
	"INFO":  slog.LevelInfo,
	"WARN":  slog.LevelWarn,
	"ERR":   slog.LevelError,
	"ERROR": slog.LevelError,
}

// Writer logs each write, which is one line with these libraries, to l.
func Writer(l *slog.Logger) io.Writer { return writer{l} }

type writer struct{ log *slog.Logger }

func (w writer) Write(p []byte) (int, error) {
	level, message := parse(p)
	w.log.Log(context.Background(), level, message)
	return len(p), nil
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
