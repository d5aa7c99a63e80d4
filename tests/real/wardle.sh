# shellcheck shell=bash
# The real sample-apiserver, which serves wardle.example.com, behind a kube-apiserver. A test sources it after upstream.sh,
# and calls `start_sample` when kube-apiserver is up and `k`, kubectl as its admin, is there. Its audit log, in $work/audit.log,
# says who every caller is to it. What it has allowed it goes on allowing for ten minutes without kube-apiserver.

# shellcheck disable=SC2317,SC2329 # start_on_a_port calls it
run_sample() {
  # shellcheck disable=SC2154 # find_tool and start_upstream set them
  exec "$sample_apiserver" --etcd-servers "http://127.0.0.1:$sample_etcd_port" --bind-address 127.0.0.1 --secure-port "$port" --cert-dir "$work/sample" \
    --tls-cert-file "$certs/fleet.crt" --tls-private-key-file "$certs/fleet.key" --kubeconfig "$work/sample.kubeconfig" \
    --authentication-kubeconfig "$work/sample.kubeconfig" --authorization-kubeconfig "$work/sample.kubeconfig" \
    --authorization-webhook-cache-authorized-ttl 10m --audit-policy-file "$work/audit.yaml" --audit-log-path "$work/audit.log"
}

# shellcheck disable=SC2317,SC2329 # await calls it
sample_is_ready() { curl --silent --fail --max-time 2 --noproxy '*' --insecure "https://127.0.0.1:$port/readyz"; }

# What its ServiceAccount may do, as in its own example.
sample_rights() {
  cat <<'MANIFEST'
apiVersion: v1
kind: ServiceAccount
metadata: {namespace: default, name: wardle}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: wardle}
rules:
- {apiGroups: [""], resources: [namespaces], verbs: [get, list, watch]}
- {apiGroups: [admissionregistration.k8s.io], resources: ["*"], verbs: [get, list, watch]}
- {apiGroups: [flowcontrol.apiserver.k8s.io], resources: [prioritylevelconfigurations, flowschemas], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: wardle}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: wardle}
subjects: [{kind: ServiceAccount, namespace: default, name: wardle}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: wardle-auth-delegator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator"}
subjects: [{kind: ServiceAccount, namespace: default, name: wardle}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {namespace: kube-system, name: wardle-authentication-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: extension-apiserver-authentication-reader}
subjects: [{kind: ServiceAccount, namespace: default, name: wardle}]
MANIFEST
}

# kube-apiserver takes no endpoints on loopback, hence a name.
sample_service() {
  cat <<MANIFEST
apiVersion: v1
kind: Service
metadata: {namespace: default, name: wardle}
spec: {type: ExternalName, externalName: localhost, ports: [{port: $sample_port}]}
MANIFEST
}

# sample_api_services VERSION...
sample_api_services() {
  local version
  for version in "$@"; do
    cat <<MANIFEST
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: $version.wardle.example.com}
spec:
  group: wardle.example.com
  version: $version
  groupPriorityMinimum: 1000
  versionPriority: 15
  service: {namespace: default, name: wardle, port: $sample_port}
  caBundle: $(base64 <"$certs/serving-ca.crt" | tr -d '\n')
MANIFEST
  done
}

# write_token_kubeconfig SERVER TOKEN [AUTHORITIES-FILE]
write_token_kubeconfig() {
  cat <<KUBECONFIG
apiVersion: v1
kind: Config
clusters: [{name: it, cluster: {server: "$1", certificate-authority: "${3:-$certs/serving-ca.crt}"}}]
users: [{name: it, user: {token: "$2"}}]
contexts: [{name: it, context: {cluster: it, user: it, namespace: default}}]
current-context: it
KUBECONFIG
}

start_sample() {
  local upstream_etcd=${pids[etcd]}
  sample_rights | k create -f - >"$work/output" || finish
  # Sets `sample_token`.
  sample_token=$(k create token wardle --duration 1h)
  write_token_kubeconfig "$upstream" "$sample_token" "${sample_authorities:-}" >"$work/sample.kubeconfig"
  printf 'apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n' >"$work/audit.yaml"
  start_on_a_port etcd etcd_is_ready run_etcd
  sample_etcd_port=$port
  pids[sample-etcd]=${pids[etcd]} pids[etcd]=$upstream_etcd
  start_on_a_port sample-apiserver sample_is_ready run_sample
  sample_port=$port
  { sample_service && sample_api_services v1alpha1 v1beta1; } | k create -f - >"$work/output" || finish
  await "kube-apiserver finds wardle.example.com available" "$start_limit_secs" sample_is_available || finish
}

# shellcheck disable=SC2317,SC2329 # await calls it
sample_is_available() {
  k wait --for=condition=Available --timeout=1s apiservice v1alpha1.wardle.example.com v1beta1.wardle.example.com &&
    k get --raw /apis/wardle.example.com/v1alpha1/fischers
}
