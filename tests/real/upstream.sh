# shellcheck shell=bash
# A real kube-apiserver with its etcd on loopback, for the tests that compare portico with it or put portico before it. Each
# sources it after parts.sh (or fleet.sh, which brings that), has `certs` made, and then calls `start_upstream`, which sets
# `upstream`, its URL.

port_tries=5
# More flags for kube-apiserver.
upstream_flags=()

# etcd and kube-apiserver take no port 0; one that is taken meanwhile ends them, and another is tried.
# start_on_a_port NAME READY-COMMAND START-COMMAND
start_on_a_port() {
  local name=$1 ready=$2 start=$3 tries=0
  while ((tries++ < port_tries)); do
    port=$((20000 + RANDOM % 10000))
    "$start" </dev/null >"$work/$name.stderr" 2>&1 &
    pids[$name]=$!
    await "$name starts" 60 ready_or_gone "$name" "$ready" || finish
    ! is_running "$name" || return 0
  done
  fail "$name starts" "not on any of $port_tries ports" "$work/$name.stderr"
  finish
}

# start_again NAME PORT READY-COMMAND START-COMMAND   what was ended, where it was
start_again() {
  port=$2
  "$4" </dev/null >>"$work/$1.stderr" 2>&1 &
  pids[$1]=$!
  await "$1 starts again" 60 ready_or_gone "$1" "$3" || finish
  is_running "$1" || { fail "$1 starts again" "it ended" "$work/$1.stderr"; finish; }
}

# kill_at_once NAME   as a machine that loses power
kill_at_once() {
  kill -KILL "${pids[$1]}"
  wait "${pids[$1]}" 2>/dev/null || true
  unset "pids[$1]"
}

# shellcheck disable=SC2317,SC2329 # await calls it
ready_or_gone() { ! is_running "$1" || "$2"; }

# shellcheck disable=SC2317,SC2329 # start_on_a_port calls it
run_etcd() {
  # shellcheck disable=SC2154 # find_tool sets it
  exec "$etcd" --data-dir "$(mktemp -d "$work/etcd.XXXXXX")" --unsafe-no-fsync --listen-client-urls "http://127.0.0.1:$port" --advertise-client-urls "http://127.0.0.1:$port" \
    --listen-peer-urls "http://127.0.0.1:0" --log-level warn
}

# shellcheck disable=SC2317,SC2329 # await calls it
etcd_is_ready() { curl --silent --fail --max-time 2 --noproxy '*' "http://127.0.0.1:$port/health"; }

# shellcheck disable=SC2317,SC2329 # start_on_a_port calls it
run_kube_apiserver() {
  # shellcheck disable=SC2154 # find_tool sets it
  exec "$kube_apiserver" --etcd-servers "http://127.0.0.1:$etcd_port" --bind-address 127.0.0.1 --advertise-address 127.0.0.1 --secure-port "$port" \
    --endpoint-reconciler-type none --cert-dir "$work/upstream" --tls-cert-file "$certs/portico.crt" --tls-private-key-file "$certs/portico.key" \
    --client-ca-file "$certs/client-ca.crt" --requestheader-client-ca-file "$certs/front-proxy-ca.crt" --requestheader-allowed-names front-proxy \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group --requestheader-uid-headers X-Remote-Uid \
    --requestheader-extra-headers-prefix X-Remote-Extra- --proxy-client-cert-file "$certs/front-proxy.crt" --proxy-client-key-file "$certs/front-proxy.key" \
    --service-account-key-file "$certs/service-accounts.crt" --service-account-signing-key-file "$certs/service-accounts.key" \
    --service-account-issuer https://localhost --service-cluster-ip-range 10.96.0.0/16 --authorization-mode RBAC \
    ${upstream_flags[@]+"${upstream_flags[@]}"}
}

# shellcheck disable=SC2317,SC2329 # await calls it
kube_apiserver_is_ready() { ask --fail "https://127.0.0.1:$port/readyz"; }

start_upstream() {
  start_on_a_port etcd etcd_is_ready run_etcd
  etcd_port=$port
  start_on_a_port kube-apiserver kube_apiserver_is_ready run_kube_apiserver
  upstream_port=$port
  upstream=https://127.0.0.1:$port
  # Its namespaces come a moment after it is ready.
  await "kube-apiserver has a namespace" "$start_limit_secs" ask --fail "$upstream/api/v1/namespaces/default" || finish
}
