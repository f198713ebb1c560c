package lab

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pagurus-project/pagurus/e2e/lab/cgroup"
	"github.com/pagurus-project/pagurus/e2e/lab/pid1"
)

// downTimeout bounds taking a lab down. Processes that SIGKILL was sent to
// need long only if they have much memory to give back.
const downTimeout = 30 * time.Second

// A Lab is one lab, made by this program or found on the machine. Its methods
// may be called from any goroutine.
type Lab struct {
	plan     plan
	children sync.WaitGroup // first processes that are this program's to reap
	births   []*birth       // of a lab that this program made
}

// ID is the lab's name.
func (l *Lab) ID() string { return l.plan.ID }

// Main must be called first thing by every program that calls [Up]: a lab's
// hosts are that program run again. In such a host it never returns.
func Main() {
	if strings.HasPrefix(os.Args[0], pid1.Name+":") {
		pid1.Main()
	}
}

// Up makes a lab. What it cannot finish, also because ctx ended, it takes down
// again.
func Up(ctx context.Context, o Options) (*Lab, error) {
	o, err := o.resolved()
	if err != nil {
		return nil, err
	}
	if err := checkMachine(); err != nil {
		return nil, err
	}
	if o.Bin == "" {
		if o.Bin, err = ownDirectory(); err != nil {
			return nil, err
		}
	}
	if !o.NoDaemons {
		if err := checkPrograms(o.Bin); err != nil {
			return nil, err
		}
		if err := probe(ctx, o.Bin); err != nil {
			return nil, err
		}
	}
	l, err := claim(o)
	if err != nil {
		return nil, err
	}
	if err := l.up(ctx, o); err != nil {
		return nil, errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	return l, nil
}

// claim takes a name by making the lab's directory, the first thing to be made
// and the last to be removed: what has none is no lab.
func claim(o Options) (*Lab, error) {
	id := o.Name
	if id == "" {
		id = strings.ToLower(rand.Text()[:6])
	}
	l := &Lab{plan: newPlan(id, o)}
	if err := os.Mkdir(l.plan.dir(), 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("there is a lab %s already: take it down with \"migratectl lab down --name %s\"", id, id)
		}
		return nil, err
	}
	return l, nil
}

func (l *Lab) up(ctx context.Context, o Options) error {
	if err := l.writeFiles(o); err != nil {
		return err
	}
	o.Progress(fmt.Sprintf("making lab %s: %d hosts and a client", l.plan.ID, o.Hosts))
	if err := l.makeHosts(ctx); err != nil {
		return err
	}
	if err := l.connect(ctx); err != nil {
		return err
	}
	if !o.NoDaemons {
		if err := l.startDaemons(ctx, o); err != nil {
			return err
		}
	}
	if !o.Outlive {
		return nil
	}
	for _, b := range l.births {
		if err := b.letGo(); err != nil {
			return fmt.Errorf("letting %s go: %w", b.host, err)
		}
	}
	return nil
}

func (l *Lab) writeFiles(o Options) error {
	for _, h := range l.plan.Hosts {
		if err := os.Mkdir(l.plan.hostDir(h.Name), 0o700); err != nil {
			return err
		}
	}
	if err := os.Mkdir(l.plan.logs(), 0o700); err != nil {
		return err
	}
	if !o.NoDaemons {
		if err := l.writeConfiguration(); err != nil {
			return err
		}
	}
	content, err := json.MarshalIndent(l.plan, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(l.plan.file("lab.json"), append(content, '\n'), 0o600)
}

// makeHosts starts the first process of each host and waits for all of them.
func (l *Lab) makeHosts(ctx context.Context) error {
	groups, err := openGroups(l.plan.ID)
	if err != nil {
		return err
	}
	defer groups.close()
	if err := groups.make(l.plan.Hosts); err != nil {
		return err
	}
	for i, h := range l.plan.Hosts {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.makeHost(i, h, groups); err != nil {
			return fmt.Errorf("making %s: %w", h.Name, err)
		}
	}
	var failed []error
	for _, b := range l.births {
		failed = append(failed, b.await())
	}
	return errors.Join(failed...)
}

func (l *Lab) makeHost(number int, h hostPlan, groups *groups) error {
	log, err := os.OpenFile(l.plan.hostFile(h.Name, "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	b, err := spawn(h, groups.host(h.Name), log)
	if err != nil {
		return err
	}
	l.births = append(l.births, b)
	l.children.Go(func() { _, _ = b.process.Wait() })
	return b.configure(pid1.Config{
		Lab: l.plan.ID, Host: h.Name, Agent: h.Agent,
		Number: number, Hosts: len(l.plan.Hosts),
		Socket: l.plan.control(h.Name), Logs: l.plan.logs(),
	})
}

// connect makes the network.
func (l *Lab) connect(ctx context.Context) error {
	pids := make(map[string]int)
	for _, h := range l.plan.Hosts {
		pid, err := l.initPID(h.Name)
		if err != nil {
			return err
		}
		pids[h.Name] = pid
	}
	if err := inNetwork(pids[switchName], makeSwitch); err != nil {
		return err
	}
	for _, h := range l.plan.Hosts {
		if err := ctx.Err(); err != nil {
			return err
		}
		if h.Name == switchName {
			continue
		}
		if err := inNetwork(pids[switchName], func() error { return plugIn(h, pids[h.Name]) }); err != nil {
			return err
		}
		if err := inNetwork(pids[h.Name], func() error { return setUpNetwork(h) }); err != nil {
			return fmt.Errorf("connecting %s: %w", h.Name, err)
		}
	}
	return nil
}

// initPID is the PID, as this program sees it, of a host's first process.
func (l *Lab) initPID(host string) (int, error) {
	groups, err := openGroups(l.plan.ID)
	if err != nil {
		return 0, err
	}
	defer groups.close()
	return groups.init(host)
}

// Down ends everything that runs in the lab and removes what it consists of.
// It does not matter how complete the lab is, and that another program may be
// doing the same.
func (l *Lab) Down(ctx context.Context) error {
	for _, b := range l.births {
		b.close()
	}
	groups, err := openGroups(l.plan.ID)
	if err != nil {
		return err
	}
	defer groups.close()
	if err := remove(ctx, l.plan.ID, groups); err != nil {
		return err
	}
	l.children.Wait()
	return nil
}

func remove(ctx context.Context, id string, groups *groups) error {
	deadline := time.Now().Add(downTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := cgroup.Remove(groups.path, deadline); err != nil {
		return fmt.Errorf("ending lab %s: %w", id, err)
	}
	if err := os.RemoveAll(directory(id)); err != nil {
		return fmt.Errorf("removing the directory of lab %s: %w", id, err)
	}
	return nil
}

// ownDirectory is where the running program lies.
func ownDirectory() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("looking for this program's directory: %w", err)
	}
	return filepath.Dir(self), nil
}
