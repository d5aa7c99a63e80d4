#!/usr/bin/env bash
# benches/compare.sh [--smoke]   CPU per request of portico beside its peers, in one interleaved run on this machine.
#
# The peers (prototypes, nginx, HAProxy, Envoy, Go), their backend and the runner are a kit outside of this repository;
# benches/README.md says what it holds and how figures come about.
#
# PORTICO_PEERS        the kit (default: ../shared/peers beside the checkout)
# PORTICO_PEERS_CACHE  where its setup.sh has built it (default: ~/.cache/portico-peers)
# PORTICO              the program to measure (default: the release build, made here)
# NAMES                who takes part, the first is the unit (default: all that are there); `hyper,portico` is the least
# TESTS REPS SCALE     what is run, how often, how long (default: small_c16m16,small_c1m1,large_h2; 5; 1)
# LIMIT_SECS           the whole run is stopped after this (default 1800)
#
# --smoke shows only that it all works: one short test beside the prototype. Where the kit is absent it says so and ends
# with 0, because CI runs it on machines that may have none; without --smoke that is an error.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
peers=${PORTICO_PEERS:-$root/../shared/peers}
cache=${PORTICO_PEERS_CACHE:-$HOME/.cache/portico-peers}
smoke=
case ${1:-} in
  '') ;;
  --smoke) smoke=yes ;;
  *)
    echo "usage: benches/compare.sh [--smoke]" >&2
    exit 2
    ;;
esac
if [[ -n $smoke ]]; then
  names=hyper,portico tests=small_c16m16 reps=1 scale=0.05 limit_secs=120
else
  names=${NAMES:-hyper,portico,raw,nginx,haproxy-h2,envoy,go}
  tests=${TESTS:-small_c16m16,small_c1m1,large_h2}
  reps=${REPS:-5} scale=${SCALE:-1} limit_secs=${LIMIT_SECS:-1800}
fi
# `a b` is taken as well as `a,b`.
names=${names// /,} tests=${tests// /,}

# The kit's ports, fixed in its configurations.
portico_port=9640
declare -A ports=([hyper]=9610 [raw]=9630 [nginx]=9611 [haproxy-h2]=9612 [haproxy-h1]=9613 [envoy]=9614 [go]=9615 [portico]=$portico_port)
backend_ports=(9443 9444)
start_limit_secs=30

work=$(mktemp -d "${TMPDIR:-/tmp}/portico-compare.XXXXXX")
declare -A pids=()

# shellcheck disable=SC2317,SC2329 # the trap calls it
clean_up() {
  local status=$? pid tries=0
  trap - EXIT
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do
    while ((tries++ < 50)) && kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  echo "compare.sh: $*" >&2
  exit 1
}

# Something that is not portico's is not here: an error, unless this is only the smoke test.
absent() {
  echo "compare.sh: $*"
  if [[ -n $smoke ]]; then
    echo "compare.sh: SKIPPED, nothing was compared"
    exit 0
  fi
  exit 1
}

# --- what is needed ----------------------------------------------------------------------------------------------------

check_kit() {
  local command
  if [[ ! -f $cache/side.py || ! -x $cache/bin/backend || ! -x $cache/bin/proxy-mi || ! -f $cache/certs/ca.crt ]]; then
    [[ -f $peers/setup.sh ]] || absent "no peers: neither the kit in $peers (PORTICO_PEERS) nor a built one in $cache"
    absent "the peers are not built yet: run $peers/setup.sh (some minutes), which lays them out in $cache"
  fi
  for command in python3 h2load curl; do
    command -v "$command" >/dev/null || absent "$command is missing (the kit's setup.sh installs h2load)"
  done
}

is_there() {
  case $1 in
    portico | hyper) true ;; # checked before
    raw) [[ -x $cache/bin/rawproxy ]] ;;
    nginx) command -v nginx >/dev/null ;;
    haproxy-*) command -v haproxy >/dev/null ;;
    envoy) [[ -x $cache/py/envoy/envoy/_bin/envoy ]] ;;
    go) [[ -x $cache/goproxy/goproxy ]] ;;
    *) fail "unknown peer '$1'" ;;
  esac
}

choose_peers() {
  local name
  local -a asked
  present=()
  IFS=, read -r -a asked <<<"$names"
  for name in "${asked[@]}"; do
    if is_there "$name"; then present+=("$name"); else echo "compare.sh: left out: $name (not on this machine; see setup.sh of the kit)"; fi
  done
}

check_ports() {
  local port name
  local -a wanted=("${backend_ports[@]}")
  for name in "${present[@]}"; do wanted+=("${ports[$name]}"); done
  for port in "${wanted[@]}"; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      fail "port $port is in use: does another comparison run?"
    fi
  done
}

build_portico() {
  portico=${PORTICO:-}
  if [[ -z $portico ]]; then
    (cd "$root" && cargo build --release --locked)
    portico=${CARGO_TARGET_DIR:-$root/target}/release/portico
  fi
  [[ -x $portico ]] || fail "no program at $portico"
  portico=$(realpath "$portico")
}

# --- portico's side ----------------------------------------------------------------------------------------------------

# What the peers have in their configurations: one API on one backend, one user with a token.
write_portico_settings() {
  mkdir -p "$work/manifests"
  echo 'tok-alice,alice,u-alice,"dev"' >"$work/tokens.csv"
  cat >"$work/manifests/bench.yaml" <<MANIFEST
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata:
  name: v1.bench.example.com
spec:
  group: bench.example.com
  version: v1
  groupPriorityMinimum: 1000
  versionPriority: 15
  service:
    namespace: ns
    name: backend
    port: 9443
  caBundle: $(base64 <"$cache/certs/ca.crt" | tr -d '\n')
---
apiVersion: v1
kind: Service
metadata:
  namespace: ns
  name: backend
spec:
  ports:
    - port: 9443
      targetPort: 9443
      protocol: TCP
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: ns
  name: backend-1
  labels:
    kubernetes.io/service-name: backend
addressType: IPv4
ports:
  - port: 9443
    protocol: TCP
endpoints:
  - addresses: ["127.0.0.1"]
    conditions:
      ready: true
MANIFEST
}

start_portico() {
  local certs=$cache/certs
  (
    cd "$work"
    exec "$portico" run --bind-address 127.0.0.1 --secure-port "$portico_port" \
      --tls-cert-file "$certs/server.crt" --tls-private-key-file "$certs/server.key" \
      --client-ca-file "$certs/ca.crt" \
      --proxy-client-cert-file "$certs/frontproxy.crt" --proxy-client-key-file "$certs/frontproxy.key" \
      --token-auth-file "$work/tokens.csv" --manifests "$work/manifests" \
      </dev/null >"$work/portico.log" 2>&1
  ) &
  pids[portico]=$!
}

# --- the run -----------------------------------------------------------------------------------------------------------

start_all() {
  local name
  # `start.sh` replaces itself by the program, so that this is the program's own id, whose CPU is read.
  bash "$cache/start.sh" backend </dev/null >/dev/null 2>&1 &
  pids[backend]=$!
  for name in "${present[@]}"; do
    if [[ $name == portico ]]; then
      start_portico
    else
      bash "$cache/start.sh" "$name" </dev/null >/dev/null 2>&1 &
      pids[$name]=$!
    fi
  done
}

# The status of one request by alice. The forged header must be gone and her own there: the backend answers 200 only when
# it sees the user exactly once, her group, and no credentials.
request() {
  curl --silent --output /dev/null --write-out '%{http_code}' --max-time 5 --noproxy '*' --http2 --cacert "$cache/certs/ca.crt" \
    -H 'Authorization: Bearer tok-alice' -H 'X-Remote-User: evil' "https://localhost:$1/apis/bench.example.com/v1/small" || true
}

# Leaves in `subjects` those who do the whole job.
check_job() {
  local name status deadline
  subjects=()
  for name in "${present[@]}"; do
    deadline=$((SECONDS + start_limit_secs))
    while status=$(request "${ports[$name]}"); [[ $status != 200 ]] && ((SECONDS < deadline)) && kill -0 "${pids[$name]}" 2>/dev/null; do
      sleep 0.2
    done
    if [[ $status == 200 ]]; then
      subjects+=("$name")
    elif [[ $name == portico || $name == hyper ]]; then
      [[ $name != portico ]] || tail -n 40 "$work/portico.log"
      fail "$name does not do the job: the last answer was $status (000: none)"
    else
      echo "compare.sh: left out: $name does not do the job: the last answer was $status (000: none)"
    fi
  done
}

measure() {
  local name list status=0
  local -a given=("backend=${pids[backend]}")
  for name in "${subjects[@]}"; do given+=("$name=${pids[$name]}"); done
  list=$(IFS=,; echo "${subjects[*]}")
  echo "compare.sh: $list; tests $tests; $reps runs, scale $scale"
  # In the background, so that a signal to this script is heeded at once; `timeout` passes it on to all of the run.
  : >"$work/side.log"
  (
    cd "$cache"
    SCALE=$scale PYTHONUNBUFFERED=1 exec timeout --kill-after=10 "$limit_secs" \
      python3 side.py "$list" "$reps" "$tests" "$work/results.json" "${given[@]}" </dev/null >"$work/side.log" 2>&1
  ) &
  pids[side]=$!
  tail -n +1 -f --pid="${pids[side]}" "$work/side.log" &
  pids[tail]=$!
  wait "${pids[side]}" || status=$?
  wait "${pids[tail]}" || true
  ((status != 124)) || fail "stopped after $limit_secs s (LIMIT_SECS)"
  ((status == 0)) || fail "the kit's side.py ended with status $status"
}

# Medians of what side.py printed, a row a test and subject; ends with 1 where a request of portico failed.
print_table() {
  echo
  awk -v smoke="$smoke" -v unit="${subjects[0]}" '
    function median(list,    parts, count, i, j, swap) {
      count = split(list, parts, " ")
      for (i = 1; i < count; i++) for (j = i + 1; j <= count; j++)
        if (parts[j] + 0 < parts[i] + 0) { swap = parts[i]; parts[i] = parts[j]; parts[j] = swap }
      if (count == 0) return "-"
      return sprintf("%.0f", count % 2 ? parts[(count + 1) / 2] : (parts[count / 2] + parts[count / 2 + 1]) / 2)
    }
    function verdict(test, name,    key) {
      key = test SUBSEP name
      if (name != "portico" || !(test in goal)) return "-"
      if (smoke != "" || !(key in ratio)) return "<= " goal[test]
      return "<= " goal[test] (ratio[key] <= goal[test] + 0 ? " met" : " MISSED")
    }
    BEGIN { goal["small_c16m16"] = "1.10"; goal["large_h2"] = "1.10" }
    $4 == "ok" && $6 == "bad" {
      key = $2 SUBSEP $3
      if (!(key in rates)) { order[++rows] = key }
      rates[key] = rates[key] " " $9; p50[key] = p50[key] " " $11; p99[key] = p99[key] " " $13
      failed[key] += $7; answered[key] += $5
    }
    $1 == "ERR" { key = $3 SUBSEP $2; if (!(key in failed)) order[++rows] = key; failed[key] += 1; rates[key] = rates[key] "" }
    $3 == "cpu" && $4 == "ratio" { key = $1 SUBSEP $2; ratio[key] = $7; range[key] = $8 }
    END {
      format = "%-14s %-11s %9s %-13s %-14s %9s %8s %8s %7s\n"
      printf format, "test", "who", "CPU/req", "[min-max]", "goal", "req/s", "p50 us", "p99 us", "failed"
      for (row = 1; row <= rows; row++) {
        key = order[row]; split(key, part, SUBSEP); test = part[1]; name = part[2]
        if (row > 1 && test != last) print ""
        last = test
        printf format, test, name, (key in ratio ? ratio[key] : "-"), (key in range ? range[key] : "-"), verdict(test, name), \
          median(rates[key]), median(p50[key]), median(p99[key]), failed[key]
        if (name == "portico") { portico_rows++; if (failed[key] > 0) broken = 1 }
      }
      print "\nCPU/req: CPU time of the program per request, as a ratio to " unit " in the same run; medians."
      if (smoke != "") print "A smoke run is far too short for its figures to mean anything."
      if (!portico_rows) { print "portico has no row"; exit 1 }
      if (broken) { print "requests through portico failed"; exit 1 }
    }' "$work/rounds.log"
}

check_kit
choose_peers
check_ports
build_portico
write_portico_settings
start_all
check_job
measure
# Round by round the order alternates; by test, as it was asked for, it reads better.
{ for test in ${tests//,/ }; do grep -E "^([0-9]+ $test |$test |ERR [^ ]+ $test )" "$work/side.log" || true; done; } >"$work/rounds.log"
print_table
