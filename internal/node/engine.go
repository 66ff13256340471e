// SPDX-License-Identifier: Apache-2.0

// Package node is the engine: it publishes volumes, unpublishes them and recovers after a crash. It is the only
// place that orders effects; every other package does one thing when told.
//
// One volume goes through these stages, each a value that the next one takes and none looks back:
//
//	attributes -> volume.Spec -> policies -> image.Root -> verify.Signed -> verify.Bytecode -> loader.Object
//	           -> record -> loaded and pinned -> attached -> mounted on the target
//
// Up to loader.Object nothing is left behind. The record is on disk before the first effect, and what a record
// names is taken away by one idempotent teardown, which undo, unpublish and recovery share.
//
// What holds, and the test that shows it:
//   - a refused or failed publish leaves nothing (TestFailedPublishLeavesNothing)
//   - kill -9 after any stage, then recovery: nothing is left, and a retry works (TestKilledAfterEachStage)
//   - what is decided is told once, with its reason (TestEachDecisionIsToldOnce), and a dry run decides the same
//     (TestDryRunDecidesAsPublishDoes)
//   - publishing again with the same arguments changes nothing, with others is refused (TestPublishAgain)
//   - pods of a PersistentVolume share what runs (TestTargetsShareWhatRuns), each is decided about by that
//     (TestSecondTargetIsDecidedAboutByWhatRuns), and what fails or ends for one leaves the others alone
//     (TestFailedSecondTargetLeavesTheFirst, TestSecondTargetKilledAfterEachStage, TestFirstTargetGoesWhileTheSecondCounts)
//   - a volume that cannot be taken away holds up no other one (TestRecoverGoesOnPastAStuckVolume)
//   - a program that stopped makes its volume unhealthy, and no other (TestHealthSaysWhatIsWrong, TestOneDeadInterfaceOfTwo)
//   - an idle engine holds no BPF object, so a restart drops no packet (TestIdleEngineHoldsNoBPFObjects)
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/host"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/libxdp"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
)

// Errors that callers tell apart; see csi/errors.go for their codes.
var (
	// ErrBusy means that another call works on this volume.
	ErrBusy = errors.New("operation in flight")
	// ErrConflict means that the volume is published with other arguments.
	ErrConflict = errors.New("already published with other arguments")
	// ErrTeardown means that something could not be taken away. The record is kept, so Unpublish can try again.
	ErrTeardown = errors.New("could not take everything away")
	// ErrUnreadable means that nobody knows who else uses the volume, as its record cannot be read, or not now. Everything is left
	// as it is.
	ErrUnreadable = errors.New("record cannot be read")
	// ErrNewer means that a newer version of bpfvol wrote the volume's record. Everything is left as it is.
	ErrNewer = errors.New("written by a newer version of bpfvol")
	// ErrUnknownVolume means that there is no such volume, or not at that target.
	ErrUnknownVolume = errors.New("no such volume")
)

// Stage names a step of Publish, in the order of Stages.
type Stage string

const (
	StageAuthorized Stage = "authorized" // a policy lets this subject name this image
	StageResolved   Stage = "resolved"   // reference -> digest
	StageVerified   Stage = "verified"   // a signature satisfies a policy
	StageOpened     Stage = "opened"     // the object's bytes are here
	StagePermitted  Stage = "permitted"  // the policy allows what the object really does
	StageRecorded   Stage = "recorded"   // the record is on disk; effects begin
	StageLoaded     Stage = "loaded"     // programs and maps are in the kernel and pinned
	StageAttached   Stage = "attached"   // every program runs
	StageMounted    Stage = "mounted"    // the target shows the maps
	StagePublished  Stage = "published"  // the record says so
)

// Stages lists every stage in order.
var Stages = []Stage{
	StageAuthorized, StageResolved, StageVerified, StageOpened, StagePermitted,
	StageRecorded, StageLoaded, StageAttached, StageMounted, StagePublished,
}

// Options configures an Engine.
type Options struct {
	// StateDir holds the records, on a file system that a reboot clears: /run/bpfvol.
	StateDir string
	// BPFFSDir holds the pins: /sys/fs/bpf/bpfvol. A bpffs is mounted there when there is none.
	BPFFSDir string
	// TargetRoot is the directory that targets must lie below; empty: anywhere.
	TargetRoot string

	// Host is where targets, interfaces, binaries and cgroups are; empty: where this process is. StateDir and BPFFSDir must be
	// the same directories here and there.
	Host host.Process

	Images   *image.Store
	Policies verify.Policies

	// MemberStats counts what every program at a shared point returns, at points that are there when Recover is called,
	// too. Without it, Recover ends the counting.
	MemberStats bool
	// LibXDP lets XDP programs share every interface by libxdp's protocol, not only those that have its dispatcher.
	LibXDP bool

	// Reached is called after each stage of a publish, for progress and for tests. May be nil.
	Reached func(Stage)
	// Decided is called once for each decision, on the goroutine of the publish and before its first effect, so it must not
	// take long. A publish that was carried out before is no new decision. May be nil.
	Decided func(context.Context, Decision)
}

// Engine publishes volumes on this node. Its methods are safe for concurrent use, also by several processes that
// share StateDir and BPFFSDir.
type Engine struct {
	opts    Options
	points  *dispatcher.Dispatcher
	records records
	locks   locks
	// types keeps the kernel's BTF between publishes: reading it takes longer than everything else together.
	types *btf.Cache
}

// Request is what the caller asks for, already split into who and what.
type Request struct {
	VolumeID   string
	Target     string
	Attributes map[string]string
	Subject    verify.Subject
	Pod        Pod
	// Group is whose the mounted files are; nil: everyone's.
	Group *int
	// Context is the SELinux context of the mounted files; "": one that every container may use.
	Context string
	// ReadOnly takes from the pod what it may write of a PersistentVolume. A volume of its own that asks for maps to write
	// cannot be read-only.
	ReadOnly bool
	Keyring  image.Keyring
}

// Pod is whom the volume is for, for display and logs. Zero for the CLI.
type Pod struct {
	Namespace      string `json:"namespace,omitempty"`
	Name           string `json:"name,omitempty"`
	UID            string `json:"uid,omitempty"`
	ServiceAccount string `json:"serviceAccount,omitempty"`
}

// Open makes an engine over the given directories and creates them. It changes nothing else: call Recover before
// the first Publish.
func Open(opts Options) (*Engine, error) {
	if opts.LibXDP {
		if err := libxdp.Supported(); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{opts.StateDir, filepath.Join(opts.StateDir, "volumes"), filepath.Join(opts.StateDir, "locks")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	if err := opts.Host.Do(func() error { return ensurePins(opts.BPFFSDir) }); err != nil {
		return nil, err
	}
	if err := tryBPF(); err != nil {
		return nil, err
	}
	for flag, dir := range map[string]string{"state-dir": opts.StateDir, "bpffs-dir": opts.BPFFSDir} {
		if err := sharedWithHost(opts.Host, dir); err != nil {
			return nil, fmt.Errorf("--%s: %w", flag, err)
		}
	}
	return Look(opts), nil
}

// Look makes an engine for List, Status and DryRun alone. It creates and mounts nothing: where nothing was ever published,
// the first two are empty.
func Look(opts Options) *Engine {
	types := btf.NewCache()
	return &Engine{
		opts:    opts,
		points:  dispatcher.New(filepath.Join(opts.BPFFSDir, "points"), dispatcher.Options{Types: types, MemberStats: opts.MemberStats, LibXDP: opts.LibXDP, Host: opts.Host}),
		records: records{dir: filepath.Join(opts.StateDir, "volumes")},
		locks:   locks{dir: filepath.Join(opts.StateDir, "locks")},
		types:   types,
	}
}

// pins is where a volume's maps, programs and links are pinned. name is volume.FileName of its id.
func (e *Engine) pins(name string) string { return filepath.Join(e.opts.BPFFSDir, "volumes", name) }

func (e *Engine) reached(s Stage) {
	if e.opts.Reached != nil {
		e.opts.Reached(s)
	}
}

// Stats returns the number of files that the volume shows at target, which must be the one it was published at.
func (e *Engine) Stats(_ context.Context, id, target string) (pins int, err error) {
	rec, err := e.records.read(volume.FileName(id))
	if errors.Is(err, ErrUnreadable) {
		// kubelet asks once a minute, and there is nothing new to tell.
		err = e.opts.Host.Do(func() (err error) {
			pins, err = podfs.Stats(target)
			return err
		})
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w at this path", ErrUnknownVolume)
		}
		return pins, err
	}
	if err != nil {
		return 0, err
	}
	t := rec.Target(target)
	if t == nil || t.State != statePublished {
		return 0, fmt.Errorf("%w at this path", ErrUnknownVolume)
	}
	return t.Files, nil
}
