#!/usr/bin/env bash
# benches/compare.sh [--smoke]   What a request, a handshake, a watch and doing nothing cost portico, beside its peers, in one
# interleaved run on this machine; at the end each figure that has a bound, beside it.
#
# The peers (prototypes, nginx, HAProxy, Envoy, Go), their backend and the runner are a kit outside of this repository;
# benches/README.md says what it holds and how figures come about.
#
# PORTICO_PEERS        the kit (default: ../shared/peers beside the checkout)
# PORTICO_PEERS_CACHE  where its setup.sh has built it (default: ~/.cache/portico-peers)
# PORTICO              the program to measure (default: the release build, made here)
# NAMES                who takes part, the first is the unit (default: all that are there); `hyper,portico` is the least;
#                      `portico-log` is portico with an access log, `direct` the backend without a proxy;
#                      `kube-apiserver,portico-core` compares kube-apiserver with portico in front of it (benches/core.sh)
# TESTS REPS SCALE     what is run, how often, how long (default: all of benches/README.md's first rows; 5; 1)
# MEMORY_REPS          how often memory is measured, each time in a new process (default 3)
# LIMIT_SECS           each group of tests is stopped after this (default 1800)
#
# --smoke shows only that it all works: short tests beside the prototype. Where the kit is absent it says so and ends with 0,
# because CI runs it on machines that may have none; without --smoke that is an error.
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
  names=hyper,portico,portico-log tests=small_c16m16,watches,idle reps=1 memory_reps=1 scale=0.05 limit_secs=120
  # Connections and watches on each.
  shapes=("2 10" "20 1")
else
  names=${NAMES:-hyper,portico,portico-log,direct,raw,nginx,haproxy-h2,envoy,go}
  tests=${TESTS:-small_c16m16,small_c1m1,large_h2,hs_full,hs_resume,watches,idle}
  reps=${REPS:-5} memory_reps=${MEMORY_REPS:-3} scale=${SCALE:-1} limit_secs=${LIMIT_SECS:-1800}
  shapes=("20 100" "2000 1")
fi
# `a b` is taken as well as `a,b`.
names=${names// /,} tests=${tests// /,}

# The kit's ports, fixed in its configurations; the second portico's is ours.
declare -A ports=([hyper]=9610 [raw]=9630 [nginx]=9611 [haproxy-h2]=9612 [haproxy-h1]=9613 [envoy]=9614 [go]=9615
  [direct]=9444 [portico]=9640 [portico-log]=9641 [portico-core]=9642 [kube-apiserver]=26443)
backend_port=9443
# A datagram to it makes the backend send one event to each watch.
events_port=9445
api_services=10
small=/apis/bench.example.com/v1/small
start_limit_secs=30
watches_limit_secs=120
files_max=20000

# shellcheck source-path=SCRIPTDIR source=core.sh
source "$root/benches/core.sh"

work=$(mktemp -d "${TMPDIR:-/tmp}/portico-compare.XXXXXX")
declare -A pids=()

# shellcheck disable=SC2317,SC2329 # the trap calls it
clean_up() {
  local status=$? pid tries
  trap - EXIT
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do
    tries=0
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
  if [[ ! -f $cache/side.py || ! -x $cache/bin/backend || ! -x $cache/bin/bc || ! -x $cache/bin/proxy-mi || ! -f $cache/certs/ca.crt ]]; then
    [[ -f $peers/setup.sh ]] || absent "no peers: neither the kit in $peers (PORTICO_PEERS) nor a built one in $cache"
    absent "the peers are not built yet: run $peers/setup.sh (some minutes), which lays them out in $cache"
  fi
  for command in python3 h2load curl; do
    command -v "$command" >/dev/null || absent "$command is missing (the kit's setup.sh installs h2load)"
  done
}

is_there() {
  case $1 in
    portico | hyper | direct) true ;; # checked before
    portico-log) [[ $("$portico" run --help) == *--access-log* ]] ;;
    raw) [[ -x $cache/bin/rawproxy ]] ;;
    kube-apiserver | portico-core) find_core ;;
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
    if is_there "$name"; then
      present+=("$name")
    elif [[ $name == portico-log ]]; then
      echo "compare.sh: left out: $name (this portico has no --access-log)"
    else
      echo "compare.sh: left out: $name (not on this machine; see setup.sh of the kit)"
    fi
  done
}

check_ports() {
  local port name
  local -a wanted=("$backend_port" "${ports[direct]}")
  for name in "${present[@]}"; do [[ $name == direct ]] || wanted+=("${ports[$name]}"); done
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

# What the peers have in their configurations: one API on one backend, one user with a token. In a second folder the same
# with more APIs, for the memory they take.
write_portico_settings() {
  local number
  mkdir -p "$work/manifests" "$work/more"
  echo 'tok-alice,alice,u-alice,"dev"' >"$work/tokens.csv"
  write_api_service bench.example.com >"$work/manifests/bench.yaml"
  for ((number = 2; number <= api_services; number++)); do
    write_api_service "bench$number.example.com" >"$work/more/bench$number.yaml"
  done
  cat >"$work/manifests/backend.yaml" <<MANIFEST
apiVersion: v1
kind: Service
metadata:
  namespace: ns
  name: backend
spec:
  ports:
    - port: $backend_port
      targetPort: $backend_port
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
  - port: $backend_port
    protocol: TCP
endpoints:
  - addresses: ["127.0.0.1"]
    conditions:
      ready: true
MANIFEST
  cp "$work/manifests"/* "$work/more/"
}

write_api_service() {
  cat <<MANIFEST
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata:
  name: v1.$1
spec:
  group: $1
  version: v1
  groupPriorityMinimum: 1000
  versionPriority: 15
  service:
    namespace: ns
    name: backend
    port: $backend_port
  caBundle: $(base64 <"$cache/certs/ca.crt" | tr -d '\n')
MANIFEST
}

# start_portico NAME MANIFESTS [FLAG...]
start_portico() {
  local name=$1 manifests=$2 certs=$cache/certs
  shift 2
  (
    cd "$work"
    exec "$portico" run --bind-address 127.0.0.1 --secure-port "${ports[$name]}" \
      --tls-cert-file "$certs/server.crt" --tls-private-key-file "$certs/server.key" \
      --client-ca-file "$certs/ca.crt" \
      --proxy-client-cert-file "$certs/frontproxy.crt" --proxy-client-key-file "$certs/frontproxy.key" \
      --token-auth-file "$work/tokens.csv" --manifests "$manifests" "$@" \
      </dev/null >"$work/$name.log" 2>&1
  ) &
  pids[$name]=$!
}

# --- the run -----------------------------------------------------------------------------------------------------------

# Each replaces its shell by the program, so that this is the program's own id, whose CPU and memory are read.
start() {
  case $1 in
    direct) ;;
    portico) start_portico portico "${2:-$work/manifests}" ;;
    portico-log) start_portico portico-log "$work/manifests" --access-log "$work/access.log" ;;
    kube-apiserver) start_core ;;
    portico-core) start_portico_core ;;
    *)
      bash "$cache/start.sh" "$1" </dev/null >/dev/null 2>&1 &
      pids[$1]=$!
      ;;
  esac
}

stop() {
  local tries=0 pid=${pids[$1]:-}
  [[ -n $pid ]] || return 0
  kill -TERM "$pid" 2>/dev/null || true
  while ((tries++ < 50)) && kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  unset "pids[$1]"
}

start_all() {
  local name
  start backend
  for name in "${present[@]}"; do start "$name"; done
}

# The status of one request by alice. The forged header must be gone and her own there: the backend answers 200 only when
# it sees the user exactly once, her group, and no credentials.
request() {
  curl --silent --output /dev/null --write-out '%{http_code}' --max-time 5 --noproxy '*' --http2 --cacert "$cache/certs/ca.crt" \
    -H 'Authorization: Bearer tok-alice' -H 'X-Remote-User: evil' "https://localhost:$1$2" || true
}

# await_answer NAME PATH   leaves in `status` the last answer to alice, once it is 200 or NAME has not come to it
await_answer() {
  local name=$1 deadline=$((SECONDS + start_limit_secs))
  while status=$(request "${ports[$name]}" "$2"); [[ $status != 200 ]] && ((SECONDS < deadline)) && kill -0 "${pids[$name]}" 2>/dev/null; do
    sleep 0.2
  done
}

# Leaves in `subjects` those who do the whole job.
check_job() {
  local name status
  subjects=()
  for name in "${present[@]}"; do
    if [[ $name == direct ]]; then
      subjects+=("$name")
      continue
    fi
    await_answer "$name" "$small"
    if [[ $status == 200 ]]; then
      subjects+=("$name")
    elif [[ $name == portico* || $name == hyper ]]; then
      [[ $name == hyper ]] || tail -n 40 "$work/$name.log"
      fail "$name does not do the job: the last answer was $status (000: none)"
    else
      echo "compare.sh: left out: $name does not do the job: the last answer was $status (000: none)"
    fi
  done
}

# chosen PATTERN   those of the tests whose names match, with commas
chosen() {
  tr , '\n' <<<"$tests" | grep -E "$1" | paste -sd, || true
}

# measure TESTS   with all subjects, in the kit's runner. It does not know the other porticos, hence the lines of Python.
measure() {
  local name list status=0
  local -a given=("backend=${pids[backend]}") taking=()
  for name in "${subjects[@]}"; do
    # A handshake is one with a proxy, and an access log has no part in it.
    [[ $1 == hs_* && ($name == direct || $name == portico-log || $name == portico-core) ]] || taking+=("$name")
    [[ -z ${pids[$name]:-} ]] || given+=("$name=${pids[$name]}")
  done
  list=$(IFS=,; echo "${taking[*]}")
  echo "compare.sh: $list; tests $1; $reps runs, scale $scale"
  # In the background, so that a signal to this script is heeded at once; `timeout` passes it on to all of the run.
  : >"$work/side.log"
  (
    cd "$cache"
    SCALE=$scale PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 exec timeout --kill-after=10 "$limit_secs" python3 -c "
import runpy, sys
sys.path.insert(0, '.')
import lib
lib.PORTS['portico-log'] = ${ports[portico-log]}
lib.PORTS['portico-core'] = ${ports[portico-core]}
runpy.run_path('side.py', run_name='__main__')" \
      "$list" "$reps" "$1" "$work/results.json" "${given[@]}" </dev/null >"$work/side.log" 2>&1
  ) &
  pids[side]=$!
  tail -n +1 -f --pid="${pids[side]}" "$work/side.log" &
  pids[tail]=$!
  wait "${pids[side]}" || status=$?
  wait "${pids[tail]}" || true
  unset "pids[side]" "pids[tail]"
  ((status != 124)) || fail "stopped after $limit_secs s (LIMIT_SECS)"
  ((status == 0)) || fail "the kit's side.py ended with status $status"
  cat "$work/side.log" >>"$work/all.log"
}

# --- memory ------------------------------------------------------------------------------------------------------------

# Resident KiB of NAME's process; of what others have mapped too (the C library) its part.
resident() {
  awk '$1 == "Pss:" { print $2 }' "/proc/${pids[$1]}/smaps_rollup"
}

# Many small requests, so that what they leave behind is there already.
warm_up() {
  h2load -t1 -c4 -m8 -n 3000 -H 'Authorization: Bearer tok-alice' \
    "https://localhost:${ports[$1]}$small" >/dev/null
}

# restart NAME PATH [MANIFESTS]   in a new process, because an allocator keeps what earlier tests made it take; it is there
# when it answers for the path
restart() {
  local status
  stop "$1"
  start "$1" "${3:-}"
  await_answer "$1" "$2"
  [[ $status == 200 ]] || fail "$1 does not do the job: the last answer was $status (000: none)"
}

# hold_watches NAME CONNECTIONS WATCHES-ON-EACH   prints what one watch takes; two events reach them all meanwhile
hold_watches() {
  local name=$1 count=$(($2 * $3)) before after deadline=$((SECONDS + watches_limit_secs)) status=0
  restart "$name" "$small"
  warm_up "$name"
  before=$(resident "$name")
  rm -f "$work/go"
  mkfifo "$work/go"
  "$cache/bin/bc" watch "${ports[$name]}" "$2" "$3" 2 h2 "$events_port" <"$work/go" >"$work/watches" 2>&1 &
  pids[watches]=$!
  exec 7>"$work/go"
  while ! grep -q '^READY' "$work/watches"; do
    ((SECONDS < deadline)) || fail "$name: the watches were not open after $watches_limit_secs s: $(tail -n 3 "$work/watches")"
    kill -0 "${pids[watches]}" 2>/dev/null || fail "$name: the client ended: $(tail -n 3 "$work/watches")"
    sleep 0.1
  done
  after=$(resident "$name")
  echo go >&7
  wait "${pids[watches]}" || status=$?
  exec 7>&-
  unset "pids[watches]"
  if ((status != 0)) || ! grep -q "\"open\":$count,\"bad\":0," "$work/watches" ||
    ! grep -q "\"got\":$((2 * count)),\"want\":$((2 * count)),\"bad\":0," "$work/watches"; then
    fail "$name: of $count watches some broke, or missed an event: $(tail -n 3 "$work/watches")"
  fi
  awk -v name="$name" -v shape="$2x$3" -v before="$before" -v after="$after" -v count="$count" \
    'BEGIN { printf "MEM watches_%s %s %.1f KiB each (%d to %d KiB)\n", shape, name, (after - before) / count, before, after }' |
    tee -a "$work/all.log"
}

# Not in a pipe: what runs in one has no part in `pids`, and would outlive a failure.
measure_watches() {
  local rep shape name
  local -a parts
  for ((rep = 0; rep < memory_reps; rep++)); do
    for shape in "${shapes[@]}"; do
      read -r -a parts <<<"$shape"
      for name in hyper portico; do hold_watches "$name" "${parts[@]}"; done
    done
  done
}

measure_idle() {
  local rep name
  for ((rep = 0; rep < memory_reps; rep++)); do
    for name in hyper portico; do
      restart "$name" /healthz "$work/more"
      record_idle idle "$name"
      warm_up "$name"
      record_idle idle_after "$name"
    done
  done
}

record_idle() {
  awk -v test="$1" -v name="$2" -v kib="$(resident "$2")" 'BEGIN { printf "MEM %s %s %.1f MB\n", test, name, kib * 1.024 / 1000 }' |
    tee -a "$work/all.log"
}

# Each with nothing else beside it than the backend.
measure_memory() {
  local name
  for name in "${subjects[@]}"; do stop "$name"; done
  [[ -z $(chosen '^watches$') ]] || measure_watches
  [[ -z $(chosen '^idle$') ]] || measure_idle
}

# --- what came out -----------------------------------------------------------------------------------------------------

# Medians of what side.py printed, a row a test and subject, then what has a bound. Ends with 1 where a request of portico
# failed; a missed bound is only said, because a busy machine can cause it.
print_table() {
  echo
  awk -v smoke="$smoke" -v unit="${subjects[0]}" '
    function median(list, digits,    parts, count, i, j, swap) {
      count = split(list, parts, " ")
      for (i = 1; i < count; i++) for (j = i + 1; j <= count; j++)
        if (parts[j] + 0 < parts[i] + 0) { swap = parts[i]; parts[i] = parts[j]; parts[j] = swap }
      if (count == 0) return "-"
      return sprintf("%.*f", digits, count % 2 ? parts[(count + 1) / 2] : (parts[count / 2] + parts[count / 2 + 1]) / 2)
    }
    # The times that portico and the unit add to the bare backend, as a ratio, repetition by repetition.
    function added(    rep, ratios, ours, theirs) {
      for (rep = 0; (rep, "portico") in latency; rep++) {
        if (!((rep, "direct") in latency) || !((rep, unit) in latency)) return "-"
        ours = latency[rep, "portico"] - latency[rep, "direct"]; theirs = latency[rep, unit] - latency[rep, "direct"]
        if (theirs > 0) ratios = ratios " " ours / theirs
      }
      return median(ratios, 2)
    }
    function bound(what, figure, limit, measure) {
      if (figure == "" || figure == "-") return
      if (!bounds++) printf "\n%-62s %9s %10s\n", "figures with a bound", "portico", "bound"
      printf "%-62s %9s %10s  %s\n", what ", " measure, figure, "<= " limit, smoke != "" ? "" : (figure + 0 <= limit + 0 ? "met" : "MISSED")
    }
    $4 == "ok" && $6 == "bad" {
      key = $2 SUBSEP $3
      if (!(key in rates)) { order[++rows] = key }
      rates[key] = rates[key] " " $9; p50[key] = p50[key] " " $11; p99[key] = p99[key] " " $13
      failed[key] += $7; answered[key] += $5
      if ($2 == "small_c1m1") latency[$1, $3] = $11
    }
    $1 == "ERR" { key = $3 SUBSEP $2; if (!(key in failed)) order[++rows] = key; failed[key] += 1; rates[key] = rates[key] "" }
    $3 == "cpu" && $4 == "ratio" && $2 != "direct" { key = $1 SUBSEP $2; ratio[key] = $7; range[key] = $8 }
    $1 == "MEM" { key = $2 SUBSEP $3; if (!(key in memory)) taken[++memories] = key; memory[key] = memory[key] " " $4; measure[key] = $5 }
    END {
      format = "%-14s %-11s %9s %-13s %9s %8s %8s %7s\n"
      if (rows) printf format, "test", "who", "CPU/req", "[min-max]", "req/s", "p50 us", "p99 us", "failed"
      for (row = 1; row <= rows; row++) {
        key = order[row]; split(key, part, SUBSEP); test = part[1]; name = part[2]
        if (row > 1 && test != last) print ""
        last = test
        printf format, test, name, (key in ratio ? ratio[key] : "-"), (key in range ? range[key] : "-"), \
          median(rates[key], 0), median(p50[key], 0), median(p99[key], 0), failed[key]
        if (name ~ /^portico/) { portico_rows++; if (failed[key] > 0) broken = 1 }
      }
      if (rows) print "\nCPU/req: CPU time of the program per request or handshake, as a ratio to " unit " in the same run; medians."
      if (memories) print ""
      for (row = 1; row <= memories; row++) {
        key = taken[row]; split(key, part, SUBSEP)
        printf "%-16s %-11s %9s %s\n", part[1], part[2], median(memory[key], 1), measure[key]
        if (part[1] ~ /^(watches|idle)/) watched = 1
      }
      if (watched) print "\nResident memory: KiB for each watch, by connections x watches on each; MB with nothing to do."
      times = "CPU / " unit; row = SUBSEP "portico"
      bound("small GET, as many as go", ratio["small_c16m16" row], "1.10", times)
      bound("small GET with an access log", ratio["small_c16m16" row "-log"], "1.20", times)
      bound("small GET, one at a time", added(), "1.20", "p50 added over direct / " unit)
      bound("5 MB list", ratio["large_h2" row], "1.10", times)
      bound("handshake, full", ratio["hs_full" row], "1.10", times)
      bound("handshake, resumed", ratio["hs_resume" row], "1.10", times)
      if (unit == "kube-apiserver") {
        row = SUBSEP "portico-core"; times = "CPU / " unit
        bound("aggregated GET, as many as go", ratio["small_c16m16" row], "0.09", times)
        bound("aggregated GET, one at a time", ratio["small_c1m1" row], "0.15", times)
        bound("aggregated GET, 2,000/s", ratio["small_2krps" row], "0.20", times)
        times = median(p50["small_c1m1" SUBSEP unit], 0)
        if (times > 0) bound("aggregated GET, unloaded", sprintf("%.2f", median(p50["small_c1m1" row], 0) / times), "0.35", "p50 / " unit)
        bound("GET of the core", median(memory["core_get" row], 1), 15, "portico CPU, % of " unit)
        bound("first request after start", median(memory["first_request" row], 0), 300, "ms")
      }
      bound("idle watch, 100 to a connection", median(memory["watches_20x100" row], 1), 16, "KiB")
      bound("idle watch, a connection each", median(memory["watches_2000x1" row], 1), 42, "KiB")
      bound("10 APIServices, after start", median(memory["idle" row], 1), 12, "MB")
      if (smoke != "") print "A smoke run is far too short for its figures to mean anything."
      if (rows && !portico_rows) { print "portico has no row"; exit 1 }
      if (broken) { print "requests through portico failed"; exit 1 }
    }' "$work/rounds.log"
}

check_kit
build_portico
choose_peers
# The kit's ports are fixed: one comparison at a time.
exec 9>"$cache/lock"
flock --wait "$limit_secs" 9 || fail "another comparison runs"
check_ports
ulimit -n "$files_max" 2>/dev/null || true
write_portico_settings
start_all
check_job
: >"$work/all.log"
for group in '^(small|large)_' '^hs_'; do
  list=$(chosen "$group")
  [[ -z $list ]] || measure "$list"
done
if [[ " ${subjects[*]} " == *' kube-apiserver '* && " ${subjects[*]} " == *' portico-core '* ]]; then
  measure_core_gets
  measure_core_start
  tests+=,core_get,first_request
fi
measure_memory
# Round by round the order alternates; by test, as it was asked for, it reads better.
{ for test in ${tests//,/ }; do grep -E "^([0-9]+ $test |$test |ERR [^ ]+ $test |MEM ${test}(_[^ ]*)? )" "$work/all.log" || true; done; } >"$work/rounds.log"
print_table
