package resource

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/migrate"
	"github.com/pagurus-project/pagurus/migrate/image"
	"github.com/pagurus-project/pagurus/migrate/procfs"
	"github.com/pagurus-project/pagurus/parasite"
)

// LocalHost describes this machine. It looks at an empty process of its own
// making, since the processor's vector state and the vDSO are the same in all.
func LocalHost(ctx context.Context) (image.Host, error) {
	var h image.Host
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return h, err
	}
	h.Kernel = unix.ByteSliceToString(uts.Release[:])
	h.Name = unix.ByteSliceToString(uts.Nodename[:])
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return h, err
	}
	h.BootID = strings.TrimSpace(string(boot))
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return h, err
	}
	h.CPU.Vendor, h.CPU.Flags = parseCPUInfo(string(cpus))
	tracer := parasite.NewTracer()
	p, err := tracer.Launch(ctx)
	if err == nil {
		err = describeShell(p, &h)
	}
	if err = errors.Join(err, tracer.Close()); err != nil {
		return h, fmt.Errorf("looking at an empty process: %w", err)
	}
	return h, nil
}

// parseCPUInfo reads the vendor and the features, sorted, of the first processor
// in /proc/cpuinfo.
func parseCPUInfo(text string) (vendor string, flags []string) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "vendor_id":
			vendor = strings.TrimSpace(value)
		case "flags":
			flags = strings.Fields(value)
			slices.Sort(flags)
			return vendor, slices.Compact(flags)
		}
	}
	return vendor, nil
}

// xstateMaskOffset is where in the XSAVE area the kernel puts XCR0 for readers
// of NT_X86_XSTATE (USER_XSTATE_XCR0_WORD, arch/x86/include/asm/user.h).
const xstateMaskOffset = 464

func describeShell(p *parasite.Process, h *image.Host) error {
	state, err := p.Thread(p.PID()).XState()
	if err != nil {
		return err
	}
	h.CPU.XStateBytes = len(state)
	if len(state) >= xstateMaskOffset+8 {
		h.CPU.XStateMask = binary.LittleEndian.Uint64(state[xstateMaskOffset:])
	}
	parts, err := KernelMappings(p.PID())
	if err != nil {
		return err
	}
	for _, m := range parts {
		h.VDSO.Parts = append(h.VDSO.Parts, image.VDSOPart{Name: m.Name, Offset: m.Start - parts[0].Start, Bytes: m.Bytes()})
		if m.Name == "[vdso]" {
			content := make([]byte, m.Bytes())
			if err := p.ReadMemory(uintptr(m.Start), content); err != nil {
				return err
			}
			digest := sha256.Sum256(content)
			h.VDSO.Digest = digest[:]
		}
	}
	return nil
}

// KernelMappings are the special mappings of a process, in address order.
func KernelMappings(pid int) ([]image.Mapping, error) {
	vmas, err := procfs.Process{PID: pid}.Maps()
	if err != nil {
		return nil, err
	}
	var all []image.Mapping
	for i := range vmas {
		if v := &vmas[i]; IsKernelMapping(v.Name) {
			all = append(all, image.Mapping{
				AddressRange: image.AddressRange{Start: v.Start, End: v.End}, Prot: v.Prot,
				Backing: image.BackingKernel, File: image.None, Object: image.None, Name: v.Name,
			})
		}
	}
	return all, nil
}

// IsKernelMapping reports whether a mapping of that name is the vDSO or its data.
func IsKernelMapping(name string) bool {
	return name == "[vdso]" || strings.HasPrefix(name, "[vvar")
}

// ignoredFlags are features that no program can use.
var ignoredFlags = map[string]bool{
	// What the kernel or a hypervisor makes use of, or tells of itself.
	"constant_tsc": true, "nonstop_tsc": true, "rep_good": true, "nopl": true, "cpuid": true, "tsc_reliable": true,
	"hypervisor": true, "tsc_known_freq": true, "arch_perfmon": true, "pti": true, "ssbd": true, "ibrs": true,
	"ibpb": true, "stibp": true, "ibrs_enhanced": true, "tpr_shadow": true, "flexpriority": true, "ept": true,
	"vpid": true, "ept_ad": true, "vnmi": true, "vmx": true, "svm": true, "npt": true, "lbrv": true, "md_clear": true,
	"flush_l1d": true, "arch_capabilities": true, "spec_ctrl": true, "intel_stibp": true, "invpcid_single": true,
	"pcid": true, "invpcid": true, "x2apic": true, "tsc_deadline_timer": true, "tsc_adjust": true, "pse": true,
	"pge": true, "mtrr": true, "pat": true, "pse36": true, "mce": true, "mca": true, "apic": true, "smep": true,
	"smap": true, "amd_ppin": true, "virt_ssbd": true, "wbnoinvd": true, "retpoline": true,
}

// checkHost compares the machines: what a program has found out about its
// processor and its vDSO must still be true.
func checkHost(c *Check) {
	var missing []string
	for _, flag := range c.Source.CPU.Flags {
		if _, found := slices.BinarySearch(c.Host.CPU.Flags, flag); !found && !ignoredFlags[flag] {
			missing = append(missing, flag)
		}
	}
	if len(missing) > 0 {
		c.Block(migrate.CodeCPU, "choose a host with the same kind of processor", "the processor there lacks %s", strings.Join(missing, " "))
	}
	if lost := c.Source.CPU.XStateMask &^ c.Host.CPU.XStateMask; lost != 0 {
		c.Block(migrate.CodeCPU, "choose a host with the same kind of processor", "the processor there lacks vector state %#x", lost)
	}
	if !slices.Equal(c.Source.VDSO.Parts, c.Host.VDSO.Parts) || !slices.Equal(c.Source.VDSO.Digest, c.Host.VDSO.Digest) {
		c.Block(migrate.CodeVDSO, "run the same kernel on both hosts", "the kernel there (%s) maps another vDSO than that of the source (%s)", c.Host.Kernel, c.Source.Kernel)
	}
}
