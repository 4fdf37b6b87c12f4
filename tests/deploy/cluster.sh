#!/usr/bin/env bash
# On a kind cluster, which it creates and deletes: deploy, request an image, render a few, roll out, roll back.
# Usage: tests/deploy/cluster.sh VERSION, with the images of that version in docker.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$1
in_ringo="kubectl -n ringo"

kind create cluster --name ringo --wait 120s
trap 'kind delete cluster --name ringo' EXIT
kind load docker-image --name ringo "ringo-serve:$version" "ringo-model:$version" "ringo-train:$version"
shipped=$(ls models/apple | sort -n | tail -1)
warnings=$(kubectl apply -k k8s/overlays/local 2>&1 >/dev/null | grep -i warning || true)
test -z "$warnings" || { echo "$warnings" >&2; exit 1; }
make deploy

$in_ringo port-forward service/gateway 18080:80 >/dev/null &
forward=$!
trap 'kill $forward; kind delete cluster --name ringo' EXIT
ask() { curl --fail --silent --show-error --retry 20 --retry-all-errors --retry-delay 1 "localhost:18080$1"; }
version_is() {
  for _ in $(seq 60); do ask /about | grep -q "\"version\": *$1[,}]" && return; sleep 1; done
  echo "Version $1 is not served after a minute." >&2
  return 1
}

version_is "$shipped"
ask '/generate?seed=42' >/dev/null

# One node can't mount a volume ReadWriteMany, and needn't.
kubectl kustomize k8s/jobs/paint | sed 's/ReadWriteMany/ReadWriteOnce/; s/0-9999/0-199/' | kubectl apply -f -
$in_ringo wait --for=condition=complete --timeout=5m job/paint

# The shipped version again, under the next number: a rollout without a training.
kubectl kustomize k8s/jobs/roll-back | sed "s/value: previous/value: \"$shipped\"/" | kubectl apply -f -
$in_ringo wait --for=condition=complete --timeout=5m job/roll-back
version_is $((shipped + 1))
ask "/generate?seed=42&version=$((shipped + 1))" >/dev/null

$in_ringo rollout restart deployment/model-server deployment/gateway deployment/batch
make deploy
