// SPDX-License-Identifier: Apache-2.0

package events

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/e2e/eventdoc"
)

// codesOfTheDriver are all that the driver answers with, in the order of the document. kubelet keeps a volume after some
// and forgets it after others, so each is a promise.
var codesOfTheDriver = []codes.Code{
	codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.NotFound, codes.AlreadyExists, codes.Aborted,
	codes.Unavailable, codes.ResourceExhausted, codes.FailedPrecondition, codes.DataLoss, codes.Internal,
}

// elsewhere are entries of the document for which no test here has a case, as another package has it nearer: which test
// that is. Without a test: why.
var elsewhere = map[string]string{
	`image <image>: is signed, but policy "<policy>" wants an attestation, too: <what>; attest it <how>`:                                                                          "e2e/trust: TestMatrix",
	`image <image>: host not allowed: no host of this registry may say what a tag stands for; name the image by digest, or ask an admin for the capability resolve in hosts.toml`: "internal/image: TestMirrorThatOnlyPullsIsAskedByDigest",
	`image <image>: host not allowed: registry <host> redirects from HTTPS to plain HTTP; check the registry`:                                                                     "internal/image: TestRedirectKeepsHTTPS",
	`image <image>: unavailable: registry <host> redirects more than 5 times; check the registry`:                                                                                 "internal/image: TestRedirectsEnd",
	`target: must lie below <directory>`:             "internal/podfs: TestTargets",
	`object: <n> <things> are over the limit of <n>`: "loader: TestParseRefusesWhatIsTooLarge",
	`program "<program>": no hook takes programs of section "<section>"; write attach with the programs that you want`:                                "loader: TestDefaultThatNeedsMoreSaysWhatToWrite",
	`program "<program>": hook <hook> does not take programs of section "<section>"; attach another program there`:                                    "loader: TestHookMustTakeTheProgram",
	`program "<program>": <feature> is for GPL-compatible programs and <license>; for example: char LICENSE[] SEC("license") = "Dual BSD/GPL"`:        "loader: TestGPLOnlyHelperNeedsALicense",
	`program "<program>": two of its attachments need it to be loaded differently (<hook>, <hook>); give each a program of its own`:                   "loader: TestOneProgramCannotBeLoadedTwoWays",
	`program "<program>": instruction <n> names a map or a kernel object by number, not by a symbol; compile it with clang, which does not`:           "loader: TestObjectCannotNameKernelObjectsByNumber",
	`program "<program>": the name cannot be a file name; use letters, digits and _`:                                                                  "loader: TestNamesThatAreNoFileNamesAreRefused",
	`map "<map>": the name cannot be a file name; use letters, digits and _`:                                                                          "loader: TestNamesThatAreNoFileNamesAreRefused",
	`map "<map>": max_entries is 0, which leaves the size to user space; set mapEntries: <example>`:                                                   "loader: TestMapEntries",
	`map "<map>": access rw: the object makes it with BPF_F_RDONLY, read-only for user space; show it read-only`:                                      "loader: TestMapsThatNobodyWrites",
	`SELinux context "<context>": not known on this node: its SELinux policy has no such user, role, type or range; look at the pod's seLinuxOptions`: "internal/podfs: TestContextOfEveryFile",
	`variables: the object has no BTF, so their types are unknown; compile it with -g`:                                                                "loader: TestVariablesNeedBTF",
	`load: <problem>`: "loader: TestEveryMapTypeLoads",
	`image <image>: unavailable: registry <host>: no answer in time; try again later`:                                                                                  "internal/image: TestLyingRegistry",
	`image <image>: unavailable: registry <host>: certificate is signed by an unknown authority; set caFile in --registries`:                                           "internal/image: TestTLS",
	`image <image>: unavailable: registry <host>: speaks plain HTTP; set plainHTTP in --registries`:                                                                    "internal/image: TestTLS",
	`image <image>: service account "<namespace/serviceaccount>" may not use policy "<policy>"; an admin must grant it verb "use" on bytecodepolicies/<policy>`:        "e2e/cluster: TestRBACSaysWhoMayRunAnImage",
	`policies: unavailable: API server: <reason>; it will be asked again`:                                                                                              "e2e/cluster: TestAPIServerOutage",
	`policy "<policy>": unavailable: the API server cannot say whether service account "<namespace/serviceaccount>" may use it: <reason>; it will be asked again`:      "e2e/cluster: TestAPIServerOutage",
	`node plugin: still recovering after its start; the call will be tried again`:                                                                                      "csi: TestNotReadyIsNotFinal",
	`image <image>: image cache: no space left on device`:                                                                                                              "internal/image: TestDiskFull",
	`program "<program>": <place>: <n> programs run there, more than that the kernel does not take; <fix>`:                                                             "internal/hook: TestFullTracepointSaysSo",
	`program "<program>": this kernel cannot probe its functions; use a tracepoint, or a kernel with CONFIG_KPROBE_EVENTS`:                                             "internal/hook: TestKernelWithoutKprobesSaysSo",
	`program "<program>": kernel function "<function>": the kernel has several of this name; <fix>`:                                                                    "internal/hook: TestKprobeErrorsSayWhy",
	`program "<program>": kernel function "<function>": offset <n> is inside an instruction; choose where one begins`:                                                  "internal/hook: TestKprobeInsideAFunction",
	`program "<program>": kernel function "<function>": offset <n> is outside its <n> bytes; choose a smaller one`:                                                     "internal/hook: TestKprobeErrorsSayWhy",
	`program "<program>": kernel function "<function>": the kernel allows no probe <where>; <fix>`:                                                                     "internal/hook: TestKprobeErrorsSayWhy",
	`program "<program>": <place>: the kernel cannot call programs from it; use another, or kprobe`:                                                                    "internal/hook: TestFentryOfUntraceableFunctionSaysSo",
	`program "<program>": LSM hook "<hook>": no program would run there, as bpf is not among the active security modules; boot the node with lsm=<modules>`:            "internal/hook: TestLSMProgramThatWouldNeverRunIsRefused",
	`program "<program>": netfilter <place>: the kernel module <module> is missing, which defrag needs; load it, or leave defrag out`:                                  "untested: wants a kernel without the module",
	`program "<program>": interface "<interface>": not a netkit device; use tc`:                                                                                        "internal/hook: TestNetkitErrorsSayWhy",
	`program "<program>": interface "<interface>": the peer of a netkit device; name the device, and write peer: true`:                                                 "internal/hook: TestNetkitErrorsSayWhy",
	`program "<program>": <place>: <feature> not supported (requires >= <version>)`:                                                                                    "untested: wants an older kernel",
	`program "<program>": binary "<path>": <why>; make it readable`:                                                                                                    "e2e/daemon: TestBinaryThatRootMayNotReadIsRefused",
	`program "<program>": binary "<path>": has no function symbols; give an offset in the file`:                                                                        "untested: wants a stripped binary",
	`program "<program>": symbol "<symbol>": offset <n> is outside its <n> bytes; choose a smaller one`:                                                                "internal/hook: TestAttachErrorsLeaveNothing",
	`program "<program>": cgroup "<path>": not in the cgroup2 file system; name a cgroup of version 2`:                                                                 "internal/hook: TestCgroupPathStaysInside",
	`program "<program>": event "<event>": this machine cannot sample it (<why>); cpu-clock works everywhere`:                                                          "untested: wants a machine without hardware events",
	`program "<program>": cookie of a raw tracepoint: needs Linux 6.10; leave it out`:                                                                                  "untested: wants an older kernel",
	`program "<program>": this kernel does not <what>; see bpfvol doctor`:                                                                                              "loader: TestProgramTypeThatTheKernelRefusesIsNoVerifierError",
	`program "<program>": <point>: slot of program "<program>": <why>, not supported beside others; use another interface`:                                             "dispatcher: TestFragmentsNeedEveryMember",
	`program "<program>": <point>: program "<program>": it cannot run beside libxdp's programs, since <why>: not supported`:                                            "dispatcher: TestLibxdpRefusesWhatItCannotRun",
	`program "<program>": <point>: program "<program>": the kernel refuses it as a component of libxdp's dispatcher: "<reason>": not supported`:                        "internal/libxdp: TestLoadErrorIsTheVerifiersLastWord",
	`program "<program>": <point>: libxdp's protocol: not supported: the kernel refuses freplace programs (<why>); use the fused dispatcher`:                           "internal/libxdp: TestRefusalSaysWhatToDo",
	`image <image>: policy "<policy>" does not name subject "<namespace/serviceaccount>", as namespace "local" means users of the command line; use another namespace`: "verify: TestPodInTheNamespaceOfTheCommandLineIsToldWhy",
	`map "<map>": operations of the kernel (struct_ops) cannot be shown; leave it out of maps`:                                                                         "loader: TestOperationsOfTheKernelAreNotShown",
	`load: <problem>; see bpfvol doctor`:                                                         "loader: TestKconfigIsFilledIn",
	`parameters: key "<key>" is Kubernetes' own; remove it`:                                      "csi: TestCreateVolume",
	`parameters: <problem>`:                                                                      "csi: TestCreateVolume",
	`parameters: key "csi.storage.k8s.io/node-publish-secret-<part>" <problem>`:                  "internal/provision: TestSecretThatCannotBe",
	`selector: volumes of a StorageClass have no labels; leave it out`:                           "e2e/provision: TestBadClaimsSayWhy",
	`csi.bpfvol.io does not support block volume provisioning`:                                   "e2e/provision: TestBadClaimsSayWhy",
	`dataSource: a bytecode volume has no data to copy; leave it out`:                            "csi: TestCreateVolume",
	`volumeAttributesClassName: the attributes of a bytecode volume cannot change; leave it out`: "csi: TestCreateVolume",
	`volume name: missing`:                                                                       "csi: TestCreateVolume",
	`volume capabilities: missing`:                                                               "csi: TestCreateVolume",
	`capacity range: from <n> to <n> bytes: no capacity is in it`:                                "csi: TestCreateVolume",
	`volume: a volume of this name exists with other <what>; delete it first`:                    "csi: TestCreateVolume",
	`volume: no such volume: CreateVolume never returned this id`:                                "csi: TestValidateVolumeCapabilities",
	`record: cannot be read: a newer version of bpfvol wrote it: schema <n>, this one reads <n>; install that version again, or delete the pod`: "internal/node: TestPublishOverARecordThatCannotBeRead",
	`target: another volume is mounted there; unpublish it`:                                                   "internal/node: TestTargetOfAnotherVolumeIsLeftAlone",
	`record cannot be read: record: <problem>; look at the node plugin's state directory`:                     "internal/node: TestRecordThatCannotBeOpenedTakesNothingFromAnybody",
	`record: cannot be read: <problem>; delete the pod to take the volume away`:                               "internal/node: TestPodLeavesASharedVolumeWithoutARecordToTheOthers",
	`<what>: too many open files<fix>`:                                                                        "e2e/exhaustion: TestNoFileDescriptorLeft",
	`lock: read-only file system; look at the node plugin's state directory`:                                  "e2e/exhaustion: TestStateDirectoryReadOnly",
	`volume: already published with other arguments: it runs another object of its image; unpublish it first`: "internal/node: TestSecondTargetIsDecidedAboutByWhatRuns",
	`<anything else>`: "csi: TestCodes",
}

// What the tests of this package want to read is in docs/events.md, under its code.
func TestEveryTextIsDocumented(t *testing.T) {
	entries, _ := eventdoc.Read(t)
	answers := map[answer]bool{otherArguments: true, inFlight: true, stillPulling: true, notTakenAway: true, notUnpinned: true, noPolicy: true}
	for _, r := range refusals {
		answers[answer{r.code, r.says}] = true
	}
	met := map[string]bool{}
	for a := range answers {
		found := false
		for _, e := range entries {
			if e.Code == a.code.String() && e.MatchString(a.says) {
				found, met[e.Text] = true, true
			}
		}
		if !found {
			t.Errorf("not in %s, under %v: %s", eventdoc.File, a.code, a.says)
		}
	}
	for _, e := range entries {
		where, known := elsewhere[e.Text]
		switch {
		case !met[e.Text] && !known:
			t.Errorf("%s has a text that no test wants to read: %s", eventdoc.File, e.Text)
		case met[e.Text] && known:
			t.Errorf("tested here, and said to be tested by %s: %s", where, e.Text)
		}
	}
}

func TestTestsElsewhereExist(t *testing.T) {
	for text, where := range elsewhere {
		pkg, name, ok := strings.Cut(where, ": ")
		if !ok || pkg == "untested" {
			continue
		}
		found := false
		files, err := filepath.Glob("../../" + pkg + "/*_test.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(source), "\nfunc "+name+"(")
		}
		if !found {
			t.Errorf("%s has no %s, which is said to test: %s", pkg, name, text)
		}
	}
}

// The document has a section for each code, and each has a case.
func TestEveryCodeIsDocumentedAndTested(t *testing.T) {
	_, sections := eventdoc.Read(t)
	var want []string
	for _, code := range codesOfTheDriver {
		want = append(want, code.String())
	}
	if got := strings.Join(sections, " "); got != strings.Join(want, " ") {
		t.Errorf("sections are %s, want %s", got, want)
	}
	tested := map[codes.Code]bool{otherArguments.code: true, inFlight.code: true}
	for _, r := range refusals {
		tested[r.code] = true
	}
	for _, code := range codesOfTheDriver {
		if !tested[code] && code != codes.Internal {
			t.Errorf("no case has code %v", code)
		}
	}
}
