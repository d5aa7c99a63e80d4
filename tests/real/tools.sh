#!/usr/bin/env bash
# tests/real/tools.sh TOOL...   prints the path of each tool's binary, building it when it is not in the cache.
#
# The tools are the real programs portico is tested with, built from their published Go modules, and `streams` and `discovery`,
# whose source is here. Each has a folder of its own (TOOL/go.mod pins it, TOOL/go.sum proves it), because the requirements of Kubernetes,
# etcd and others clash in one module. To add one: make its folder and a line in `describe`.
#
# KUBEBUILDER_ASSETS  a folder with ready-made binaries, which are preferred
# PORTICO_CACHE       where built binaries are kept (default ~/.cache/portico); keyed by version or sources, safe to delete
#
# Exit status: 0 built or found, 2 wrong usage, 3 Go is missing, else the failed build's.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${PORTICO_CACHE:-$HOME/.cache/portico}

say() { echo "tools.sh: $*" >&2; }

# Sets `module` (whose version is the tool's; none where the source is here), `package`, `version` and `ldflags` of the tool $1.
describe() {
  ldflags="-s -w"
  case $1 in
    kubectl) module=k8s.io/kubernetes package=k8s.io/kubernetes/cmd/kubectl ;;
    kube-apiserver) module=k8s.io/kubernetes package=k8s.io/kubernetes/cmd/kube-apiserver ;;
    etcd) module=go.etcd.io/etcd/server/v3 package=go.etcd.io/etcd/server/v3 ;;
    sample-apiserver) module=k8s.io/sample-apiserver package=k8s.io/sample-apiserver ;;
    h2spec-tool) module=github.com/summerwind/h2spec package=github.com/summerwind/h2spec/cmd/h2spec ;;
    streams | discovery) module='' package=. ;;
    *)
      say "unknown tool '$1' (known: kubectl, kube-apiserver, etcd, sample-apiserver, h2spec-tool, streams, discovery)"
      return 2
      ;;
  esac
  if [[ -z $module ]]; then
    version=$(cd "$here/$1" && sha256sum go.mod go.sum ./*.go | sha256sum | cut -c1-16)
    return
  fi
  # Read without `go`, so that a cached binary is found on a machine that has none.
  version=$(awk -v module="$module" '{ sub(/^require /, "") } $1 == module && $2 ~ /^v/ { print $2; exit }' "$here/$1/go.mod")
  [[ -n $version ]] || { say "$here/$1/go.mod names no version of $module"; return 2; }
  if [[ $module == k8s.io/kubernetes ]]; then
    # Without these the programs call themselves v0.0.0-master+$Format:%H$, which kubectl cannot parse.
    local parts variable=k8s.io/component-base/version
    IFS=. read -r -a parts <<<"${version#v}"
    ldflags+=" -X $variable.gitVersion=$version -X $variable.gitMajor=${parts[0]} -X $variable.gitMinor=${parts[1]}"
  fi
}

# Builds the tool $1 into $2: under a temporary name first, so that a binary in the cache is always a whole one.
build() {
  local tool=$1 target=$2 temporary status=0
  if ! command -v go >/dev/null; then
    say "Go is missing: $tool $version is built from its Go module (see tests/real/$tool/go.mod); install Go, or set KUBEBUILDER_ASSETS to a folder that holds $tool"
    return 3
  fi
  say "building $tool $version with $(go env GOVERSION); a few minutes the first time"
  mkdir -p "$(dirname "$target")"
  temporary=$(mktemp "$target.XXXXXX")
  (cd "$here/$tool" && GOWORK=off CGO_ENABLED=0 go build -mod=readonly -buildvcs=false -trimpath -ldflags "$ldflags" -o "$temporary" "$package") >&2 || status=$?
  if ((status != 0)); then
    rm -f "$temporary"
    say "building $tool $version failed"
    return "$status"
  fi
  chmod 755 "$temporary"
  mv "$temporary" "$target"
}

main() {
  (($# > 0)) || { say "usage: tests/real/tools.sh TOOL..."; return 2; }
  local tool target
  for tool in "$@"; do
    if [[ -n ${KUBEBUILDER_ASSETS:-} ]]; then
      if [[ -x $KUBEBUILDER_ASSETS/$tool ]]; then
        echo "$KUBEBUILDER_ASSETS/$tool"
        continue
      fi
      say "no $tool in KUBEBUILDER_ASSETS ($KUBEBUILDER_ASSETS); building it"
    fi
    describe "$tool" || return
    target=$cache/tools/$tool-$version/$tool
    [[ -x $target ]] || build "$tool" "$target" || return
    echo "$target"
  done
}

main "$@"
