package kubetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// object is a JSON object.
type object map[string]any

// at is the object under a name, which is made if need be.
func (o object) at(name string) object {
	switch v := o[name].(type) {
	case object:
		return v
	case map[string]any:
		return v
	}
	made := object{}
	o[name] = made
	return made
}

func (o object) name() string {
	name, _ := o.at("metadata")["name"].(string)
	return name
}

func (o object) text(part, name string) string {
	text, _ := o.at(part)[name].(string)
	return text
}

// clone copies the object, all that is in it.
func (o object) clone() object {
	text, err := json.Marshal(o)
	if err != nil {
		panic(err) // it came from JSON
	}
	var out object
	if err := json.Unmarshal(text, &out); err != nil {
		panic(err)
	}
	return out
}

// metadataOf is the form in which hosts watch Nodes.
func metadataOf(n object) object {
	return object{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": n["metadata"]}
}

// storeLocked gives a Node its next revision and tells who watches.
func (s *Server) storeLocked(kind string, n object) {
	s.revision++
	n.at("metadata")["resourceVersion"] = strconv.FormatInt(s.revision, 10)
	if kind == "DELETED" {
		delete(s.nodes, n.name())
	} else {
		s.nodes[n.name()] = n
	}
	s.history = append(s.history, event{s.revision, kind, n})
	s.wakeLocked()
}

func (s *Server) create(w http.ResponseWriter, r *http.Request) {
	var n object
	if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes[n.name()] != nil {
		refuse(w, http.StatusConflict, "it exists")
		return
	}
	s.addLocked(n)
	answer(w, http.StatusCreated, n)
}

func (s *Server) addLocked(n object) {
	s.nextUID++
	s.created = s.created.Add(time.Second)
	m := n.at("metadata")
	m["uid"], m["creationTimestamp"] = fmt.Sprintf("00000000-0000-0000-0000-%012d", s.nextUID), s.created.Format(time.RFC3339)
	s.storeLocked("ADDED", n)
}

// Fill makes many Nodes that have joined, node-1 and so on in an empty cluster, the podCIDR of the i-th as
// subnet says and its address as publicIP does.
func (s *Server) Fill(count int, subnet, publicIP func(i int) string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range count {
		s.addLocked(object{
			"kind": "Node", "apiVersion": "v1",
			"metadata": object{"name": fmt.Sprintf("node-%d", s.nextUID+1), "managedFields": s.managedLocked(), "annotations": object{
				Prefix + "kube-subnet-manager": "true", Prefix + "backend-type": "vxlan", Prefix + "public-ip": publicIP(i),
				Prefix + "backend-data": fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:%02x:%02x:%02x"}`, i>>16, i>>8&0xff, i&0xff),
			}},
			"spec":   object{"podCIDR": subnet(i), "podCIDRs": []any{subnet(i)}},
			"status": object{},
		})
	}
}

// managedLocked is what makes most of the metadata of a Node that is padded.
func (s *Server) managedLocked() []object {
	fields := object{}
	for i := range len(s.padding) / 400 {
		fields[fmt.Sprintf("f:field-%d", i)] = object{".": object{}, "f:lastHeartbeatTime": object{}, "f:status": object{}}
	}
	return []object{{"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields}}
}

// Heartbeat changes a Node's revision and nothing that counts, as a kubelet does.
func (s *Server) Heartbeat(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[name].clone()
	n.at("status")["heartbeat"] = s.revision
	s.storeLocked("MODIFIED", n)
}

// remove deletes a Node, or all without a name.
func (s *Server) remove(w http.ResponseWriter, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != "" && s.nodes[name] == nil {
		refuse(w, http.StatusNotFound, "no such node")
		return
	}
	for other, n := range s.nodes {
		if name == "" || other == name {
			s.storeLocked("DELETED", n.clone())
		}
	}
	answer(w, http.StatusOK, object{"kind": "Status", "apiVersion": "v1", "status": "Success"})
}

// patch changes a Node: its status and metadata by a strategic merge patch on
// nodes/status, its spec and metadata by a merge patch on the Node itself. A uid that
// isn't the Node's is refused, as the API server does.
func (s *Server) patch(w http.ResponseWriter, r *http.Request, name string, status bool) {
	var p object
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	kind := r.Header.Get("Content-Type")
	if status != strings.HasPrefix(kind, statusPatch) || !status && !strings.HasPrefix(kind, mergePatch) {
		refuse(w, http.StatusUnsupportedMediaType, "unexpected patch "+kind)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes[name] == nil {
		refuse(w, http.StatusNotFound, fmt.Sprintf("nodes %q not found", name))
		return
	}
	n := s.nodes[name].clone()
	if uid := p.text("metadata", "uid"); uid != "" && uid != n.text("metadata", "uid") {
		refuse(w, http.StatusUnprocessableEntity, "metadata.uid: field is immutable")
		return
	}
	before := n.clone()
	merge(n.at("metadata").at("annotations"), p.at("metadata").at("annotations"))
	if status {
		mergeConditions(n.at("status"), p.at("status"))
	} else {
		merge(n.at("spec"), p.at("spec"))
	}
	if a, b := fmt.Sprint(before), fmt.Sprint(n); a != b {
		s.storeLocked("MODIFIED", n)
	}
	answer(w, http.StatusOK, n)
}

// merge follows RFC 7396 for values that aren't objects.
func merge(into, from object) {
	for k, v := range from {
		if v == nil {
			delete(into, k)
		} else {
			into[k] = v
		}
	}
}

// mergeConditions merges by the conditions' types.
func mergeConditions(into, from object) {
	var all []any
	seen := map[any]object{}
	for _, list := range []any{into["conditions"], from["conditions"]} {
		conditions, _ := list.([]any)
		for _, c := range conditions {
			c := object(c.(map[string]any))
			if before, ok := seen[c["type"]]; ok {
				maps.Copy(before, c)
				continue
			}
			seen[c["type"]] = c
			all = append(all, map[string]any(c))
		}
	}
	if all != nil {
		into["conditions"] = all
	}
}
