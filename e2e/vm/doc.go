// Package vm runs tests of this project on another kernel: Debian's own, in
// qemu by software emulation. It fetches the kernel's package, packs test
// binaries into an initramfs, boots and reads what they say from a serial
// console. Nothing of the machine is changed; the guest has no network and no
// disk.
//
//	go test -c PACKAGE ... ─┐
//	e2e/vm/guest (init)  ───┼─► initramfs ─► qemu ─► ttyS0: the kernel's words
//	linux-image-*.deb ──────┘                        ttyS1: the tests' words ─► Report
//
// Nothing here is safe for use by several goroutines at once.
package vm
