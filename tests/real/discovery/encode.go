package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	serializerjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"sigs.k8s.io/yaml"
)

const (
	jsonType     = "application/json"
	yamlType     = "application/yaml"
	protobufType = "application/vnd.kubernetes.protobuf"
	parameters   = ";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
)

// encode is `discovery encode SERVER CERTS`: decodes each discovery document of the server from JSON with upstream's types, and
// compares every form that the server has of it with what upstream's own encoders make of it.
func encode(url, certificates string) error {
	target, err := newTarget(url, certificates)
	if err != nil {
		return err
	}
	target.settle()
	differences, count := 0, 0
	check := func(path, parameters string, empty func() runtime.Object) error {
		for _, form := range forms(parameters) {
			served, expected, err := target.both(path, parameters, form, empty())
			if err != nil {
				return err
			}
			count++
			if !bytes.Equal(served, expected) && !sameYAML(form, served, expected) {
				differences++
				fmt.Fprintf(os.Stderr, "%s as %s (first as served, then as upstream encodes it) differs:\n    %s\n", path+form.query, form.accept, firstDifference(string(served), string(expected)))
			}
		}
		return nil
	}
	aggregated := check("/apis", parameters, func() runtime.Object { return &apidiscovery.APIGroupDiscoveryList{} })
	legacy := check("/apis", "", func() runtime.Object { return &metav1.APIGroupList{} })
	coreAggregated := check("/api", parameters, func() runtime.Object { return &apidiscovery.APIGroupDiscoveryList{} })
	core := check("/api", "", func() runtime.Object { return &metav1.APIVersions{} })
	coreV1 := check("/api/v1", "", func() runtime.Object { return &metav1.APIResourceList{} })
	if err := errors.Join(aggregated, legacy, coreAggregated, core, coreV1); err != nil {
		return err
	}
	document, err := target.get("/apis", jsonType)
	if err != nil {
		return err
	}
	var groups metav1.APIGroupList
	if err := json.Unmarshal(document, &groups); err != nil {
		return err
	}
	for _, group := range groups.Groups {
		if err := check("/apis/"+group.Name, "", func() runtime.Object { return &metav1.APIGroup{} }); err != nil {
			return err
		}
		for _, version := range group.Versions {
			path := "/apis/" + version.GroupVersion
			answered, err := target.ask("GET", path, "Accept: "+jsonType)
			if err != nil {
				return err
			}
			// A version of which nothing is known yet.
			if answered.code != 200 {
				continue
			}
			if err := check(path, "", func() runtime.Object { return &metav1.APIResourceList{} }); err != nil {
				return err
			}
		}
	}
	if differences > 0 {
		return fmt.Errorf("%d of %d documents differ from what upstream encodes", differences, count)
	}
	fmt.Printf("%d documents are as upstream encodes them\n", count)
	return nil
}

// sameYAML is true for YAML that says the same: how a string is quoted is each library's own taste.
func sameYAML(form form, a, b []byte) bool {
	if !strings.HasPrefix(form.accept, yamlType) {
		return false
	}
	first, errA := yaml.YAMLToJSON(a)
	second, errB := yaml.YAMLToJSON(b)
	return errA == nil && errB == nil && bytes.Equal(first, second)
}

// form is one encoding of a document.
type form struct {
	accept, query string
	encoder       runtime.Encoder
}

func forms(parameters string) []form {
	scheme := runtime.NewScheme()
	meta := serializerjson.DefaultMetaFactory
	options := func(yaml, pretty bool) runtime.Encoder {
		return serializerjson.NewSerializerWithOptions(meta, scheme, scheme, serializerjson.SerializerOptions{Yaml: yaml, Pretty: pretty})
	}
	return []form{
		{jsonType + parameters, "", options(false, false)},
		{jsonType + parameters, "?pretty=true", options(false, true)},
		{yamlType + parameters, "", options(true, false)},
		{protobufType + parameters, "", protobuf.NewSerializer(scheme, scheme)},
	}
}

// both gives a form as it is served and as upstream encodes what the server's JSON says; object, which is empty, is filled with that.
func (t *target) both(path, parameters string, form form, object runtime.Object) (served, expected []byte, err error) {
	document, err := t.get(path, jsonType+parameters)
	if err != nil {
		return nil, nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(object); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if served, err = t.get(path+form.query, form.accept); err != nil {
		return nil, nil, err
	}
	var encoded bytes.Buffer
	if err := form.encoder.Encode(object, &encoded); err != nil {
		return nil, nil, fmt.Errorf("%s as %s: %w", path, form.accept, err)
	}
	return served, encoded.Bytes(), nil
}
