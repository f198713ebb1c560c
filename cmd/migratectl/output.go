package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// An output is where a verb's result goes.
type output struct {
	to   io.Writer
	json bool
}

func (s *settings) output(cmd *cobra.Command) output {
	return output{to: cmd.OutOrStdout(), json: s.json}
}

// write prints the document, or what text writes.
func (o output) write(document any, text func(io.Writer)) error {
	if o.json {
		encoder := json.NewEncoder(o.to)
		encoder.SetIndent("", "  ")
		return encoder.Encode(document)
	}
	t := &sticky{to: o.to}
	text(t)
	return t.err
}

// sticky remembers the first error, so that printing need not look for it.
type sticky struct {
	to  io.Writer
	err error
}

func (s *sticky) Write(p []byte) (int, error) {
	if s.err == nil {
		_, s.err = s.to.Write(p)
	}
	return len(p), s.err
}

// table prints rows under headings, in columns as wide as they need.
func table(to io.Writer, headings []string, rows [][]string) {
	t := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{headings}, rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = oneLine(cell)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	_ = t.Flush() // the writer below remembers its error
}

// oneLine is a text that somebody else chose, as a process does its command
// line, without what would break a line or reach the terminal as a command.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// columns is the width of the terminal that w is; 0 if it is none, or one that
// does not know.
func columns(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// clip cuts a line to a width; one of 0 or less cannot be kept.
func clip(line string, width int) string {
	if runes := []rune(line); width > 0 && len(runes) > width {
		return string(runes[:width-1]) + "…"
	}
	return line
}
