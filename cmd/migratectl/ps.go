package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

func newPs(s *settings) *cobra.Command {
	var host string
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List processes that could be moved",
		Long: `Lists processes of all hosts, or of one, without kernel threads and without the
daemons that do the moving. That a process is listed does not mean that nothing
stands in its way: see "migratectl check".

A terminal shows as much of the command lines as it is wide; a pipe and --json
get all of them.`,
		Example: `  migratectl ps
  migratectl ps --host host-a`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.Processes(cmd.Context(), host)
			if err != nil {
				return err
			}
			if len(list.Unreachable) > 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "migratectl: the list is not complete, no answer from", strings.Join(list.Unreachable, ", "))
			}
			return s.output(cmd).write(list, func(w io.Writer) {
				var rows [][]string
				for _, p := range list.Processes {
					rows = append(rows, []string{
						p.Host, strconv.Itoa(p.PID), strconv.Itoa(p.PPID), strconv.Itoa(p.UID), p.State,
						strconv.Itoa(p.Threads), size(p.ResidentBytes), strconv.Itoa(p.Sockets), p.Migration, p.Command,
					})
				}
				var text strings.Builder
				table(&text, []string{"HOST", "PID", "PPID", "UID", "STATE", "THREADS", "SIZE", "SOCKETS", "MIGRATION", "COMMAND"}, rows)
				width := columns(cmd.OutOrStdout())
				for line := range strings.Lines(text.String()) {
					fmt.Fprintln(w, clip(strings.TrimSuffix(line, "\n"), width))
				}
			})
		},
	}
	cmd.Flags().StringVar(&host, "host", "", "only processes of this `HOST`")
	return cmd
}
