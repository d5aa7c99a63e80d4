# shellcheck shell=bash disable=SC2154,SC2164
# (compare.sh sets what is not set here, and ends at the first error.)
# kube-apiserver as a subject of compare.sh, and portico in front of it (`portico-core`). Sourced by compare.sh.
#
# Both have the kit's backend behind them as an APIService of the cluster, know alice by her token, and let her in by RBAC:
# kube-apiserver itself, portico by what it asks kube-apiserver and keeps. The binaries come from tests/real/tools.sh.

core_port=26443
core_token=tok-admin
# GETs of the core through portico for one figure.
core_gets=20000

# Leaves `etcd` and `kube_apiserver`; false where neither they nor Go are there.
find_core() {
  local found
  found=$("$root/tests/real/tools.sh" etcd kube-apiserver) || return 1
  { read -r etcd; read -r kube_apiserver; } <<<"$found"
}

# ask_core METHOD PATH [BODY]   as an administrator, at kube-apiserver itself
ask_core() {
  curl --silent --fail --max-time 5 --noproxy '*' --cacert "$cache/certs/ca.crt" -H "Authorization: Bearer $core_token" \
    -X "$1" ${3:+-H 'Content-Type: application/json' --data "$3"} "https://localhost:$core_port$2"
}

write_core_settings() {
  openssl genrsa -out "$work/accounts.key" 2048 2>/dev/null
  openssl rsa -in "$work/accounts.key" -pubout -out "$work/accounts.pub" 2>/dev/null
  echo "$core_token,admin,u-admin,\"system:masters\"" | cat "$work/tokens.csv" - >"$work/core-tokens.csv"
  cat >"$work/kubeconfig" <<KUBECONFIG
clusters: [{name: c, cluster: {server: "https://localhost:$core_port", certificate-authority: "$cache/certs/ca.crt"}}]
users: [{name: u, user: {token: $core_token}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
KUBECONFIG
}

# await_core WHAT COMMAND...
await_core() {
  local what=$1 deadline=$((SECONDS + 60))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || fail "$what took too long: $(tail -n 5 "$work/kube-apiserver.log")"
    sleep 0.2
  done
}

start_core() {
  local certs=$cache/certs port=$((20000 + RANDOM % 5000)) names group=rbac.authorization.k8s.io/v1
  write_core_settings
  "$etcd" --data-dir "$work/etcd" --unsafe-no-fsync --listen-client-urls "http://127.0.0.1:$port" --log-level warn \
    --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls http://127.0.0.1:0 </dev/null >"$work/etcd.log" 2>&1 &
  pids[etcd]=$!
  names=$(openssl x509 -in "$certs/frontproxy.crt" -noout -subject -nameopt multiline | awk -F' = ' '/commonName/ { print $2 }')
  "$kube_apiserver" --etcd-servers "http://127.0.0.1:$port" --bind-address 127.0.0.1 --advertise-address 127.0.0.1 --secure-port "$core_port" \
    --endpoint-reconciler-type none --tls-cert-file "$certs/server.crt" --tls-private-key-file "$certs/server.key" \
    --client-ca-file "$certs/ca.crt" --token-auth-file "$work/core-tokens.csv" --authorization-mode RBAC \
    --requestheader-client-ca-file "$certs/ca.crt" --requestheader-allowed-names "$names" --requestheader-username-headers X-Remote-User \
    --requestheader-group-headers X-Remote-Group --requestheader-uid-headers X-Remote-Uid --requestheader-extra-headers-prefix X-Remote-Extra- \
    --proxy-client-cert-file "$certs/frontproxy.crt" --proxy-client-key-file "$certs/frontproxy.key" --service-cluster-ip-range 10.96.0.0/16 \
    --service-account-key-file "$work/accounts.pub" --service-account-signing-key-file "$work/accounts.key" \
    --service-account-issuer https://localhost </dev/null >"$work/kube-apiserver.log" 2>&1 &
  pids[kube-apiserver]=$!
  await_core "kube-apiserver's start" ask_core GET /readyz
  await_core "its namespaces" ask_core GET /api/v1/namespaces/default
  ask_core POST /api/v1/namespaces '{"metadata":{"name":"ns"}}' >/dev/null
  ask_core POST /api/v1/namespaces/ns/services '{"metadata":{"name":"backend"},"spec":{"type":"ExternalName","externalName":"localhost",
    "ports":[{"port":'"$backend_port"'}]}}' >/dev/null
  ask_core POST "/apis/$group/clusterroles" '{"metadata":{"name":"bench"},"rules":[{"apiGroups":["bench.example.com",""],"resources":["*"],"verbs":["*"]}]}' >/dev/null
  ask_core POST "/apis/$group/clusterrolebindings" '{"metadata":{"name":"bench"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole",
    "name":"bench"},"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"Group","name":"dev"}]}' >/dev/null
  ask_core POST /apis/apiregistration.k8s.io/v1/apiservices '{"metadata":{"name":"v1.bench.example.com"},"spec":{"group":"bench.example.com","version":"v1",
    "groupPriorityMinimum":1000,"versionPriority":15,"service":{"namespace":"ns","name":"backend","port":'"$backend_port"'},
    "caBundle":"'"$(base64 <"$certs/ca.crt" | tr -d '\n')"'"}}' >/dev/null
}

# What the two threads of it take, beside what it adds to what kube-apiserver takes itself.
start_portico_core() {
  local certs=$cache/certs
  (
    cd "$work"
    exec "$portico" run --bind-address 127.0.0.1 --secure-port "${ports[portico-core]}" --kubeconfig "$work/kubeconfig" \
      --tls-cert-file "$certs/server.crt" --tls-private-key-file "$certs/server.key" --client-ca-file "$certs/ca.crt" \
      --proxy-client-cert-file "$certs/frontproxy.crt" --proxy-client-key-file "$certs/frontproxy.key" </dev/null >"$work/portico-core.log" 2>&1
  ) &
  pids[portico-core]=$!
}

# Clock ticks that a process has taken.
ticks() { awk '{ print $14 + $15 }' "/proc/${pids[$1]}/stat"; }

# GETs of the core through portico: its CPU as a part of what kube-apiserver takes for them.
measure_core_gets() {
  local rep ours theirs
  for ((rep = 0; rep < reps; rep++)); do
    ours=$(ticks portico-core) theirs=$(ticks kube-apiserver)
    h2load -t1 -c16 -m16 -n "$core_gets" -H 'Authorization: Bearer tok-alice' \
      "https://localhost:${ports[portico-core]}/api/v1/namespaces/ns/services/backend" >"$work/core-gets"
    grep -q " $core_gets 2xx" "$work/core-gets" || fail "GETs of the core failed: $(grep 'status codes' "$work/core-gets")"
    awk -v ours=$(($(ticks portico-core) - ours)) -v theirs=$(($(ticks kube-apiserver) - theirs)) \
      'BEGIN { printf "MEM core_get portico-core %.1f %%\n", 100 * ours / theirs }' | tee -a "$work/all.log"
  done
}

# From portico's start to its first answer to alice, by a client that tries every few milliseconds.
measure_core_start() {
  local rep begun status
  for ((rep = 0; rep < reps; rep++)); do
    stop portico-core
    begun=$(date +%s%N)
    start portico-core
    until status=$(request "${ports[portico-core]}" "$small"); [[ $status == 200 ]]; do
      (($(date +%s%N) - begun < start_limit_secs * 1000000000)) || fail "portico-core does not start: $(tail -n 5 "$work/portico-core.log")"
    done
    awk -v ns=$(($(date +%s%N) - begun)) 'BEGIN { printf "MEM first_request portico-core %.0f ms\n", ns / 1e6 }' | tee -a "$work/all.log"
  done
}
