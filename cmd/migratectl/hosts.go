package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/coordinator/api"
)

func newHosts(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "hosts",
		Short: "List hosts, with what they have and what they do",
		Example: `  migratectl hosts
  migratectl hosts --json | jq -r '.hosts[] | select(.status == "alive") | .name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := s.client(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			hosts, err := client.Hosts(cmd.Context())
			if err != nil {
				return err
			}
			return s.output(cmd).write(api.Hosts{Hosts: hosts}, func(w io.Writer) {
				var rows [][]string
				for _, h := range hosts {
					rows = append(rows, []string{
						h.Name, h.Address, h.Status, h.Kernel, strconv.Itoa(h.CPUs), fmt.Sprintf("%.2f", h.Load1),
						size(h.MemoryBytes), size(h.FreeBytes), strconv.Itoa(h.Migrations),
					})
				}
				table(w, []string{"HOST", "ADDRESS", "STATUS", "KERNEL", "CPUS", "LOAD", "MEMORY", "FREE", "MIGRATIONS"}, rows)
			})
		},
	}
}
