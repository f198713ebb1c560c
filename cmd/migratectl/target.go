package main

import (
	"os"

	"github.com/pagurus-project/pagurus/e2e/lab"
)

// A target is how to reach a coordinator: at an address, or on any of some
// unix sockets.
type target struct {
	server  string
	sockets []string
	local   bool // by way of this host's agent: --from defaults to this host
}

// target finds out whom to talk to; agentSocket is where an agent on this host
// would answer. What the caller says comes first. Inside a lab host it says
// nothing: the lab takes MIGRATE_LAB and MIGRATE_SERVER away there.
func (s *settings) target(agentSocket string) (target, error) {
	if s.server != "" {
		return target{server: s.server}, nil
	}
	if s.lab != "" {
		return targetInLab(s.lab)
	}
	if server := os.Getenv("MIGRATE_SERVER"); server != "" {
		return target{server: server}, nil
	}
	if id := os.Getenv("MIGRATE_LAB"); id != "" {
		return targetInLab(id)
	}
	if _, err := os.Stat(agentSocket); err == nil {
		return target{sockets: []string{agentSocket}, local: true}, nil
	}
	return targetInLab("")
}

func targetInLab(id string) (target, error) {
	l, err := lab.Find(id)
	if err != nil {
		return target{}, err
	}
	return target{sockets: l.Sockets()}, nil
}
