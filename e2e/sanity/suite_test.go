// SPDX-License-Identifier: Apache-2.0

package sanity_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
)

// suiteVariable holds the configuration, in JSON, in the process that runs the suite.
const suiteVariable = "BPFVOL_SANITY"

// suite is how one run of csi-sanity is configured.
type suite struct {
	Endpoint   string
	TargetDir  string            // made and removed for each spec; <TargetDir>/target is what is mounted
	Parameters map[string]string // of the StorageClass
	Report     string            // file
}

// run runs the suite in a process of its own, and returns the spec's reports.
func (s suite) run(t *testing.T) types.SpecReports {
	t.Helper()
	s.Report = filepath.Join(t.TempDir(), "report.json")
	config, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), suiteVariable+"="+string(config))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The signal is for the end of the thread that started the process, and threads of network namespaces end.
	runtime.LockOSThread()
	out, err := cmd.CombinedOutput()
	runtime.UnlockOSThread()
	if err != nil {
		t.Errorf("csi-sanity: %v:\n%s", err, out)
	}
	data, err := os.ReadFile(s.Report)
	if err != nil {
		t.Fatalf("csi-sanity made no report: %v:\n%s", err, out)
	}
	var reports []types.Report
	if err := json.Unmarshal(data, &reports); err != nil {
		t.Fatal(err)
	}
	var specs types.SpecReports
	for _, r := range reports {
		specs = append(specs, r.SpecReports.WithLeafNodeType(types.NodeTypeIt)...)
	}
	return specs
}

// runSuite is that process. It returns its exit status.
func runSuite(configuration string) int {
	var s suite
	if err := json.Unmarshal([]byte(configuration), &s); err != nil {
		fmt.Println(err)
		return 2
	}
	config := sanity.NewTestConfig()
	config.Address = s.Endpoint
	config.TargetPath = s.TargetDir
	config.StagingPath = "" // NodeStageVolume is not for us
	config.TestVolumeParameters = s.Parameters
	tests := sanity.GinkgoTest(&config)
	gomega.RegisterFailHandler(ginkgo.Fail)
	suiteConfig, reporter := ginkgo.GinkgoConfiguration()
	reporter.JSONReport = s.Report
	reporter.NoColor = true
	ok := ginkgo.RunSpecs(failed{}, "csi-sanity", suiteConfig, reporter)
	tests.Finalize()
	if !ok {
		return 1
	}
	return 0
}

// failed takes the suite's word that it failed, which RunSpecs returns as well.
type failed struct{}

func (failed) Fail() {}
