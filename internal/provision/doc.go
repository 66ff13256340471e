// SPDX-License-Identifier: Apache-2.0

// Package provision makes a PersistentVolume for each PersistentVolumeClaim of a StorageClass of ours, and deletes it
// when its claim is gone: what `bpfvol provision` does. How claims are watched and volumes are stored is the library of
// Kubernetes' own provisioners, sig-storage-lib-external-provisioner; what a volume is, package claim says.
//
//	err := provision.Run(ctx, provision.Options{Driver: "csi.bpfvol.io", ...}) // until ctx ends
//
// What holds, and the test that shows it (e2e/provision, on the real API server):
//   - a volume has exactly the parameters of its class as attributes, and is bound (TestClaimGetsAVolume);
//   - where a class is wrong the claim's event says what, in the words of the Controller service (TestBadClaimsSayWhy);
//   - the class chooses the Secret of the registry, by the rules of external-provisioner (TestSecretOfAClass);
//   - of several, one acts, and another takes over (TestOneOfTwoActs);
//   - it needs no rights but those of deploy/provision-rbac.yaml (every test there has these).
//
// The clients that the library needs cost eleven MiB by being linked, so the node plugin does not import this
// package (docs/adr/0003-provisioner-is-a-binary-of-its-own.md).
package provision
