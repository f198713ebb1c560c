package procfs

import (
	"fmt"
	"os"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/pagurus-project/pagurus/tcprepair/kernel"
)

// fieldOffset is where a struct of the kernel has a field, in bytes.
func fieldOffset(types *btf.Spec, name, field string) (int16, error) {
	var s *btf.Struct
	if err := types.TypeByName(name, &s); err != nil {
		return 0, err
	}
	f, ok := kernel.Find(s, field)
	if !ok || f.Offset() > 1<<15-1 {
		return 0, fmt.Errorf("struct %s has no %s within reach", name, field)
	}
	return int16(f.Offset()), nil
}

// isStruct reports a field that is a struct itself, and no pointer to one.
func isStruct(types *btf.Spec, name, field string) (bool, error) {
	var s *btf.Struct
	if err := types.TypeByName(name, &s); err != nil {
		return false, err
	}
	for _, m := range s.Members {
		if m.Name == field {
			_, is := btf.UnderlyingType(m.Type).(*btf.Struct)
			return is, nil
		}
	}
	return false, fmt.Errorf("struct %s has no %s", name, field)
}

// Commands of bpf(2) that the library offers only without a choice of task.
const (
	bpfLinkCreate = 28
	bpfIterCreate = 33
)

// openTaskIterator opens a file that is the program's output for one process.
func openTaskIterator(program, pid int) (*os.File, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(process)
	// union bpf_iter_link_info.task (include/uapi/linux/bpf.h, Linux 6.1). By a
	// thread's id instead of a descriptor the iteration would never end.
	info := struct{ tid, pid, pidFD uint32 }{pidFD: uint32(process)}
	link, err := createIteratorLink(program, &info)
	if err != nil {
		return nil, err
	}
	defer unix.Close(link)
	fd, err := createIterator(link)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "bpf iterator"), nil
}
