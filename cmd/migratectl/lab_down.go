package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/pagurus-project/pagurus/e2e/lab"
)

// removed is what "lab down --json" prints.
type removed struct {
	Labs []string `json:"labs"`
}

func newLabDown(s *settings) *cobra.Command {
	var name string
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End everything in a lab and remove it",
		Long: `Ends everything that runs in a lab and removes it, whatever state it is in:
also one whose "lab up" was killed half way.`,
		Example: `  migratectl lab down
  migratectl lab down --name big
  migratectl lab down --all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ids, err := s.labsToRemove(name, all)
			if err != nil {
				return err
			}
			done := removed{Labs: []string{}}
			var failed []error
			for _, id := range ids {
				if err := lab.Remove(cmd.Context(), id); err != nil {
					failed = append(failed, err)
					continue
				}
				done.Labs = append(done.Labs, id)
			}
			failed = append(failed, s.output(cmd).write(done, func(w io.Writer) {
				for _, id := range done.Labs {
					fmt.Fprintf(w, "lab %s is gone\n", id)
				}
			}))
			return errors.Join(failed...)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the lab (default --lab, MIGRATE_LAB, or the only one)")
	cmd.Flags().BoolVar(&all, "all", false, "every lab of this machine")
	cmd.MarkFlagsMutuallyExclusive("name", "all")
	return cmd
}

func (s *settings) labsToRemove(name string, all bool) ([]string, error) {
	if all {
		return lab.IDs()
	}
	if name == "" {
		name = s.labID()
	}
	id, err := lab.Resolve(name)
	return []string{id}, err
}
