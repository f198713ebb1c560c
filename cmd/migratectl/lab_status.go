package main

import (
	"cmp"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func newLabStatus(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the hosts of a lab and how their agents are",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := s.findLab()
			if err != nil {
				return err
			}
			status := l.Status(cmd.Context())
			return s.output(cmd).write(status, func(w io.Writer) {
				fmt.Fprintf(w, "lab %s, leader %s\n\n", status.ID, cmp.Or(status.Leader, "unknown"))
				var rows [][]string
				for _, h := range status.Hosts {
					rows = append(rows, []string{h.Name, h.Address, h.Agent})
				}
				table(w, []string{"HOST", "ADDRESS", "AGENT"}, rows)
			})
		},
	}
}
