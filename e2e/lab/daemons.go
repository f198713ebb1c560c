package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/pagurus-project/pagurus/trust"
)

// The programs that a lab runs, and the names of their daemons.
const (
	agentProgram       = "migrate-agent"
	coordinatorProgram = "migrate-coordinator"
	agentDaemon        = "agent"
	coordinatorDaemon  = "coordinator"
)

const (
	gossipPort = 7410 // of coordinators; whoever joins asks there first

	certificateLifetime = 365 * 24 * time.Hour
)

// coordinatorConfig is what the lab sets of migrate-coordinator's configuration.
type coordinatorConfig struct {
	Name          string      `toml:"name"`
	Advertise     string      `toml:"advertise"`
	Expect        int         `toml:"expect"`
	Join          []string    `toml:"join"`
	DataDir       string      `toml:"data_dir"`
	GossipKeyFile string      `toml:"gossip_key_file"`
	HTTPSocket    string      `toml:"http_socket"`
	LogLevel      string      `toml:"log_level"`
	TLS           trust.Files `toml:"tls"`
}

// agentConfig is what the lab sets of migrate-agent's configuration.
type agentConfig struct {
	Host          string      `toml:"host"`
	Advertise     string      `toml:"advertise"`
	Join          []string    `toml:"join"`
	GossipKeyFile string      `toml:"gossip_key_file"`
	Sockets       []string    `toml:"sockets"`
	StateDir      string      `toml:"state_dir"`
	Cgroup        string      `toml:"cgroup"`
	LogLevel      string      `toml:"log_level"`
	TLS           trust.Files `toml:"tls"`
}

// AgentSocket is where an agent on the same host answers for the coordinator.
const AgentSocket = "/run/pagurus/agent.sock"

// arrivedGroup is the control group, as a host sees it, below which processes
// that have moved there get theirs: outside of the agent's, so that they
// outlive it.
const arrivedGroup = "/sys/fs/cgroup/arrived"

func checkPrograms(bin string) error {
	for _, name := range []string{agentProgram, coordinatorProgram} {
		if info, err := os.Stat(filepath.Join(bin, name)); err != nil || info.Mode().Perm()&0o111 == 0 {
			return fmt.Errorf("there is no program %s in %s: build all with \"make build\"", name, bin)
		}
	}
	return nil
}

// probe has the agent say what this machine lacks, before it says so in each
// host's log.
func probe(ctx context.Context, bin string) error {
	out, err := exec.CommandContext(ctx, filepath.Join(bin, agentProgram), "--probe").CombinedOutput()
	if _, ok := errors.AsType[*exec.ExitError](err); ok && len(out) > 0 {
		return errors.New(strings.TrimSpace(string(out)))
	}
	return err
}

// writeConfiguration makes certificates, the gossip key and the daemons'
// configuration.
func (l *Lab) writeConfiguration() error {
	authority, err := trust.NewAuthority("lab "+l.plan.ID, certificateLifetime)
	if err != nil {
		return fmt.Errorf("making an authority: %w", err)
	}
	if err := os.WriteFile(l.plan.file("ca.pem"), authority.CertificatePEM(), 0o600); err != nil {
		return err
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	if err := os.WriteFile(l.plan.file("gossip.key"), []byte(base64.StdEncoding.EncodeToString(key)+"\n"), 0o600); err != nil {
		return err
	}
	if _, err := l.issue(authority, trust.Identity{Role: trust.RoleOperator, Name: "lab"}, l.plan.file("operator")); err != nil {
		return err
	}
	for _, h := range l.plan.Hosts {
		if h.Coordinator {
			if err := l.configureCoordinator(authority, h); err != nil {
				return err
			}
		}
		if h.Agent {
			if err := l.configureAgent(authority, h); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Lab) configureCoordinator(authority *trust.Authority, h hostPlan) error {
	join := l.plan.join()
	files, err := l.issue(authority, trust.Identity{Role: trust.RoleCoordinator, Name: h.Name}, l.plan.hostFile(h.Name, coordinatorDaemon))
	if err != nil {
		return err
	}
	return writeTOML(l.plan.hostFile(h.Name, "coordinator.toml"), coordinatorConfig{
		Name: h.Name, Advertise: h.Address.Addr().String(), Expect: len(join), Join: join,
		DataDir: l.plan.hostFile(h.Name, "data"), GossipKeyFile: l.plan.file("gossip.key"),
		HTTPSocket: l.plan.coordinatorSocket(h.Name), LogLevel: "info", TLS: files,
	})
}

func (l *Lab) configureAgent(authority *trust.Authority, h hostPlan) error {
	files, err := l.issue(authority, trust.Identity{Role: trust.RoleAgent, Name: h.Name}, l.plan.hostFile(h.Name, agentDaemon))
	if err != nil {
		return err
	}
	return writeTOML(l.plan.hostFile(h.Name, "agent.toml"), agentConfig{
		Host: h.Name, Advertise: h.Address.Addr().String(), Join: l.plan.join(),
		GossipKeyFile: l.plan.file("gossip.key"), Sockets: []string{AgentSocket, l.plan.apiSocket(h.Name)},
		StateDir: filepath.Dir(AgentSocket), Cgroup: arrivedGroup, LogLevel: "info", TLS: files,
	})
}

// join is where all coordinators gossip.
func (p *plan) join() []string {
	var join []string
	for _, h := range p.Hosts {
		if h.Coordinator {
			join = append(join, fmt.Sprintf("%s:%d", h.Address.Addr(), gossipPort))
		}
	}
	return join
}

// issue writes a certificate and its key to path with .pem and .key.
func (l *Lab) issue(authority *trust.Authority, id trust.Identity, path string) (trust.Files, error) {
	cert, key, err := authority.Issue(id, certificateLifetime)
	if err != nil {
		return trust.Files{}, err
	}
	files := trust.Files{CA: l.plan.file("ca.pem"), Cert: path + ".pem", Key: path + ".key"}
	if err := os.WriteFile(files.Cert, cert, 0o600); err != nil {
		return files, err
	}
	return files, os.WriteFile(files.Key, key, 0o600)
}

func writeTOML(path string, config any) error {
	var content bytes.Buffer
	if err := toml.NewEncoder(&content).Encode(config); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return os.WriteFile(path, content.Bytes(), 0o600)
}

// startDaemons starts coordinators and agents and waits until they have found
// each other.
func (l *Lab) startDaemons(ctx context.Context, o Options) error {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	o.Progress(fmt.Sprintf("starting %d coordinators and %d agents", o.Coordinators, o.Hosts))
	for _, h := range l.plan.Hosts {
		if err := l.startDaemonsOf(ctx, h); err != nil {
			return fmt.Errorf("starting daemons on %s: %w", h.Name, err)
		}
	}
	return l.awaitDaemons(ctx, o.Progress)
}

func (l *Lab) startDaemonsOf(ctx context.Context, plan hostPlan) error {
	h := &Host{lab: l, plan: plan}
	if plan.Coordinator {
		args := []string{filepath.Join(l.plan.Bin, coordinatorProgram), "--config", l.plan.hostFile(plan.Name, "coordinator.toml")}
		if err := h.Daemon(coordinatorDaemon).Run(ctx, args...); err != nil {
			return err
		}
	}
	if plan.Agent {
		args := []string{filepath.Join(l.plan.Bin, agentProgram), "--config", l.plan.hostFile(plan.Name, "agent.toml")}
		return h.Daemon(agentDaemon).Run(ctx, args...)
	}
	return nil
}
