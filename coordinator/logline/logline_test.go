package logline

import (
	"bytes"
	"io"
	"log"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func TestWriter(t *testing.T) {
	for _, tt := range []struct {
		name  string
		write func(io.Writer)
		want  string
	}{
		{
			"raft", func(w io.Writer) {
				hclog.New(&hclog.LoggerOptions{Name: "raft", Output: w, DisableTime: true}).Warn("no peers", "term", 3)
			},
			`level=WARN msg="raft: no peers: term=3"`,
		},
		{
			"memberlist", func(w io.Writer) { log.New(w, "", 0).Printf("[ERR] memberlist: Failed to send: %v", io.EOF) },
			`level=ERROR msg="memberlist: Failed to send: EOF"`,
		},
		{
			"without a level", func(w io.Writer) { log.New(w, "", 0).Print("odd [DEBUG] line\n") },
			`level=WARN msg="odd [DEBUG] line"`,
		},
		{
			"below the level", func(w io.Writer) { log.New(w, "", 0).Print("[DEBUG] memberlist: Stream connection") },
			``,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
				ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
					if a.Key == slog.TimeKey {
						return slog.Attr{}
					}
					return a
				},
			}))
			w := NewWriter(logger)
			tt.write(w)
			if err := w.Close(); err != nil {
				t.Error(err)
			}
			tt.write(w) // says nothing
			if got := strings.TrimSpace(out.String()); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("[WARN]  raft: heartbeat timeout reached\n"))
	f.Add([]byte("[ERR] memberlist: Failed to send: EOF"))
	f.Add([]byte("[what] is this"))
	f.Fuzz(func(t *testing.T, line []byte) {
		level, message := parse(line)
		if !bytes.Contains(line, []byte(message)) || message != string(bytes.TrimSpace([]byte(message))) {
			t.Errorf("%q: %q", line, message)
		}
		if level != slog.LevelWarn && !bytes.HasPrefix(bytes.TrimSpace(line), []byte("[")) {
			t.Errorf("%q: %v", line, level)
		}
	})
}
