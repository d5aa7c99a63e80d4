# shellcheck shell=bash
# What becomes of requests through portico when something behind it breaks: a Service, an extension API server, its authority, or
# kube-apiserver itself. tests/real/front sources it after wardle.sh, and has everything up; `somebody` may use flunders.

# How long the extension server is used while kube-apiserver is gone, in seconds.
outage_secs=${PORTICO_OUTAGE_SECS:-10}
# How soon a change has to be seen, in seconds: what probes find out takes up to three of their rounds.
verdict_limit_secs=60
# kube-apiserver and its like look at a file once a minute where they cannot watch it.
reload_limit_secs=90
# How soon an extension API server has heard of a change of the ConfigMap after an outage: client-go pauses up to a minute after it
# failed to list for as long, and takes as long again at random.
heard_limit_secs=150
flunders=/apis/wardle.example.com/v1alpha1/namespaces/default/flunders
# shellcheck disable=SC2154 # parts.sh sets it
scripted_pod=$api_path/namespaces/default/pods/echo

# code WHO PATH   the status of an answer of portico, whose body is in $work/answer; 000 when there is none
code() {
  curl --silent --max-time 10 --noproxy '*' --cacert "$certs/serving-ca.crt" --cert "$certs/$1.crt" --key "$certs/$1.key" \
    --output "$work/answer" --write-out '%{http_code}' "$server$2" || true
}

# shellcheck disable=SC2317,SC2329 # await calls it
answers_with() { [[ $(code somebody "$flunders") == "$1" ]]; }

# says_why   the answer is a Status that names the cause
says_why() { grep -qE '"causes":\[\{("message":"[^"]*(\\"[^"]*)*",)?"reason":"[A-Za-z]+".*"kind":"Status".*"reason":"ServiceUnavailable"' "$work/answer"; }

# breaks_and_heals WHAT BREAK HEAL   each a function; 503 comes after the one, 200 after the other, and nothing else suffers
breaks_and_heals() {
  local what="when $1, its API alone is not served until that is mended"
  if ! "$2" >"$work/output" 2>&1; then
    fail "$what" "$2 failed" "$work/output"
    return
  fi
  await "$what" "$verdict_limit_secs" answers_with 503 || return 0
  says_why || fail "$what" "the answer does not say why" "$work/answer"
  [[ $(code admin /api/v1/namespaces/default) == 200 ]] || fail "$what" "kube-apiserver's own APIs suffer" "$work/answer"
  [[ $(code admin /apis) == 200 ]] || fail "$what" "discovery suffers" "$work/answer"
  if ! "$3" >"$work/output" 2>&1; then
    fail "$what" "$3 failed" "$work/output"
    return
  fi
  if await "$what" "$verdict_limit_secs" answers_with 200; then pass "$what"; fi
}

# shellcheck disable=SC2317,SC2329 # breaks_and_heals calls them
service_is_deleted() { k delete service wardle; }
# shellcheck disable=SC2317,SC2329
service_is_created() { sample_service | k create -f -; }
# shellcheck disable=SC2317,SC2329
server_is_killed() { kill_at_once sample-apiserver; }
# shellcheck disable=SC2317,SC2329
server_is_started() { start_again sample-apiserver "$sample_port" sample_is_ready run_sample; }
# shellcheck disable=SC2317,SC2329
authority_is_wrong() { set_authority client-ca; }
# shellcheck disable=SC2317,SC2329
authority_is_right() { set_authority serving-ca; }

# set_authority NAME   into both APIServices
set_authority() { set_bundle "$certs/$1.crt"; }

# set_bundle FILE   the same
set_bundle() {
  k patch apiservice v1alpha1.wardle.example.com v1beta1.wardle.example.com --type merge \
    -p "{\"spec\":{\"caBundle\":\"$(base64 <"$1" | tr -d '\n')\"}}"
}

# by_token   the status of the same read with a ServiceAccount's token
by_token() {
  curl --silent --max-time 10 --noproxy '*' --cacert "$certs/serving-ca.crt" --header "Authorization: Bearer $sample_token" \
    --output "$work/answer" --write-out '%{http_code}' "$server$flunders" || true
}

# start_scripted   the extension API server of streams/, which asks kube-apiserver nothing
start_scripted() {
  # shellcheck disable=SC2154 # find_tool sets it
  "$streams" serve "$certs" "$work/scripted.port" </dev/null >"$work/scripted.stderr" 2>&1 &
  pids[scripted]=$!
  await "the scripted extension API server starts" "$start_limit_secs" test -s "$work/scripted.port" || finish
  # shellcheck disable=SC2154 # parts.sh sets it
  k create -f - >"$work/output" <<MANIFEST || finish
apiVersion: v1
kind: Service
metadata: {namespace: default, name: streams}
spec: {type: ExternalName, externalName: localhost, ports: [{port: $(<"$work/scripted.port")}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.$api_group}
spec:
  group: $api_group
  version: v1
  groupPriorityMinimum: 1000
  versionPriority: 15
  service: {namespace: default, name: streams, port: $(<"$work/scripted.port")}
  caBundle: $(base64 <"$certs/serving-ca.crt" | tr -d '\n')
MANIFEST
  await "the scripted extension API server is routed to" "$start_limit_secs" knows_scripted || finish
}

# From the watch of the APIServices: it would otherwise be kube-apiserver that serves it, or nobody.
# shellcheck disable=SC2317,SC2329 # await calls it
knows_scripted() { ask --fail "$server/metrics" >"$work/metrics" && grep -qF "aggregator_unavailable_apiservice{name=\"v1.$api_group\"} 0" "$work/metrics"; }

# all_answers   the statuses of the reads that are to go on while kube-apiserver is gone
all_answers() { echo "$(code somebody "$flunders") $(by_token) $(code somebody "$scripted_pod")"; }

# Everybody who was known reads on, a watch that was open stays open, and who asks kube-apiserver for something hears at once.
core_is_killed() {
  local what="while kube-apiserver is gone for $outage_secs s, extension API servers are reached" reads=0 answered deadline
  "$kubectl" --kubeconfig "$somebody" create -f "$work/flunder.yaml" >"$work/output" 2>&1
  start_watch flunders front
  # Who may watch is asked of kube-apiserver when the watch comes, after the list of which there is a line.
  await "a flunder is watched" "$change_limit_secs" is_watched || return 0
  [[ $(all_answers) == "200 200 200" ]] || fail "$what" "not even before" "$work/answer"
  kill_at_once kube-apiserver
  deadline=$((SECONDS + outage_secs))
  while ((SECONDS < deadline)); do
    answered=$(all_answers)
    if [[ $answered != "200 200 200" ]]; then
      fail "$what" "after $((SECONDS + outage_secs - deadline)) s the answers are $answered" "$work/answer"
      break
    fi
    reads=$((reads + 1))
  done
  [[ $answered != "200 200 200" ]] || pass "$what: $reads times flunders by certificate and by token, and a scripted one"
  answered=$(code admin /api/v1/namespaces/default)
  if [[ $answered == 503 ]] && says_why; then pass "what only kube-apiserver knows is 503, with the cause"; else
    fail "what only kube-apiserver knows is 503, with the cause" "it is $answered" "$work/answer"
  fi
  ask --fail --output /dev/null --request PATCH --header 'Content-Type: application/merge-patch+json' --data '{"metadata":{"labels":{"more":"yes"}}}' "$server$flunders/front" ||
    fail "a flunder is changed meanwhile" "it is not"
  if await "a watch goes on meanwhile" "$change_limit_secs" has_lines 2; then pass "a watch goes on meanwhile"; fi
  stop watch
}

# shellcheck disable=SC2317,SC2329 # await calls it
is_watched() {
  has_lines 1 && ask --fail "$server/metrics" >"$work/metrics" &&
    grep -qE '^apiserver_longrunning_requests\{.*group="wardle\.example\.com".*\} [1-9]' "$work/metrics"
}

# From what it kept in its data directory; somebody's rights are kube-apiserver's to say, an admin's are not.
portico_starts_without_core() {
  local what="portico starts while kube-apiserver is gone, and serves flunders"
  stop portico
  launch_in_front "${front_proxy[@]}"
  if await "$what" "$start_limit_secs" admin_reads_flunders; then pass "$what"; fi
}

# shellcheck disable=SC2317,SC2329 # await calls it
admin_reads_flunders() { [[ $(code admin "$flunders") == 200 ]]; }

core_is_started() {
  local what="when kube-apiserver is back, everything is"
  start_again kube-apiserver "$upstream_port" kube_apiserver_is_ready run_kube_apiserver
  if await "$what" "$verdict_limit_secs" everything_is_back; then pass "$what"; fi
}

# shellcheck disable=SC2317,SC2329 # await calls it
everything_is_back() {
  [[ "$(code somebody "$flunders") $(by_token) $(code admin /api/v1/namespaces/default) $(code admin /readyz)" == "200 200 200 200" ]]
}

# Whom kube-apiserver comes to believe about clients, portico does too, from the ConfigMap that kube-apiserver keeps. (None is ever
# taken out there before it expires.) Somebody reads all the while.
authority_is_added() {
  local what="a client authority that kube-apiserver is given is believed"
  await "$what" "$change_limit_secs" stranger_is 401 || return 0
  : >"$work/reads"
  read_on "$flunders" reads &
  pids[reader]=$!
  await "somebody reads" "$change_limit_secs" has_reads 20 || return 0
  set_client_authorities client-ca own-proxy-ca
  # A user who may do nothing, but a user.
  if await "$what" "$reload_limit_secs" stranger_is 403; then pass "$what"; fi
  await "somebody reads on" "$change_limit_secs" has_reads $(($(wc -l <"$work/reads") + 20)) || true
  stop reader
  what="nobody else notices that"
  if [[ $(sort -u "$work/reads") == 200 ]]; then pass "$what: $(wc -l <"$work/reads") reads"; else
    sort "$work/reads" | uniq -c >"$work/output"
    fail "$what" "reads end with" "$work/output"
  fi
}

# set_client_authorities NAME...   are those of kube-apiserver, which follows the file
set_client_authorities() {
  local name
  for name in "$@"; do cat "$certs/$name.crt"; done >"$work/clients.new"
  mv "$work/clients.new" "$work/clients.crt"
}

# shellcheck disable=SC2317,SC2329 # await calls it
stranger_is() { [[ $(code own-proxy "$flunders") == "$1" ]]; }

# shellcheck disable=SC2317,SC2329 # await calls it
has_reads() { (($(wc -l <"$work/reads") >= $1)); }

# read_on PATH FILE   for ever, as somebody; the codes go to that file of $work
read_on() {
  while true; do
    curl --silent --max-time 10 --noproxy '*' --cacert "$certs/serving-ca.crt" --cert "$certs/somebody.crt" --key "$certs/somebody.key" \
      --output /dev/null --write-out '%{http_code}\n' "$server$1" >>"$work/$2" || true
  done
}
