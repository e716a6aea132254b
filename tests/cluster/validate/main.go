// Command validate reads Kubernetes manifests (YAML) from standard input and says what a cluster would refuse, one line each:
// unknown or repeated fields, wrong types, bad names and labels, what KubeRay's own schema forbids, pods that the restricted
// Pod Security Standard forbids, selectors that select nothing. Exit status 1 when there is a line.
//
//	helm template infra/cluster | go run . -crds "$(go list -m -f '{{.Dir}}' github.com/ray-project/kuberay/ray-operator)/config/crd/bases"
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	rayv1 "github.com/ray-project/kuberay/ray-operator/apis/ray/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	strictjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

type validator struct {
	decoder  runtime.Decoder
	security policy.Evaluator
	schemas  map[string]crdvalidation.SchemaValidator // kind.version -> KubeRay's schema
}

func newValidator(crds string) (*validator, error) {
	if err := rayv1.AddToScheme(scheme.Scheme); err != nil {
		return nil, err
	}
	security, err := policy.NewEvaluator(policy.DefaultChecks())
	if err != nil {
		return nil, err
	}
	options := strictjson.SerializerOptions{Yaml: true, Strict: true}
	decoder := strictjson.NewSerializerWithOptions(strictjson.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, options)
	schemas, err := readSchemas(crds)
	return &validator{decoder, security, schemas}, err
}

func readSchemas(folder string) (map[string]crdvalidation.SchemaValidator, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no schemas of KubeRay in %q (%v)", folder, err)
	}
	found := map[string]crdvalidation.SchemaValidator{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(text, &crd); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, version := range crd.Spec.Versions {
			var schema apiextensions.CustomResourceValidation
			if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(version.Schema, &schema, nil); err != nil {
				return nil, err
			}
			checker, _, err := crdvalidation.NewSchemaValidator(schema.OpenAPIV3Schema)
			if err != nil {
				return nil, err
			}
			found[crd.Spec.Names.Kind+"."+version.Name] = checker
		}
	}
	return found, nil
}

// check returns what is wrong with one document.
func (v *validator) check(document []byte) (string, []error) {
	object, kind, err := v.decoder.Decode(document, nil, nil)
	if err != nil {
		return "document", []error{err}
	}
	accessor, err := meta.Accessor(object)
	if err != nil {
		return kind.Kind, []error{err}
	}
	name := kind.Kind + "/" + accessor.GetName()
	wrong := checkMeta(accessor)
	if schema, ok := v.schemas[kind.Kind+"."+kind.Version]; ok {
		var raw map[string]any
		if err := yaml.Unmarshal(document, &raw); err != nil {
			return name, []error{err}
		}
		wrong = append(wrong, each(crdvalidation.ValidateCustomResource(nil, raw, schema))...)
	}
	for where, pod := range pods(object) {
		result := policy.AggregateCheckResults(v.security.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &pod.ObjectMeta, &pod.Spec))
		if !result.Allowed {
			wrong = append(wrong, fmt.Errorf("%s: forbidden by the restricted Pod Security Standard: %s", where, result.ForbiddenDetail()))
		}
		wrong = append(wrong, each(metav1validation.ValidateLabels(pod.Labels, field.NewPath(where, "labels")))...)
	}
	return name, append(wrong, checkSelector(object)...)
}

func checkMeta(object metav1.Object) []error {
	wrong := each(metav1validation.ValidateLabels(object.GetLabels(), field.NewPath("metadata", "labels")))
	wrong = append(wrong, each(apivalidation.ValidateAnnotations(object.GetAnnotations(), field.NewPath("metadata", "annotations")))...)
	for _, message := range apivalidation.NameIsDNSSubdomain(object.GetName(), false) {
		wrong = append(wrong, fmt.Errorf("metadata.name: %s", message))
	}
	return wrong
}

// checkSelector: the pods that a Deployment makes are those it looks for.
func checkSelector(object runtime.Object) []error {
	deployment, ok := object.(*appsv1.Deployment)
	if !ok {
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(deployment.Spec.Selector)
	if err != nil {
		return []error{err}
	}
	if selector.Empty() || !selector.Matches(labels.Set(deployment.Spec.Template.Labels)) {
		return []error{errors.New("spec.selector does not select the pods of spec.template")}
	}
	return nil
}

// pods are the pod templates in an object, by where they stand.
func pods(object runtime.Object) map[string]corev1.PodTemplateSpec {
	switch found := object.(type) {
	case *corev1.Pod:
		return map[string]corev1.PodTemplateSpec{"pod": {ObjectMeta: found.ObjectMeta, Spec: found.Spec}}
	case *appsv1.Deployment:
		return map[string]corev1.PodTemplateSpec{"template": found.Spec.Template}
	case *appsv1.StatefulSet:
		return map[string]corev1.PodTemplateSpec{"template": found.Spec.Template}
	case *batchv1.Job:
		return map[string]corev1.PodTemplateSpec{"template": found.Spec.Template}
	case *rayv1.RayCluster:
		all := map[string]corev1.PodTemplateSpec{"head": found.Spec.HeadGroupSpec.Template}
		for _, group := range found.Spec.WorkerGroupSpecs {
			all["group "+group.GroupName] = group.Template
		}
		return all
	}
	return nil
}

func each(list field.ErrorList) (found []error) {
	for _, one := range list {
		found = append(found, one)
	}
	return found
}

func run(crds string, input io.Reader) (kinds map[string]int, problems []string, err error) {
	v, err := newValidator(crds)
	if err != nil {
		return nil, nil, err
	}
	kinds = map[string]int{}
	reader := utilyaml.NewYAMLReader(bufio.NewReader(input))
	for {
		document, err := reader.Read()
		if err == io.EOF {
			if len(kinds) == 0 {
				return nil, nil, errors.New("nothing was given to check")
			}
			return kinds, problems, nil
		}
		if err != nil {
			return nil, nil, err
		}
		var raw map[string]any
		if yaml.Unmarshal(document, &raw) == nil && len(raw) == 0 {
			continue // only comments
		}
		kinds[fmt.Sprint(raw["kind"])]++
		name, wrong := v.check(document)
		for _, one := range wrong {
			problems = append(problems, fmt.Sprintf("%s: %v", name, one))
		}
	}
}

func main() {
	crds := flag.String("crds", "", "folder of KubeRay's CustomResourceDefinitions")
	flag.Parse()
	kinds, problems, err := run(*crds, os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"kinds": kinds, "problems": problems}); err != nil || len(problems) > 0 {
		os.Exit(1)
	}
}
