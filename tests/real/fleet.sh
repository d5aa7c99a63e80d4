# shellcheck shell=bash
# What the tests of merged discovery have in common: the fleet of extension API servers of discovery/, and portico before it.
# Each sources it first; it brings parts.sh.
# shellcheck source=tests/real/parts.sh
source "$(dirname "${BASH_SOURCE[0]}")/parts.sh"

# What kube-apiserver said of the fleet's discovery, and where portico may differ.
recorded=$root/tests/real/discovery/kube-apiserver.facts
differences=$root/tests/real/discovery/differences
facts_limit_secs=120

# Sets `certs` and `control`, the URL at which the fleet's servers change their ways.
start_fleet() {
  certs=$work/certs
  # shellcheck disable=SC2154 # find_tool sets it
  "$streams" certs "$certs"
  mkdir -p "$work"/fleet/{manifests,core} "$work/manifests"
  # shellcheck disable=SC2154 # find_tool sets it
  "$discovery" serve "$certs" "$work/fleet" </dev/null >"$work/fleet.stderr" 2>&1 &
  pids[fleet]=$!
  await "the fleet starts" "$start_limit_secs" test -s "$work/fleet/control" || finish
  control=$(<"$work/fleet/control")
  echo "$token,browser,u-browser,\"system:masters\"" >"$work/tokens.csv"
}

# becomes SERVER MODE   changes how a server of the fleet answers
becomes() {
  curl --silent --show-error --fail --max-time 5 --noproxy '*' --output /dev/null --request POST "$control/$1/$2" || fail "the fleet's $1 becomes $2" "its control refuses"
}

# Versions' own documents come after the aggregated ones; of a server whose aggregated one is broken, too.
await_own_documents() {
  await "portico has the versions' own documents" "$start_limit_secs" has_own_documents || finish
}

# shellcheck disable=SC2317,SC2329 # await calls it
has_own_documents() {
  local group
  for group in shop omitted held garbled; do
    ask --fail "$server/apis/$group.example.com/v1" 2>"$work/output" | grep -q storageVersionHash || return 1
  done
}

# facts NAME SERVER   into $work/NAME.facts
facts() {
  # shellcheck disable=SC2154 # find_tool sets it
  timeout "$facts_limit_secs" "$discovery" facts "$2" "$certs" >"$work/$1.facts" 2>"$work/output" || {
    fail "$1's discovery is asked for everything" "discovery facts failed" "$work/output"
    finish
  }
}

# compare WHAT FACTS FACTS ALLOWED
compare() {
  local status=0
  "$discovery" compare "$2" "$3" "$4" >"$work/compared" 2>&1 || status=$?
  if ((status == 0)); then
    pass "$1: $(tail -n 1 "$work/compared")"
  else
    fail "$1" "these differ, $2 first:"
    cat "$work/compared"
  fi
}
