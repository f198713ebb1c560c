package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pagurus-project/pagurus/e2e/lab"
	"github.com/pagurus-project/pagurus/migrate"
)

// A Bed is a lab with its programs.
type Bed struct {
	Lab *lab.Lab
	Bin string // directory of migratectl, the daemons and the workload
}

// Build builds all programs from source into a directory.
func Build(ctx context.Context, dir string) error {
	const module = "github.com/pagurus-project/pagurus/"
	args := []string{"build", "-trimpath", "-o", dir + "/"}
	for _, p := range []string{"cmd/migratectl", "cmd/migrate-agent", "cmd/migrate-coordinator", "e2e/workload"} {
		args = append(args, module+p)
	}
	build := exec.CommandContext(ctx, "go", args...)
	// The race detector, which tests may run under, would slow down what is tested.
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return nil
}

// Up builds the programs into a directory of their own and makes a lab of them.
func Up(ctx context.Context, o lab.Options) (*Bed, error) {
	bin, err := os.MkdirTemp("", "pagurus-bin-")
	if err != nil {
		return nil, err
	}
	if err := Build(ctx, bin); err != nil {
		return nil, errors.Join(err, os.RemoveAll(bin))
	}
	o.Bin = bin
	l, err := lab.Up(ctx, o)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(bin))
	}
	return &Bed{Lab: l, Bin: bin}, nil
}

// Down ends everything and removes it.
func (b *Bed) Down(ctx context.Context) error {
	return errors.Join(b.Lab.Down(ctx), os.RemoveAll(b.Bin))
}

// Command is migratectl with arguments, as somebody outside of the lab's hosts
// types them.
func (b *Bed) Command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, filepath.Join(b.Bin, "migratectl"), append([]string{"--lab", b.Lab.ID()}, args...)...)
	c.Env = os.Environ()
	return c
}

// Run runs migratectl and returns its exit code, and reads the document that
// it prints into one that is not nil. It is an error if migratectl cannot be
// run, prints no document, or anything that it says is not what it may say.
func (b *Bed) Run(ctx context.Context, document any, args ...string) (code int, stderr string, err error) {
	c := b.Command(ctx, append(args, "--json")...)
	var out, diagnostics bytes.Buffer
	c.Stdout, c.Stderr = &out, &diagnostics
	err = c.Run()
	stderr = diagnostics.String()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		code, err = exit.ExitCode(), nil
	}
	if err == nil && document != nil && code != 1 {
		err = json.Unmarshal(out.Bytes(), document)
	}
	if err != nil {
		err = fmt.Errorf("migratectl %s: %w: %s", strings.Join(args, " "), err, stderr)
	}
	return code, stderr, err
}

// Result is what became of a move.
type Result struct {
	migrate.Report
	Code   int    // exit code of migratectl
	Stderr string // what it said
}

// Move moves a process and waits for what becomes of it.
func (b *Bed) Move(ctx context.Context, p *Process, to string, flags ...string) (Result, error) {
	r := Result{}
	args := append([]string{"move", fmt.Sprint(p.PID), "--from", p.Host, "--to", to}, flags...)
	var err error
	r.Code, r.Stderr, err = b.Run(ctx, &r.Report, args...)
	if err == nil && r.State == migrate.StateDone {
		p.Host = to
	}
	return r, err
}

// daemons are those that a host may run.
var daemons = []string{"agent", "coordinator"}

// Logs are the last lines that the daemons of some hosts wrote.
func (b *Bed) Logs(hosts ...string) string {
	const lines = 15
	var text strings.Builder
	for _, h := range b.Lab.Hosts() {
		for _, d := range daemons {
			content, err := os.ReadFile(h.Daemon(d).Log())
			if err != nil || !slices.Contains(hosts, h.Name()) {
				continue
			}
			all := strings.Split(strings.TrimSpace(string(content)), "\n")
			fmt.Fprintf(&text, "\n%s of %s:\n    %s", d, h.Name(), strings.Join(all[max(0, len(all)-lines):], "\n    "))
		}
	}
	return text.String()
}

// SaveLogs copies all that the daemons wrote.
func (b *Bed) SaveLogs(dir string) error {
	var failed []error
	for _, h := range b.Lab.Hosts() {
		for _, d := range daemons {
			content, err := os.ReadFile(h.Daemon(d).Log())
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			failed = append(failed, err, os.WriteFile(filepath.Join(dir, h.Name()+"-"+d+".log"), content, 0o600))
		}
	}
	return errors.Join(failed...)
}
