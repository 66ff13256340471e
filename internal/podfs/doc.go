// SPDX-License-Identifier: Apache-2.0

// Package podfs makes what a pod sees of a volume:
//
//	volume.json   what this is                           } a tmpfs, at the target
//	types.btf     the object's BTF                       }
//	maps/<map>    pins, for BPF_OBJ_GET, BPF_F_RDONLY    } directories of a bpffs
//	json/<map>    iterators that print the maps, for cat }
//	iter/<prog>   the volume's own iterators, if any     }
//	rw/<map>      pins of the maps that the pod may write, if any: a bpffs of its own
//
// The target is a tmpfs because a bpffs cannot be idmapped, which the top mount of a volume must be for a pod with
// hostUsers: false. So no group of such a pod is one on a bpffs: there, files are everybody's, and the tmpfs is the volume's
// group's. Each superblock is private to the target, complete and, but for that of rw, read-only before it is attached
// anywhere; the tmpfs is attached first (Linux before 6.15 attaches nothing to a tree that is not attached), then its children.
//
// Invariants:
//   - what a program of the volume prints can be read without privilege, too, and shows the reader's own namespaces
//     (TestIteratorsAreFiles);
//   - nobody gets a writable map, root neither, and every map can be read without privilege: by OBJ_GET, and by cat
//     where seccomp refuses bpf(2) (TestUnprivilegedReader, TestNobodyWrites, TestGroup, TestGroupOfShiftedPod);
//   - but for those in rw: whoever can enter the volume can write these, and cannot change the directory
//     (TestPodWritesItsMap, TestWritableDirectoryIsFixed); what one who may do everything makes of it goes with the volume
//     (TestJunkGoesWithTheVolume);
//   - all files have one SELinux context where there is SELinux, so that nobody need label what is read-only
//     (TestContextOfEveryFile, TestInlineVolumeIsNotRelabelled);
//   - a failed Mount leaves nothing (TestMountFails), a killed one only what Unmount takes away (TestKilledWhileMounting);
//   - a target that is a symlink, holds files or is somebody else's mount is left alone, as is one behind a symlink
//     below the root (TestTargets); all mounting goes through descriptors, so that swapping a directory for a symlink
//     in between leads nowhere (TestParentIsSwapped, TestParentIsSwappedAfterTheCheck);
//   - Unmount twice is Unmount once (TestUnmountIsIdempotent), and it deletes no file that is not ours (TestTargets);
//   - the mount survives this process: it holds no descriptor (bpftest.Main).
package podfs
