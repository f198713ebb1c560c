package pid1

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/e2e/lab/control"
)

// lookPath finds a program as a shell would that has this environment and
// working directory. exec.LookPath would search this process's own PATH.
func lookPath(name string, env []string, dir string) (string, error) {
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return path, executable(path)
	}
	for _, d := range filepath.SplitList(lookEnv(env, "PATH")) {
		path := filepath.Join(d, name)
		if filepath.IsAbs(path) && executable(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w in PATH", name, fs.ErrNotExist)
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() || info.Mode().Perm()&0o111 == 0 {
		return &fs.PathError{Op: "exec", Path: path, Err: unix.EACCES}
	}
	return nil
}

func lookEnv(env []string, key string) string {
	// Of several the last one counts, as in os/exec.
	for _, kv := range slices.Backward(env) {
		if value, ok := strings.CutPrefix(kv, key+"="); ok {
			return value
		}
	}
	return ""
}

// startCommand starts what the caller asked for, with the given streams.
func (h *host) startCommand(e *control.Exec, files []uintptr) (*child, *control.Error) {
	if len(e.Args) == 0 {
		return nil, control.Errorf("no command given")
	}
	if info, err := os.Stat(e.Dir); err != nil || !info.IsDir() {
		return nil, control.Errorf("%s has no directory %s to work in", h.Host, e.Dir)
	}
	env := h.commandEnv(e.Env)
	path, err := lookPath(e.Args[0], env, e.Dir)
	if err != nil {
		return nil, startError(err)
	}
	c, err := h.reaper.start(path, e.Args, &syscall.ProcAttr{Dir: e.Dir, Env: env, Files: files}, h.commands)
	if err != nil {
		return nil, startError(fmt.Errorf("starting %s: %w", path, err))
	}
	return c, nil
}

func startError(err error) *control.Error {
	status := control.StatusNotExecutable
	if errors.Is(err, fs.ErrNotExist) {
		status = control.StatusNotFound
	}
	return &control.Error{Message: err.Error(), Status: status}
}

// commandEnv is the caller's environment without what says how to reach a
// coordinator from where the caller is: a host has its agent for that, and who
// has none gets the name of this lab.
func (h *host) commandEnv(env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		return strings.HasPrefix(kv, "MIGRATE_SERVER=") || strings.HasPrefix(kv, "MIGRATE_LAB=")
	})
	if !h.Agent {
		env = append(env, "MIGRATE_LAB="+h.Lab)
	}
	return env
}

// detach starts a command that nobody waits for. Its log is named after its
// PID once that is known; the open file follows the name.
func (h *host) detach(e *control.Exec) control.Reply {
	log, err := openLog(h.Logs)
	if err != nil {
		return control.Reply{Error: control.Errorf("opening a log: %v", err)}
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return control.Reply{Error: control.Errorf("opening an empty input: %v", err)}
	}
	defer null.Close()
	c, refusal := h.startCommand(e, []uintptr{null.Fd(), log.Fd(), log.Fd()})
	if refusal != nil {
		_ = os.Remove(log.Name())
		return control.Reply{Error: refusal}
	}
	name := filepath.Join(h.Logs, fmt.Sprintf("%s-%d.log", h.Host, c.pid))
	// A process that had this PID before may still write to its log elsewhere.
	err = unix.Renameat2(unix.AT_FDCWD, log.Name(), unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
	if err != nil {
		name = log.Name()
	}
	return control.Reply{PID: c.pid, Log: name}
}

// openLog makes a log that several processes may append to.
func openLog(dir string) (*os.File, error) {
	placeholder, err := os.CreateTemp(dir, "*.log")
	if err != nil {
		return nil, err
	}
	defer placeholder.Close()
	return os.OpenFile(placeholder.Name(), os.O_APPEND|os.O_WRONLY, 0)
}
