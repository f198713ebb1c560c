package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
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
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	_ = t.Flush() // the writer below remembers its error
}
