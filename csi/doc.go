// SPDX-License-Identifier: Apache-2.0

// Package csi is the edge to kubelet: the Identity and Node services of CSI 1.13 over a unix socket, where wanted the
// Controller service, and the registration that leads kubelet there. It checks requests, turns them into calls of the engine, and turns the engine's errors into
// codes.
//
//	NodePublishVolume -> publishRequest -> Engine.Publish -> CodeOf -> status
//
// What holds, and the test that shows it:
//   - every condition has the code that the design gives it, and after a code that kubelet takes as final nothing is
//     left, even where the engine panicked (TestCodes, TestPanicIsUndone);
//   - a message is at most 700 bytes of printable UTF-8, and says no more than that: no status details (TestMessage);
//   - secrets and tokens are never logged (TestLogHidesSecrets);
//   - who asks is read from kubelet's keys alone, and they name the pod whose directory the target is in
//     (TestPodInfo);
//   - a publish is answered before kubelet stops waiting (TestPublishBudget);
//   - a volume of a StorageClass is its parameters, refused where a node would refuse them (TestCreateVolume);
//   - calls in flight finish before Serve returns (TestServeFinishesCallsInFlight);
//   - kubelet learns of the driver when it takes calls, not before (TestDriverAnswersBeforeItIsRegistered), again when
//     somebody removed the socket that told it (TestRegistrationSocketComesBack), and a refusal is said aloud
//     (TestRefusalByKubeletIsSaid).
//
// No other package knows gRPC or its codes (package internal/archtest).
package csi
