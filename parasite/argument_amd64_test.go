package parasite

import "testing"

// What stands behind the system call of several libraries, and what compilers
// may make of one that they have inlined.
func TestR10Dies(t *testing.T) {
	for _, test := range []struct {
		name string
		code []byte
		want bool
	}{
		{"returns", []byte{0xc3}, true},
		{"glibc: sets errno", []byte{
			0x48, 0x3d, 0x00, 0xf0, 0xff, 0xff, // cmp $-4096,%rax
			0x77, 0x01, // ja 1f
			0xc3,             // ret
			0xf7, 0xd8, 0xc3, // 1: neg %eax; ret
		}, true},
		{"glibc: cancellation", []byte{
			0x44, 0x89, 0xc7, // mov %r8d,%edi
			0xe8, 0, 0, 0, 0, // call
			0x4c, 0x89, 0xd0, // mov %r10,%rax: whatever the callee has left there
			0xc3,
		}, true},
		{"overwritten", []byte{
			0x41, 0x89, 0xca, // mov %ecx,%r10d
			0x0f, 0x05, // syscall
		}, true},
		{"a loop around the call", []byte{
			0x85, 0xc0, // test %eax,%eax
			0x78, 0x01, // js 1f
			0xc3,             // ret
			0x0f, 0x05, 0xc3, // 1: syscall; ret
		}, false},
		{"copied", []byte{0x4c, 0x89, 0xd1, 0xc3}, false},                                 // mov %r10,%rcx
		{"an address", []byte{0x41, 0x8b, 0x02, 0xc3}, false},                             // mov (%r10),%eax
		{"a part of it is overwritten", []byte{0x41, 0xb2, 0x01, 0xc3}, false},            // mov $1,%r10b
		{"depends on itself", []byte{0x4d, 0x8d, 0x52, 0x01, 0xc3}, false},                // lea 1(%r10),%r10
		{"cleared", []byte{0x45, 0x31, 0xd2, 0x0f, 0x05}, true},                           // xor %r10d,%r10d
		{"jumps somewhere", []byte{0xff, 0xe0}, false},                                    // jmp *%rax
		{"for ever", []byte{0xeb, 0xfe}, true},                                            // jmp .
		{"leaves what is known", []byte{0xe9, 0x00, 0x10, 0x00, 0x00}, false},             // jmp
		{"nonsense", []byte{0x06}, false},                                                 //
		{"it is cut off", []byte{0xeb, 0x01, 0xc3, 0x69, 0x76}, false},                    // jmp 1f; ret; 1: half of an imul
		{"its end is not known", []byte{0x90, 0x90}, false},                               // nop; nop
		{"stored", []byte{0x4c, 0x89, 0x54, 0x24, 0x08, 0xc3}, false},                     // mov %r10,8(%rsp)
		{"pushed", []byte{0x41, 0x52, 0xc3}, false},                                       // push %r10
		{"compared on one path", []byte{0x74, 0x01, 0xc3, 0x49, 0x39, 0xc2, 0xc3}, false}, // je 1f; ret; 1: cmp %rax,%r10
	} {
		if got := r10Dies(test.code, 0); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}
