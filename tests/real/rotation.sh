# shellcheck shell=bash
# Every authority and every certificate is replaced while somebody reads and watches through portico, and nobody notices: first is
# the new one believed beside the old, then it is used, then the old one is believed no more. tests/real/front sources it after
# outage.sh and has everything up; portico takes nothing new but files here, and is not started again.
#
# kube-apiserver follows its files, and keeps the clients' and front proxies' authorities that it had in the ConfigMap until they
# expire; sample-apiserver reads the authority of kube-apiserver only when it starts, and so has both from the start.

# The second of everything, and the folder from which portico has its files.
new=$work/new
rotating=$work/rotating

# put FROM TO NAME...   puts these files in the place of what is there
put() {
  local from=$1 to=$2 name
  shift 2
  for name in "$@"; do
    cp "$from/$name" "$to/$name.new"
    mv "$to/$name.new" "$to/$name"
  done
}

# put_both NAME.crt TO   the old authority with the new one
put_both() {
  cat "$work/old/$1" "$new/$1" >"$2.new"
  mv "$2.new" "$2"
}

# code_of URL CURL-ARGUMENT...   000 when there is no answer
code_of() { curl --silent --max-time 10 --noproxy '*' --output "$work/answer" --write-out '%{http_code}' "${@:2}" "$1" || true; }

# as_by FOLDER NAME   whose certificate is shown
as_by() { echo --cert "$1/$2.crt" --key "$1/$2.key"; }

# is CODE COMMAND...   what the command prints
# shellcheck disable=SC2317,SC2329 # await calls it
is() { [[ $("${@:2}") == "$1" ]]; }

# believed WHAT CODE COMMAND...   it comes to print that
believed() {
  if await "$1" "$reload_limit_secs" is "${@:2}"; then pass "$1"; fi
}

# serves URL FOLDER   with a certificate of that folder's authority; 000 when with another's
serves() { code_of "$1" --cacert "$2/serving-ca.crt" --resolve "wardle.default.svc:$sample_port:127.0.0.1"; }

# as_proxy URL FOLDER   as the admin, by the word of the folder's front proxy
as_proxy() {
  # shellcheck disable=SC2046 # the words of a certificate
  code_of "$1$flunders" --insecure $(as_by "$2" front-proxy) --header 'X-Remote-User: admin' --header 'X-Remote-Group: system:masters'
}

# as_portico FOLDER   kube-apiserver's answer to portico's own certificate of that folder: it may not list namespaces
as_portico() {
  # shellcheck disable=SC2046
  code_of "$upstream/api/v1/namespaces" --insecure $(as_by "$1" core-client)
}

# upgrading   what only a new connection to kube-apiserver can answer, which an upgrade has for itself: 400, since the pod is on
# no machine
upgrading() {
  # shellcheck disable=SC2046
  code_of "$server/api/v1/namespaces/default/pods/nowhere/exec?command=true" --insecure --http1.1 $(as_by "$work/old" admin) --header 'Connection: Upgrade' \
    --header 'Upgrade: websocket' --header 'Sec-WebSocket-Version: 13' --header 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==' --header 'Sec-WebSocket-Protocol: v5.channel.k8s.io'
}

# Nobody serves it: an APIService that comes after others have changed, by which portico is seen to know of them.
mark() {
  k create -f - <<'MANIFEST'
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.mark.example.com}
spec: {group: mark.example.com, version: v1, groupPriorityMinimum: 1000, versionPriority: 15, insecureSkipTLSVerify: true, service: {namespace: default, name: mark}}
MANIFEST
}

# shellcheck disable=SC2317,SC2329 # await calls it
knows_mark() {
  ask --fail "$server/metrics" >"$work/metrics" && grep -q '^aggregator_unavailable_apiservice{name="v1.mark.example.com"}' "$work/metrics"
}

everything_is_rotated() {
  local wardle
  it=rotated
  wardle=https://wardle.default.svc:$sample_port/livez
  stop portico
  cp -r "$certs" "$work/old"
  cp -r "$certs" "$rotating"
  # Clients believe both from here on.
  put_both serving-ca.crt "$certs/serving-ca.crt"
  certs=$rotating launch_in_front --proxy-client-cert-file "$rotating/front-proxy.crt" --proxy-client-key-file "$rotating/front-proxy.key"
  await "portico knows wardle.example.com" "$start_limit_secs" knows_wardle || return 0
  await "flunders are served" "$verdict_limit_secs" answers_with 200 || return 0
  loaded
  serving_pair_is_rotated
  front_proxy_is_rotated
  backend_is_rotated "$wardle"
  identity_is_rotated
  core_authority_is_rotated
  nobody_noticed
  the_old_are_refused
}

loaded() {
  admin=$work/rotated-admin.kubeconfig
  kubeconfig_of admin "$server" >"$admin"
  "$kubectl" --kubeconfig "$admin" apply -f "$work/flunder.yaml" >"$work/output" 2>&1 || fail "a flunder is there" "it is not" "$work/output"
  start_watch flunders front
  await "a flunder is watched" "$change_limit_secs" is_watched || true
  : >"$work/reads"
  : >"$work/core-reads"
  read_on "$flunders" reads &
  pids[reader]=$!
  read_on /api/v1/namespaces/default/configmaps core-reads &
  pids[core-reader]=$!
}

serving_pair_is_rotated() {
  put "$new" "$rotating" portico.crt portico.key
  believed "portico shows its new serving certificate" 200 serves "$server/livez" "$new"
  believed "and the old one no more" 000 serves "$server/livez" "$work/old"
}

front_proxy_is_rotated() {
  put_both front-proxy-ca.crt "$certs/front-proxy-ca.crt"
  believed "kube-apiserver believes the new front proxies, too" 200 as_proxy "$upstream" "$new"
  believed "sample-apiserver does" 200 as_proxy "https://localhost:$sample_port" "$new"
  put "$new" "$certs" front-proxy.crt front-proxy.key
  reads_again front-proxy.crt put "$new" "$rotating" front-proxy.crt front-proxy.key
  put "$new" "$certs" front-proxy-ca.crt
  believed "kube-apiserver believes the old front proxies no more" 401 as_proxy "$upstream" "$work/old"
  believed "portico is believed to be a front proxy by its new certificate" 200 code somebody /api/v1/namespaces/default/configmaps
}

# backend_is_rotated URL
backend_is_rotated() {
  set_bundle "$certs/serving-ca.crt" >"$work/output"
  mark >"$work/output"
  await "portico knows both authorities" "$change_limit_secs" knows_mark || true
  put "$new" "$certs" fleet.crt fleet.key
  believed "sample-apiserver shows its new serving certificate" 200 serves "$1" "$new"
  set_bundle "$new/serving-ca.crt" >"$work/output"
  believed "flunders are served by who shows it" 200 code somebody "$flunders"
}

identity_is_rotated() {
  cat "$work/clients.crt" "$new/client-ca.crt" >"$work/clients.new"
  mv "$work/clients.new" "$work/clients.crt"
  believed "kube-apiserver knows portico by its new certificate" 403 as_portico "$new"
  reads_again core-client.crt put "$new" "$rotating" core-client.crt core-client.key
  certs=$new kubeconfig_of admin "$upstream" >"$work/admin.kubeconfig"
  sed -i "s|$new/serving-ca.crt|$certs/serving-ca.crt|" "$work/admin.kubeconfig"
  put "$new" "$work" client-ca.crt
  mv "$work/client-ca.crt" "$work/clients.crt"
  believed "kube-apiserver knows the old one no more" 401 as_portico "$work/old"
  # Nobody has asked before whether somebody may.
  believed "portico's reviews go on by the new one" 404 code somebody "$flunders/of-the-new"
}

core_authority_is_rotated() {
  reads_again serving-ca.crt put_both serving-ca.crt "$rotating/serving-ca.crt"
  put "$new" "$certs" portico.crt portico.key
  believed "kube-apiserver shows its new serving certificate" 200 serves "$upstream/livez" "$new"
  reads_again serving-ca.crt put "$new" "$rotating" serving-ca.crt
  believed "portico believes who shows it" 400 upgrading
}

nobody_noticed() {
  local what="a watch goes on through all that" reads reader lines
  lines=$(wc -l <"$work/watched")
  "$kubectl" --kubeconfig "$admin" label flunder front rotated=yes --overwrite >"$work/output" 2>&1 || true
  if is_running watch && await "$what" "$change_limit_secs" has_lines $((lines + 1)); then pass "$what"; else fail "$what" "it ended" "$work/watched"; fi
  stop watch
  for reader in reader core-reader; do
    reads=$work/${reader/reader/reads}
    await "reads go on" "$change_limit_secs" has_more_reads "$reads" || true
    stop "$reader"
    what="no read fails"
    if [[ $(sort -u "$reads") == 200 ]]; then pass "$what: $(wc -l <"$reads") ${reader/reader/reads}"; else
      sort "$reads" | uniq -c >"$work/output"
      fail "$what" "they end with" "$work/output"
    fi
  done
}

# with_a_line FROM TO   the same authorities for whom no connection was made yet and no TLS session is remembered: those count on
# when an authority comes back
with_a_line() {
  cat "$1" <(echo) >"$2.new"
  mv "$2.new" "$2"
}

# Nobody is to be served by who shows one of the old, hence without anybody who reads.
the_old_are_refused() {
  breaks_and_heals "its caBundle is the old one" old_bundle_is_set new_bundle_is_set
  put "$work/old" "$certs" portico.crt portico.key
  believed "a kube-apiserver that shows the old certificate" 200 serves "$upstream/livez" "$work/old"
  reads_again serving-ca.crt with_a_line "$new/serving-ca.crt" "$rotating/serving-ca.crt"
  believed "is not believed" 503 upgrading
  says_why || fail "and the answer says why" "it does not" "$work/answer"
  put "$new" "$certs" portico.crt portico.key
  believed "and one that shows the new one is" 400 upgrading
}

# shellcheck disable=SC2317,SC2329 # breaks_and_heals calls them
old_bundle_is_set() { with_a_line "$work/old/serving-ca.crt" "$work/old-bundle.crt" && set_bundle "$work/old-bundle.crt"; }
# shellcheck disable=SC2317,SC2329
new_bundle_is_set() { set_bundle "$new/serving-ca.crt"; }

# reads_again NAME COMMAND...   after the command portico says that it has read a file of $rotating again
reads_again() {
  local what="portico reads $1 again" name=$1 before
  before=$(times_read "$name")
  "${@:2}"
  await "$what" "$change_limit_secs" is_read_after "$before" "$name" || true
}

times_read() { grep -c "files read again.*$rotating/$1" "$work/portico.stderr" || true; }

# shellcheck disable=SC2317,SC2329 # await calls it
is_read_after() { (($(times_read "$2") > $1)); }

# shellcheck disable=SC2317,SC2329 # await calls it
has_more_reads() {
  local before
  before=$(wc -l <"$1")
  sleep 0.5
  (($(wc -l <"$1") > before))
}
