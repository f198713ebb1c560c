package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pagurus-project/pagurus/coordinator/api"
	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/trust"
)

// defaultTLS is where an operator's certificate lies if nothing else is said.
const defaultTLS = "/etc/pagurus"

// socketPatience is for one of several sockets on the same machine.
const socketPatience = 2 * time.Second

// client connects to a coordinator; the caller closes it.
func (s *settings) client(ctx context.Context) (*api.Client, target, error) {
	t, err := s.target(lab.AgentSocket)
	if err != nil {
		return nil, t, err
	}
	config := api.Config{Patience: s.patience}
	switch {
	case t.server == "":
		config.Socket, err = firstThatAnswers(ctx, t.sockets)
	case strings.HasPrefix(t.server, "/"):
		config.Socket = t.server
	default:
		config.Servers = strings.Split(t.server, ",")
		config.TLS, err = s.tls()
	}
	if err != nil {
		return nil, t, err
	}
	c, err := api.NewClient(config)
	return c, t, err
}

// firstThatAnswers is one of several sockets that lead to the same place. Each
// is an agent's: one may be down, or hang, while others serve.
func firstThatAnswers(ctx context.Context, sockets []string) (string, error) {
	if len(sockets) == 1 {
		return sockets[0], nil
	}
	var failed []error
	for _, path := range sockets {
		err := answers(ctx, path)
		if err == nil {
			return path, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		failed = append(failed, err)
	}
	return "", fmt.Errorf("no agent answers: %w", errors.Join(failed...))
}

// answers reports whether a coordinator can be asked by way of a socket.
func answers(ctx context.Context, path string) error {
	client, err := api.NewClient(api.Config{Socket: path, Patience: socketPatience})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, socketPatience)
	defer cancel()
	if _, err := client.Status(ctx); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// files are the caller's certificate, its key and the authority to trust.
func (s *settings) files() trust.Files {
	path := func(flag, variable, name string) string {
		return cmp.Or(flag, os.Getenv(variable), filepath.Join(defaultTLS, name))
	}
	return trust.Files{
		CA:   path(s.tlsFiles.CA, "MIGRATE_CA", "ca.pem"),
		Cert: path(s.tlsFiles.Cert, "MIGRATE_CERT", "operator.pem"),
		Key:  path(s.tlsFiles.Key, "MIGRATE_KEY", "operator.key"),
	}
}

// source is the host that a verb with --from is about.
func (t target) source(from string) (string, error) {
	switch {
	case from != "" || t.local:
		return from, nil // the agent says where it is
	case t.server != "":
		name, err := os.Hostname()
		if err != nil {
			return "", fmt.Errorf("looking for this host's name, say it with --from: %w", err)
		}
		return name, nil
	}
	return "", errors.New("--from HOST is needed, since this is none of the lab's hosts (\"migratectl ps\" shows where a process is)")
}
