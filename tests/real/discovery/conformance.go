package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
)

const (
	sampleAPIService = "v1alpha1.wardle.example.com"
	sampleNamespace  = "default"
	labelOfSteps     = "conformance-steps"
)

var (
	sampleVersion = schema.GroupVersion{Group: "wardle.example.com", Version: "v1alpha1"}
	flunders      = sampleVersion.WithResource("flunders")
	apiServices   = schema.GroupVersionResource{Group: ownGroup, Version: "v1", Resource: "apiservices"}
)

// steps are those by which Kubernetes' conformance tests judge an aggregator (`Aggregator Should be able to support the 1.17
// Sample API Server using the current Aggregator`), on a sample-apiserver that is registered already.
type steps struct {
	rest      rest.Interface
	discovery *discovery.DiscoveryClient
	flunders  dynamic.ResourceInterface
	services  dynamic.ResourceInterface
}

// conformance is `discovery conformance SERVER CERTS`: goes the steps and prints each. The APIService is gone after them.
func conformance(url, certificates string) error {
	target, err := newTarget(url, certificates)
	if err != nil {
		return err
	}
	client, err := discovery.NewDiscoveryClientForConfig(target.config)
	if err != nil {
		return err
	}
	objects, err := dynamic.NewForConfig(target.config)
	if err != nil {
		return err
	}
	s := steps{client.RESTClient(), client, objects.Resource(flunders).Namespace(sampleNamespace), objects.Resource(apiServices)}
	ctx, cancel := context.WithTimeout(context.Background(), 2*settleLimit)
	defer cancel()
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"the APIService becomes available", s.available},
		{"a flunder is created, listed and deleted by its path", s.byPath},
		{"flunders are in discovery", s.discovered},
		{"a flunder is created, listed and deleted by its kind", s.byKind},
		{"the APIService's status is read", s.statusIsRead},
		{"the APIService is patched", s.patched},
		{"the APIService's status is updated", s.statusIsUpdated},
		{"the APIService's status is patched", s.statusIsPatched},
		{"the APIService is replaced", s.replaced},
		{"the APIService is deleted with its collection, and flunders are gone", s.deleted},
	} {
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Println(step.name)
	}
	return nil
}

// await tries until there is no error, and then gives the last one.
func await(ctx context.Context, try func() error) error {
	last := errors.New("never tried")
	err := wait.PollUntilContextTimeout(ctx, settlePeriod, settleLimit, true, func(context.Context) (bool, error) {
		last = try()
		return last == nil, nil
	})
	if err != nil {
		return fmt.Errorf("%w: %w", err, last)
	}
	return nil
}

func (s *steps) available(ctx context.Context) error {
	return await(ctx, func() error {
		service, err := s.services.Get(ctx, sampleAPIService, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if status, found := condition(service, "Available"); status != "True" {
			return fmt.Errorf("Available is %q (%v)", status, found)
		}
		return s.rest.Get().AbsPath("/apis/wardle.example.com/v1alpha1").Do(ctx).Error()
	})
}

func condition(object *unstructured.Unstructured, kind string) (string, bool) {
	conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	for _, one := range conditions {
		if one, isMap := one.(map[string]any); isMap && one["type"] == kind {
			status, isText := one["status"].(string)
			return status, isText
		}
	}
	return "", false
}

func flunder(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": sampleVersion.String(), "kind": "Flunder",
		"metadata": map[string]any{"name": name, "labels": map[string]any{labelOfSteps: "flunder"}},
		"spec":     map[string]any{},
	}}
}

func (s *steps) byPath(ctx context.Context) error {
	const path, name = "/apis/wardle.example.com/v1alpha1/namespaces/" + sampleNamespace + "/flunders", "by-path"
	body, err := json.Marshal(flunder(name))
	if err != nil {
		return err
	}
	if err := s.rest.Post().AbsPath(path).SetHeader("Accept", "application/json").Body(body).Do(ctx).Error(); err != nil {
		return err
	}
	count := func() (int, error) {
		raw, err := s.rest.Get().AbsPath(path).SetHeader("Accept", "application/json").DoRaw(ctx)
		if err != nil {
			return 0, err
		}
		var list struct{ Items []json.RawMessage }
		err = json.Unmarshal(raw, &list)
		return len(list.Items), err
	}
	before, err := count()
	if err != nil {
		return err
	}
	if err := s.rest.Delete().AbsPath(path, name).Do(ctx).Error(); err != nil {
		return err
	}
	after, err := count()
	return errors.Join(err, expect(before == 1 && after == 0, fmt.Sprintf("1 flunder and then none, not %d and %d", before, after)))
}

func expect(holds bool, what string) error {
	if holds {
		return nil
	}
	return fmt.Errorf("expected %s", what)
}

func (s *steps) discovered(context.Context) error {
	preferred, err := s.discovery.ServerPreferredNamespacedResources()
	if err != nil {
		return err
	}
	inGroup := slices.ContainsFunc(preferred, func(list *metav1.APIResourceList) bool {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		return err == nil && version.Group == sampleVersion.Group && hasResource(list, "flunders")
	})
	list, err := s.discovery.ServerResourcesForGroupVersion(sampleVersion.String())
	if err != nil {
		return err
	}
	return errors.Join(expect(inGroup, "flunders among the preferred resources"), expect(hasResource(list, "flunders"), "flunders in "+sampleVersion.String()))
}

func hasResource(list *metav1.APIResourceList, name string) bool {
	return slices.ContainsFunc(list.APIResources, func(resource metav1.APIResource) bool { return resource.Name == name })
}

func (s *steps) byKind(ctx context.Context) error {
	const name = "by-kind"
	if _, err := s.flunders.Create(ctx, flunder(name), metav1.CreateOptions{}); err != nil {
		return err
	}
	count := func() (int, error) {
		list, err := s.flunders.List(ctx, metav1.ListOptions{LabelSelector: labelOfSteps + "=flunder"})
		if err != nil {
			return 0, err
		}
		return len(list.Items), nil
	}
	before, err := count()
	if err != nil {
		return err
	}
	if err := s.flunders.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	after, err := count()
	return errors.Join(err, expect(before == 1 && after == 0, fmt.Sprintf("1 flunder and then none, not %d and %d", before, after)))
}

func (s *steps) statusIsRead(ctx context.Context) error {
	service, err := s.services.Get(ctx, sampleAPIService, metav1.GetOptions{}, "status")
	if err != nil {
		return err
	}
	status, _ := condition(service, "Available")
	return expect(status == "True", "Available to be True")
}

func (s *steps) patched(ctx context.Context) error {
	const priority = 400
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:"patched"}},"spec":{"versionPriority":%d}}`, labelOfSteps, priority)
	if _, err := s.services.Patch(ctx, sampleAPIService, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		return err
	}
	list, err := s.services.List(ctx, metav1.ListOptions{LabelSelector: labelOfSteps + "=patched"})
	if err != nil {
		return err
	}
	if len(list.Items) != 1 {
		return fmt.Errorf("%d APIServices with the label, not 1", len(list.Items))
	}
	found, _, _ := unstructured.NestedInt64(list.Items[0].Object, "spec", "versionPriority")
	return expect(found == priority, fmt.Sprintf("versionPriority %d, not %d", priority, found))
}

// changed reads the APIService, has it changed and writes it back, again when another was faster.
func (s *steps) changed(ctx context.Context, change func(*unstructured.Unstructured) error, subresources ...string) error {
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		service, err := s.services.Get(ctx, sampleAPIService, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := change(service); err != nil {
			return err
		}
		_, err = s.services.Update(ctx, service, metav1.UpdateOptions{}, subresources...)
		return err
	})
}

func (s *steps) statusIsUpdated(ctx context.Context) error {
	err := s.changed(ctx, func(service *unstructured.Unstructured) error {
		conditions, _, err := unstructured.NestedSlice(service.Object, "status", "conditions")
		conditions = append(conditions, map[string]any{"type": "StatusUpdated", "status": "True", "reason": "Step", "message": "set by the steps",
			"lastTransitionTime": time.Now().UTC().Format(time.RFC3339)})
		return errors.Join(err, unstructured.SetNestedSlice(service.Object, conditions, "status", "conditions"))
	}, "status")
	return errors.Join(err, s.hasCondition(ctx, "StatusUpdated"))
}

func (s *steps) hasCondition(ctx context.Context, kind string) error {
	service, err := s.services.Get(ctx, sampleAPIService, metav1.GetOptions{}, "status")
	if err != nil {
		return err
	}
	status, found := condition(service, kind)
	return expect(status == "True", fmt.Sprintf("%s to be True, not %q (%v)", kind, status, found))
}

func (s *steps) statusIsPatched(ctx context.Context) error {
	patch := `{"status":{"conditions":[{"type":"StatusPatched","status":"True","reason":"Step","message":"set by the steps"}]}}`
	if _, err := s.services.Patch(ctx, sampleAPIService, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		return err
	}
	return errors.Join(s.hasCondition(ctx, "StatusPatched"), s.hasCondition(ctx, "StatusUpdated"))
}

func (s *steps) replaced(ctx context.Context) error {
	return s.changed(ctx, func(service *unstructured.Unstructured) error {
		labels := service.GetLabels()
		labels[labelOfSteps] = "replaced"
		service.SetLabels(labels)
		return nil
	})
}

func (s *steps) deleted(ctx context.Context) error {
	selector := metav1.ListOptions{LabelSelector: labelOfSteps + "=replaced"}
	if err := s.services.DeleteCollection(ctx, metav1.DeleteOptions{}, selector); err != nil {
		return err
	}
	return await(ctx, func() error {
		list, err := s.services.List(ctx, selector)
		if err != nil {
			return err
		}
		if len(list.Items) > 0 {
			return fmt.Errorf("%d APIServices are left", len(list.Items))
		}
		if _, err := s.flunders.List(ctx, metav1.ListOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("flunders are not gone: %v", err)
		}
		return nil
	})
}
