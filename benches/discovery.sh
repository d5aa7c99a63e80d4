#!/usr/bin/env bash
# What merged discovery costs, beside the bounds that portico has to keep: 200 groups of 3 versions and 20
# resources each, served by simulated extension API servers of `portico bench discovery`.
#
# usage: benches/discovery.sh [--smoke] [PAIRS]    builds the release unless PORTICO names a binary
#
# PAIRS (9) alternated pairs of runs, without and with hung servers, are compared by their medians.
set -euo pipefail

cd "$(dirname "$0")/.."
servers=200 duration=3s pairs=9
if [[ ${1-} == --smoke ]]; then
    servers=5 duration=200ms pairs=1
    shift
fi
pairs=${1-$pairs}

portico=${PORTICO-}
if [[ -z $portico ]]; then
    cargo build --release --locked
    portico=$(cargo metadata --format-version 1 --no-deps | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/portico
fi

work=$(mktemp -d)
demo=
clean_up() {
    if [[ -n $demo ]]; then kill "$demo" 2>/dev/null || true; wait "$demo" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap clean_up EXIT

# The demo has certificates and a kubeconfig ready; its two toys count for little beside the fleet.
"$portico" demo --secure-port 0 --data-dir "$work/data" >"$work/demo.txt" 2>"$work/demo.log" &
demo=$!
for _ in $(seq 100); do
    [[ -s $work/data/admin.kubeconfig ]] && break
    sleep 0.1
done
[[ -s $work/data/admin.kubeconfig ]] || { echo "portico demo did not start:" >&2; cat "$work/demo.log" >&2; exit 1; }

bench() {
    "$portico" bench discovery --kubeconfig "$work/data/admin.kubeconfig" --pid "$demo" \
        --servers "$servers" --manifests "$work/data/manifests" --course 100ms --output json "$@"
}

bench --latency 100ms --duration "$duration" --reads aggregated,gzip,not-modified,legacy >"$work/costs.json"
hung_few=1 hung_many=$((servers / 10 > 1 ? servers / 10 : 1))
for pair in $(seq "$pairs"); do
    runs=(0 "$hung_few" "$hung_many")
    if ((pair % 2 == 0)); then runs=("$hung_many" "$hung_few" 0); fi
    for hung in "${runs[@]}"; do
        bench --hang "$hung" --fault-after 0s --duration "$duration" --reads gzip >"$work/hung-$hung-$pair.json"
    done
done
python3 benches/discovery.py "$work" "$pairs" "$hung_few" "$hung_many"
