package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrUnavailable says that this machine has no way to a guest: no qemu, or no
// package of a kernel.
var ErrUnavailable = errors.New("no guest on this machine")

// A Kernel is what a package of a kernel unpacks to.
type Kernel struct {
	Release string // as uname -r says
	dir     string
}

// Image is the file to boot.
func (k *Kernel) Image() string { return filepath.Join(k.dir, "boot", "vmlinuz-"+k.Release) }

// Config is the configuration that the kernel was built with.
func (k *Kernel) Config() (string, error) {
	content, err := os.ReadFile(filepath.Join(k.dir, "boot", "config-"+k.Release))
	return string(content), err
}

// module finds a module by its path below kernel/; it is "" if the kernel has it built in.
func (k *Kernel) module(name string) string {
	for _, lib := range []string{"lib", "usr/lib"} {
		for _, packed := range []string{"", ".xz"} {
			file := filepath.Join(k.dir, lib, "modules", k.Release, "kernel", name+packed)
			if _, err := os.Stat(file); err == nil {
				return file
			}
		}
	}
	return ""
}

// DebianKernel fetches the newest kernel of a metapackage, as
// "linux-image-cloud-amd64", by apt and keeps it below dir.
func DebianKernel(ctx context.Context, metapackage, dir string) (*Kernel, error) {
	depends, err := run(ctx, "", "apt-cache", "depends", "--no-recommends", "--no-suggests", metapackage)
	if err != nil {
		return nil, err
	}
	name := ""
	for line := range strings.Lines(depends) {
		if on, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			name = "linux-image-" + on
		}
	}
	if name == "" {
		return nil, fmt.Errorf("%w: apt knows no kernel by %s: apt-get update?", ErrUnavailable, metapackage)
	}
	k := &Kernel{Release: strings.TrimPrefix(name, "linux-image-")}
	k.dir = filepath.Join(dir, k.Release)
	if _, err := os.Stat(k.Image()); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	fetched, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(fetched)
	if _, err := run(ctx, fetched, "apt-get", "-q", "download", name); err != nil {
		return nil, err
	}
	packages, err := filepath.Glob(filepath.Join(fetched, "*.deb"))
	if err != nil || len(packages) != 1 {
		return nil, errors.Join(err, fmt.Errorf("apt-get download %s left %d packages", name, len(packages)))
	}
	unpacked := filepath.Join(fetched, "unpacked")
	if _, err := run(ctx, "", "dpkg-deb", "-x", packages[0], unpacked); err != nil {
		return nil, err
	}
	// Whoever finds the directory finds all of it.
	if err := os.Rename(unpacked, k.dir); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	_, err = os.Stat(k.Image())
	return k, err
}

// run returns what a command says. One that is not there, or does not get what
// it was sent for, makes a guest unavailable.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w %s", ErrUnavailable, strings.Join(cmd.Args, " "), err, bytes.TrimSpace(problem.Bytes()))
	}
	return string(out), nil
}
