// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/bpfvol/bpfvol/internal/claim"
)

// provisioner is what the library asks.
type provisioner struct{ driver string }

// Provision returns the volume of a claim. Nothing is made but this object, so it is done at once, one way or the other.
func (p *provisioner) Provision(_ context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	pv, err := volumeOf(p.driver, o.PVName, o.PVC, o.StorageClass)
	return pv, controller.ProvisioningFinished, err
}

// Delete has nothing to delete: the library deletes the object.
func (p *provisioner) Delete(context.Context, *corev1.PersistentVolume) error { return nil }

func volumeOf(driver, name string, pvc *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (*corev1.PersistentVolume, error) {
	if pvc.Spec.Selector != nil {
		return nil, &claim.Error{Field: "selector", Msg: "volumes of a StorageClass have no labels; leave it out"}
	}
	parameters := maps.Clone(class.Parameters)
	secret, err := takeSecret(parameters, name, pvc)
	if err != nil {
		return nil, err
	}
	v, err := claim.New(claim.Request{
		Name:            name,
		Parameters:      parameters,
		MountOptions:    class.MountOptions,
		DataSource:      pvc.Spec.DataSource != nil || pvc.Spec.DataSourceRef != nil,
		AttributesClass: pvc.Spec.VolumeAttributesClassName != nil,
	})
	if err != nil {
		return nil, err
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			// A claim has to name a size, and binds to a volume that is no smaller. It means nothing.
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: pvc.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   pvc.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: ptr.Deref(class.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete),
			MountOptions:                  class.MountOptions,
			VolumeMode:                    ptr.To(corev1.PersistentVolumeFilesystem),
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: driver, VolumeHandle: v.ID, VolumeAttributes: v.Attributes, NodePublishSecretRef: secret,
			}},
		},
	}, nil
}
