# shellcheck shell=bash
# What the tests of this folder have in common; each sources it first. It makes a folder `$work` that is gone at the end,
# keeps the ids of what was started in `pids` and ends those, counts what passed and failed, finds the programs, and starts
# portico before the backend of streams/.
#
# PORTICO           the program to test (default: the release build); nothing of portico is built here
# KUBEBUILDER_ASSETS, PORTICO_CACHE   see tools.sh
#
# The last line of each test says `N passed, M failed`. Without Go (the tools are built with it) the tests are skipped, but
# never in CI.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
portico=${PORTICO:-${CARGO_TARGET_DIR:-$root/target}/release/portico}
passed=0
failed=0
declare -A pids=()

start_limit_secs=30
command_limit_secs=30
stop_limit_secs=10
# The backend's Service, as in the certificates of streams/.
api_group=streams.example.com
api_path=/apis/$api_group/v1
# The token of the token file that portico is started with.
token=secret-of-the-tests

work=$(mktemp -d "${TMPDIR:-/tmp}/portico-real.XXXXXX")

# shellcheck disable=SC2317,SC2329 # the trap calls it
clean_up() {
  local status=$? name
  trap - EXIT
  # Those who start something that `pids` cannot hold say here how it ends.
  if declare -F clean_up_more >/dev/null; then clean_up_more; fi
  for name in "${!pids[@]}"; do stop "$name"; done
  cd /
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

pass() {
  passed=$((passed + 1))
  echo "ok    $1"
}

# fail WHAT WHY [FILE-WITH-OUTPUT]
fail() {
  failed=$((failed + 1))
  echo "FAIL  $1"
  echo "      $2"
  [[ -z ${3:-} || ! -s ${3:-} ]] || sed -n '1,40s/^/      | /p' "$3"
}

finish() {
  if ((failed > 0)); then
    echo "---- the end of portico's log"
    tail -n 40 "$work/portico.stderr" 2>/dev/null || true
    echo "----"
  fi
  echo "$passed passed, $failed failed"
  ((failed == 0)) || exit 1
  exit 0
}

in_ci() { [[ ${CI:-} == true ]]; }

# stop NAME   asks it to end, and ends it when it does not
stop() {
  local tries=0 pid=${pids[$1]:-}
  [[ -n $pid ]] || return 0
  kill -TERM "$pid" 2>/dev/null || true
  while ((tries++ < stop_limit_secs * 10)) && kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  unset "pids[$1]"
}

# await WHAT SECONDS COMMAND...   tries it until it succeeds
await() {
  local what=$1 deadline=$((SECONDS + $2))
  shift 2
  until "$@" >"$work/await" 2>&1; do
    if ((SECONDS >= deadline)); then
      fail "$what" "not within the time: $*" "$work/await"
      return 1
    fi
    sleep 0.2
  done
}

# What kubectl prints when something is wrong, also where its exit status is 0.
holds_an_error() {
  grep -qE '(^|[^[:alnum:]])([Ee]rror(:| from server)|Unhandled Error)' "$1"
}

# prints WHAT PATTERN... -- COMMAND...   the command ends with 0, without an error, and its output has every pattern
prints() {
  local what=$1 status=0 pattern
  local -a patterns=()
  shift
  while [[ $1 != -- ]]; do
    patterns+=("$1")
    shift
  done
  shift
  timeout "$command_limit_secs" "$@" >"$work/output" 2>&1 || status=$?
  if ((status != 0)); then
    fail "$what" "'$*' ended with status $status" "$work/output"
    return
  fi
  if holds_an_error "$work/output"; then
    fail "$what" "'$*' printed an error" "$work/output"
    return
  fi
  for pattern in ${patterns[@]+"${patterns[@]}"}; do
    if ! grep -qE -- "$pattern" "$work/output"; then
      fail "$what" "'$*' printed nothing like: $pattern" "$work/output"
      return
    fi
  done
  pass "$what"
}

# refuses WHAT PATTERN COMMAND...   the command fails and says why
refuses() {
  local what=$1 pattern=$2 status=0
  shift 2
  timeout "$command_limit_secs" "$@" >"$work/output" 2>&1 || status=$?
  if ((status == 0 || status == 124)); then
    fail "$what" "'$*' ended with status $status" "$work/output"
  elif ! grep -qE -- "$pattern" "$work/output"; then
    fail "$what" "'$*' printed nothing like: $pattern" "$work/output"
  else
    pass "$what"
  fi
}

# --- the programs ------------------------------------------------------------------------------------------------------

# find_tool NAME   sets the variable NAME (with _ for -) to the program's path
find_tool() {
  local status=0 path
  path=$("$root/tests/real/tools.sh" "$1") || status=$?
  if ((status == 3)) && ! in_ci; then
    echo "tests against real parts were SKIPPED because Go is missing: $1 is built with it"
    exit 0
  fi
  if ((status != 0)); then
    fail "$1 is there" "tests/real/tools.sh $1 ended with status $status; its reason is above"
    finish
  fi
  printf -v "${1//-/_}" %s "$path"
  echo "$1: $path"
}

find_portico() {
  if [[ ! -x $portico ]]; then
    fail "portico is there" "no program at $portico: run 'cargo build --release' first, or set PORTICO"
    finish
  fi
  portico=$(realpath "$portico")
  echo "portico: $portico"
}

# --- portico before the backend of streams/ ----------------------------------------------------------------------------

# Sets `certs`, the folder with everybody's certificates.
start_backend() {
  certs=$work/certs
  # shellcheck disable=SC2154 # find_tool sets it
  "$streams" certs "$certs"
  "$streams" serve "$certs" "$work/backend.port" </dev/null >"$work/backend.stderr" 2>&1 &
  pids[backend]=$!
  await "the backend starts" "$start_limit_secs" test -s "$work/backend.port" || finish
  mkdir -p "$work/manifests"
  manifests "$(<"$work/backend.port")" >"$work/manifests/streams.yaml"
  echo "$token,browser,u-browser,\"system:masters\"" >"$work/tokens.csv"
}

# start_portico [FLAG...]   sets `server`, its URL, and waits for the backend of streams/
start_portico() {
  launch_portico "$@"
  await "portico serves the backend's API" "$start_limit_secs" ask -f "$server$api_path/namespaces/default/pods/echo" || finish
}

# launch_portico [FLAG...]   with the manifests in $manifests (default: $work/manifests); sets `server`, its URL
launch_portico() {
  # Port 0 takes a free one, which the log says; an earlier one's log must not.
  : >"$work/portico.stderr"
  "$portico" run --bind-address 127.0.0.1 --secure-port 0 --cert-dir "$work/made" \
    --tls-cert-file "$certs/portico.crt" --tls-private-key-file "$certs/portico.key" --client-ca-file "$certs/client-ca.crt" \
    --proxy-client-cert-file "$certs/front-proxy.crt" --proxy-client-key-file "$certs/front-proxy.key" \
    --token-auth-file "$work/tokens.csv" --manifests "${manifests:-$work/manifests}" "$@" </dev/null >"$work/portico.stderr" 2>&1 &
  pids[portico]=$!
  await "portico starts" "$start_limit_secs" says_its_port || finish
  if ! is_running portico; then
    fail "portico starts" "it ended before it served" "$work/portico.stderr"
    finish
  fi
  server=https://127.0.0.1:$(portico_port)
}

# From the line that says where it serves; without colours.
portico_port() {
  sed -nE 's/\x1b\[[0-9;]*m//g; /serving.*127\.0\.0\.1:[1-9]/ { s/.*127\.0\.0\.1:([0-9]+).*/\1/p; q }' "$work/portico.stderr"
}

# Or has ended, for then it never will.
says_its_port() {
  [[ -n $(portico_port) ]] || ! is_running portico
}

is_running() { kill -0 "${pids[$1]}" 2>/dev/null; }

# ask CURL-ARGUMENT...   as the admin
ask() {
  curl --silent --show-error --max-time 20 --noproxy '*' --cacert "$certs/serving-ca.crt" --cert "$certs/admin.crt" --key "$certs/admin.key" "$@"
}

manifests() {
  local name
  for name in v1.$api_group v1.; do
    cat <<MANIFEST
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata:
  name: $name
spec:
  group: "${name#v1.}"
  version: v1
  groupPriorityMinimum: 1000
  versionPriority: 15
  service:
    namespace: default
    name: streams
    port: 443
  caBundle: $(base64 <"$certs/serving-ca.crt" | tr -d '\n')
---
MANIFEST
  done
  cat <<MANIFEST
apiVersion: v1
kind: Service
metadata:
  namespace: default
  name: streams
spec:
  ports:
    - port: 443
      targetPort: $1
      protocol: TCP
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: default
  name: streams-1
  labels:
    kubernetes.io/service-name: streams
addressType: IPv4
ports:
  - port: $1
    protocol: TCP
endpoints:
  - addresses: ["127.0.0.1"]
    conditions:
      ready: true
MANIFEST
}

write_kubeconfig() {
  cat <<KUBECONFIG
apiVersion: v1
kind: Config
clusters:
  - name: portico
    cluster: {server: "$server", certificate-authority: "$certs/serving-ca.crt"}
users:
  - name: admin
    user: {client-certificate: "$certs/admin.crt", client-key: "$certs/admin.key"}
contexts:
  - name: portico
    context: {cluster: portico, user: admin, namespace: default}
current-context: portico
KUBECONFIG
}

# --- memory ------------------------------------------------------------------------------------------------------------

# Resident KiB of portico: now, and the most there ever was since the last `forget_the_most`.
resident_kib() { awk '$1 == "VmRSS:" { print $2 }' "/proc/${pids[portico]}/status"; }
most_resident_kib() { awk '$1 == "VmHWM:" { print $2 }' "/proc/${pids[portico]}/status"; }
forget_the_most() { echo 5 >"/proc/${pids[portico]}/clear_refs"; }

# grew_within WHAT FROM-KIB TO-KIB LIMIT-KIB
grew_within() {
  local what="$1: $2 to $3 KiB, at most $4 more"
  if (($3 - $2 <= $4)); then pass "$what"; else fail "$what" "it grew by $(($3 - $2)) KiB"; fi
}

# --- clients that wait -------------------------------------------------------------------------------------------------

# hold NAME COMMAND...   in the background; `release NAME` sends it the line it waits for. Output in $work/NAME.out.
hold() {
  local name=$1
  shift
  rm -f "$work/$name.in"
  mkfifo "$work/$name.in"
  timeout --kill-after=5 300 "$@" <"$work/$name.in" >"$work/$name.out" 2>&1 &
  pids[$name]=$!
  exec 7>"$work/$name.in"
}

# is_open NAME   it has said so; ends the wait early when it has ended
is_open() {
  grep -q '^OPEN' "$work/$1.out" || ! is_running "$1"
}

# release NAME   and wait for its end, whose status this is
release() {
  local status=0
  { echo go >&7; } 2>/dev/null || true
  exec 7>&-
  wait "${pids[$1]}" || status=$?
  unset "pids[$1]"
  return "$status"
}
