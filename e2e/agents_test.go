package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAgentsComeAndGo: a process that has arrived does not need the agent that
// brought it, which may be stopped, started, and replaced by another build; and
// the next one knows how to move the process on.
func TestAgentsComeAndGo(t *testing.T) {
	ctx := limit(t, 2*time.Minute)
	p := start(ctx, t, "host-a", "$BIN/workload", "memory", "-size", "64MiB", "-churn", "-ask", "$ASK")
	moved(ctx, t, p, "host-b")
	agent := host(t, "host-b").Daemon("agent")

	if err := agent.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	alone(t, p)
	content(ctx, t, p)
	if err := agent.Start(ctx); err != nil {
		t.Fatal(err)
	}
	agentAnswers(ctx, t, "host-b")
	alone(t, p)
	content(ctx, t, p)

	old := executable(ctx, t, "host-b")
	upgraded := filepath.Join(t.TempDir(), "migrate-agent")
	// It differs in what it has for debuggers.
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", upgraded, "github.com/pagurus-project/pagurus/cmd/migrate-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building another agent: %v\n%s", err, out)
	}
	arguments := strings.Split(strings.TrimSuffix(on(ctx, t, "host-b", "cat", fmt.Sprintf("/proc/%d/cmdline", agentPID(ctx, t, "host-b"))), "\x00"), "\x00")
	if err := agent.Run(ctx, append([]string{upgraded}, arguments[1:]...)...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if err := agent.Run(ctx, arguments...); err != nil {
			t.Error(err)
		}
		agentAnswers(ctx, t, "host-b")
	})
	agentAnswers(ctx, t, "host-b")
	if now := executable(ctx, t, "host-b"); now != upgraded || now == old {
		t.Fatalf("the agent is %s, it was %s", now, old)
	}
	alone(t, p)
	content(ctx, t, p)
	// Between two builds, in both roles.
	moved(ctx, t, p, "host-c")
	moved(ctx, t, p, "host-b")
	content(ctx, t, p)
}

func agentPID(ctx context.Context, t *testing.T, name string) int {
	t.Helper()
	pid, err := host(t, name).Daemon("agent").PID(ctx)
	if err != nil || pid == 0 {
		t.Fatalf("the agent of %s: process %d, %v", name, pid, err)
	}
	return pid
}

// executable is the program that a host's agent runs.
func executable(ctx context.Context, t *testing.T, name string) string {
	t.Helper()
	return on(ctx, t, name, "readlink", fmt.Sprintf("/proc/%d/exe", agentPID(ctx, t, name)))
}
