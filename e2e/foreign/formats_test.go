// SPDX-License-Identifier: Apache-2.0

package foreign_test

import (
	"os"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// The same object in every form in which bytecode images exist, made by bpfvol and by others.
func TestImagesOfOtherProjectsRun(t *testing.T) {
	n := nodetest.Start(t, nodetest.Options{})
	object := example(t, "tracepoint_in_c/bpf_bpfel.o")
	elf, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	images := map[string]string{"bpfvol build --bpfman": n.Signed(t, "built-bpfman", object, "--bpfman")}
	for _, form := range imagetest.Formats {
		imagetest.PushImage(t, n.Registry, "e2e/"+string(form), "v1", elf, form)
		images[string(form)] = n.Image(string(form))
		n.Sign(t, images[string(form)])
	}
	for name, image := range images {
		t.Run(name, func(t *testing.T) {
			v := n.Publish(t, map[string]string{"image": image})
			allocate(t, 1)
			var count int
			if v.Value(t, "counting_map", "0", &count); count == 0 {
				t.Error("the program counted nothing")
			}
		})
	}
}
