// Decodes the manifests on standard input as the Go types of one Kubernetes release have them, strictly: an unknown or
// repeated field, or a value of another type, is an error. Prints each object's kind and name; kinds that are no part of
// Kubernetes itself are marked as skipped.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	syaml "sigs.k8s.io/yaml"
)

func main() {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		admissionregistration.AddToScheme, apps.AddToScheme, batch.AddToScheme, core.AddToScheme, networking.AddToScheme,
		policy.AddToScheme, rbac.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			fail("", err)
		}
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	documents := yaml.NewYAMLReader(bufio.NewReader(os.Stdin))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			fail("", err)
		}
		var plain unstructured.Unstructured
		if err := syaml.Unmarshal(document, &plain.Object); err != nil {
			fail("", err)
		} else if len(plain.Object) == 0 {
			continue
		}
		name := plain.GetKind() + "/" + plain.GetName()
		object, _, err := strict.Decode(document, nil, nil)
		if runtime.IsNotRegisteredError(err) {
			fmt.Println("skipped", name)
			continue
		} else if err != nil {
			fail(name, err)
		}
		if _, err := meta.Accessor(object); err != nil {
			fail(name, err)
		}
		fmt.Println("decoded", name)
	}
}

func fail(name string, err error) {
	fmt.Fprintln(os.Stderr, name, err)
	os.Exit(1)
}
