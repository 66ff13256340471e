// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestTracepointNeedsNoMountedTracefs(t *testing.T) {
	bpftest.Root(t)
	if text, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(text), " - tracefs ") {
		t.Skipf("tracefs is mounted on this machine (%v): nothing to show", err)
	}
	prog, _ := counter(t, ebpf.TracePoint, 0)
	attach(t, prog, &volume.Tracepoint{Group: "sched", Name: "sched_switch"})
	if text, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(text), " - tracefs ") {
		t.Errorf("tracefs is mounted now (%v)", err)
	}
}

func TestFullTracepointSaysSo(t *testing.T) {
	bpftest.Root(t)
	for i := range 65 {
		prog, _ := counter(t, ebpf.TracePoint, 0) // a program runs there once
		links, err := Attach(prog, &volume.Tracepoint{Group: "syscalls", Name: "sys_enter_getpgid"})
		if i < 64 {
			if err != nil {
				t.Fatalf("program %d: %v", i+1, err)
			}
			t.Cleanup(func() { links[0].Close() })
			continue
		}
		if !errors.Is(err, unix.E2BIG) || !strings.Contains(err.Error(), "64 programs run there") {
			t.Errorf("program 65: error is %v", err)
		}
	}
}

// Opening some files is not harmless: a FIFO blocks until somebody writes to it, a watchdog device starts counting down.
// /proc/kmsg, which says to be a regular file, gives each message of the kernel to one reader alone.
func TestUprobeOpensOnlyRegularFiles(t *testing.T) {
	prog, _ := counter(t, ebpf.Kprobe, 0)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, "/dev/null", "/etc", "/proc/kmsg"} {
		failed := make(chan error, 1)
		go func() {
			_, err := Attach(prog, &volume.Uprobe{Path: path, Symbol: "main"})
			failed <- err
		}()
		select {
		case err := <-failed:
			if err == nil || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("%s: error is %v", path, err)
			}
		case <-time.After(10 * time.Second):
			unix.Open(fifo, unix.O_RDWR|unix.O_NONBLOCK, 0)
			t.Fatalf("%s: attaching does not return", path)
		}
	}
}

func TestUprobeOfOneProcessIgnoresOthers(t *testing.T) {
	bpftest.Root(t)
	prog, runs := counter(t, ebpf.Kprobe, 0)
	attach(t, prog, &volume.Uprobe{Path: libc(t), Symbol: "malloc", PID: os.Getpid()})
	useLibc(t, place{})
	if n, _ := runsOf(t, runs); n != 0 {
		t.Errorf("the program ran %d times for another process", n)
	}
}

func TestUprobeOfOneProcessSeesIt(t *testing.T) {
	bpftest.Root(t)
	cmd := exec.Command("/bin/sh", "-c", "read line; x=$(echo $line)")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	prog, runs := counter(t, ebpf.Kprobe, 0)
	attach(t, prog, &volume.Uprobe{Path: libc(t), Symbol: "malloc", PID: cmd.Process.Pid})
	if _, err := in.Write([]byte("go\n")); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if n, _ := runsOf(t, runs); n == 0 {
		t.Error("the program did not run")
	}
}

func TestUprobeInsideAFunction(t *testing.T) {
	bpftest.Root(t)
	file, err := os.Open(libc(t))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	malloc, found, _, err := findFunction(file, "malloc")
	if err != nil || !found {
		t.Fatalf("malloc found: %v, error %v", found, err)
	}
	code := make([]byte, 4)
	if _, err := file.ReadAt(code, int64(malloc.offset)); err != nil {
		t.Fatal(err)
	}
	var second uint64 // where the second instruction begins
	switch {
	case bytes.Equal(code, []byte{0xf3, 0x0f, 0x1e, 0xfa}): // endbr64
		second = 4
	case code[0] == 0x41 && code[1]&0xf8 == 0x50: // push r8 to r15
		second = 2
	case code[0]&0xf8 == 0x50: // push
		second = 1
	default:
		t.Skipf("malloc begins with % x, which this test cannot read", code)
	}
	prog, runs := counter(t, ebpf.Kprobe, 0)
	attach(t, prog, &volume.Uprobe{Path: libc(t), Symbol: "malloc", Offset: second})
	useLibc(t, place{})
	if n, _ := runsOf(t, runs); n == 0 {
		t.Error("the program did not run")
	}
}

func TestUprobeAtOffsetInFile(t *testing.T) {
	bpftest.Root(t)
	file, err := os.Open(libc(t))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	malloc, found, _, err := findFunction(file, "malloc")
	if err != nil || !found {
		t.Fatalf("malloc found: %v, error %v", found, err)
	}
	prog, runs := counter(t, ebpf.Kprobe, 0)
	attach(t, prog, &volume.Uprobe{Path: libc(t), Offset: malloc.offset})
	useLibc(t, place{})
	if n, _ := runsOf(t, runs); n == 0 {
		t.Error("the program did not run")
	}
}

// The path may be that of a tenant's file: it must cost neither memory nor the process.
func TestMalformedBinaryIsAnError(t *testing.T) {
	good, err := os.ReadFile(libc(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "elf")
	try := func(content []byte) error {
		t.Helper()
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		_, _, _, err = findFunction(file, "malloc")
		return err
	}
	for _, n := range []int{0, 3, 16, 63, 64, 100, 1000, len(good) / 2, len(good) - 1} {
		if err := try(good[:n]); err == nil {
			t.Errorf("the first %d bytes of an ELF file are none, but no error", n)
		}
	}
	// Section headers stand at e_shoff, 64 bytes each; sh_type is at 4, sh_size at 32 (elf(5)).
	huge := bytes.Clone(good)
	headers := huge[binary.LittleEndian.Uint64(huge[40:]):]
	for ; len(headers) >= 64; headers = headers[64:] {
		if elf.SectionType(binary.LittleEndian.Uint32(headers[4:])) == elf.SHT_DYNSYM {
			binary.LittleEndian.PutUint64(headers[32:], 1<<40)
		}
	}
	if err := try(huge); err == nil || !strings.Contains(err.Error(), "over the limit") {
		t.Errorf("a symbol table of 1 TiB: error is %v, want over the limit", err)
	}
}

// The tables are read by our own code, so a reader that holds them says the same.
func TestFunctionsAreWhereTheSymbolTableSays(t *testing.T) {
	file, err := os.Open(libc(t))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	f, err := elf.NewFile(file)
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	times := map[string]int{} // of one name are several versions
	for _, s := range symbols {
		times[s.Name]++
	}
	checked := 0
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) != elf.STT_FUNC || s.Section == elf.SHN_UNDEF || times[s.Name] > 1 || checked == 200 {
			continue
		}
		checked++
		code, found, _, err := findFunction(file, s.Name)
		if err != nil || !found || code.size != s.Size {
			t.Errorf("%s of %d bytes: got %+v, found: %v, error %v", s.Name, s.Size, code, found, err)
			continue
		}
		text := f.Section(".text")
		if want := s.Value - text.Addr + text.Offset; s.Value >= text.Addr && s.Value < text.Addr+text.Size && code.offset != want {
			t.Errorf("%s: at %#x in the file, want %#x", s.Name, code.offset, want)
		}
	}
	if checked < 100 {
		t.Errorf("only %d functions were looked up", checked)
	}
}

// A file with holes has any size at no cost to who made it.
func TestHugeTablesTakeNoMemory(t *testing.T) {
	const huge = 240 << 20 // whole symbols
	good, err := os.ReadFile(libc(t))
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	symbols := slices.IndexFunc(f.Sections, func(s *elf.Section) bool { return s.Type == elf.SHT_DYNSYM })
	for what, section := range map[string]int{
		"symbols": symbols, "names of symbols": int(f.Sections[symbols].Link),
		"names of sections": int(binary.LittleEndian.Uint16(good[62:])), // e_shstrndx (elf(5))
	} {
		content := bytes.Clone(good)
		header := content[binary.LittleEndian.Uint64(content[40:])+uint64(section)*64:]
		binary.LittleEndian.PutUint64(header[24:], uint64(len(good)))
		binary.LittleEndian.PutUint64(header[32:], huge)
		path := filepath.Join(t.TempDir(), "elf")
		if err := errors.Join(os.WriteFile(path, content, 0o600), os.Truncate(path, int64(len(good))+huge)); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, found, _, err := findFunction(file, "malloc")
		runtime.ReadMemStats(&after)
		file.Close()
		if took := after.TotalAlloc - before.TotalAlloc; took > 16<<20 || found {
			t.Errorf("%s of %d bytes: took %d bytes of memory, found: %v, error %v", what, huge, took, found, err)
		}
	}
}

// perf_event_open knows threads, a user means a process: with the threads that it has and those that it will start.
func TestPerfEventOfProcessSeesItsThreads(t *testing.T) {
	bpftest.Root(t)
	cmd := self("burn")
	start, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()

	threads, err := ebpf.NewMap(&ebpf.MapSpec{Name: "threads", Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer threads.Close()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "who", Type: ebpf.PerfEvent, License: "GPL", Instructions: asm.Instructions{
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -8),
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.Mov.Imm(asm.R4, 0),
		asm.LoadMapPtr(asm.R1, threads.FD()),
		asm.FnMapUpdateElem.Call(),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	links := attach(t, prog, &volume.PerfEvent{Event: "task-clock", Period: 1e5, PID: cmd.Process.Pid, CPU: -1})

	if _, err := start.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	var seen map[uint32]bool
	for end := time.Now().Add(10 * time.Second); len(seen) <= len(links) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		seen = map[uint32]bool{}
		var id, value uint64
		for it := threads.Iterate(); it.Next(&id, &value); {
			if pid := int(id >> 32); pid != cmd.Process.Pid {
				t.Fatalf("a sample of process %d, want %d alone", pid, cmd.Process.Pid)
			}
			seen[uint32(id)] = true
		}
	}
	if len(seen) <= len(links) {
		t.Errorf("samples of %d threads, want more than the %d there were at first", len(seen), len(links))
	}
}

func TestHardwareEventWithoutHardwareIsNotSupported(t *testing.T) {
	bpftest.Root(t)
	prog, _ := counter(t, ebpf.PerfEvent, 0)
	links, err := Attach(prog, &volume.PerfEvent{Event: "cpu-cycles", Frequency: 10, CPU: -1})
	if err == nil {
		for _, l := range links {
			l.Close()
		}
		t.Skip("this machine samples cpu-cycles")
	}
	if !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("error is %v, want ebpf.ErrNotSupported", err)
	}
}

// Ending the link of a tracepoint waits for all CPUs, which takes a hundred times as long as making it.
func BenchmarkAttachTracepoint(b *testing.B) {
	bpftest.Root(b)
	prog, _ := counter(b, ebpf.TracePoint, 0)
	var attaching time.Duration
	for b.Loop() {
		start := time.Now()
		links, err := Attach(prog, &volume.Tracepoint{Group: "sched", Name: "sched_process_exec"})
		if err != nil {
			b.Fatal(err)
		}
		attaching += time.Since(start)
		links[0].Close()
	}
	b.ReportMetric(float64(attaching.Microseconds())/float64(b.N), "us/attach")
}

func BenchmarkTracepointID(b *testing.B) {
	bpftest.Root(b)
	for b.Loop() {
		if _, err := tracepointID("sched", "sched_process_exec"); err != nil {
			b.Fatal(err)
		}
	}
}
