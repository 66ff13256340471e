// SPDX-License-Identifier: Apache-2.0

// Command upstream is Kubernetes' end-to-end suite for CSI drivers that are none of its own: of e2e.test what
// --storage.testdriver defines.
//
//	upstream --provider=local --kubeconfig=FILE --storage.testdriver=driver.yaml --ginkgo.json-report=report.json
//
// It takes the flags of e2e.test, and its main is that of k8s.io/kubernetes/test/e2e/e2e_test.go in short.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/testinit" // the flags of logs
	_ "k8s.io/kubernetes/test/e2e/feature"  // the features that specs may name
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init" // after a failure, what the cluster has
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"  // after a spec, that its nodes are ready
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	_ "k8s.io/kubernetes/test/e2e/storage/external" // --storage.testdriver
)

func main() {
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "upstream: unknown arguments:", flag.Args())
		os.Exit(2)
	}
	framework.AfterReadingAllFlags(&framework.TestContext)
	testfiles.AddFileSource(testfiles.RootFileSource{Root: framework.TestContext.RepoRoot})

	logs.InitLogs()
	gomega.RegisterFailHandler(framework.Fail)
	suite, reporter := framework.CreateGinkgoConfig()
	passed := ginkgo.RunSpecs(failed{}, "Kubernetes' storage suite", suite, reporter)
	logs.FlushLogs()
	if !passed {
		os.Exit(1)
	}
}

// failed is told of a failure, which RunSpecs returns as well.
type failed struct{}

func (failed) Fail() {}
