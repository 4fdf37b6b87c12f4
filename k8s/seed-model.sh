#!/bin/sh
# Copies the bundled model to the volume in $1, unless the volume has a version of it: seed-model VOLUME
# Several pods may run this at once. Each copies to a temporary folder, because the model server
# polls the volume. The first rename succeeds.
set -eu
folder=$1/apple
for version in "$folder"/[0-9]*; do
  if [ -d "$version" ]; then
    echo "Version ${version##*/} exists already; nothing is copied."
    exit 0
  fi
done
mkdir -p "$folder"
aside=$(mktemp -d "$folder/.seed-XXXXXX")
trap 'rm -rf "$aside"' EXIT
for version in /models/apple/[0-9]*; do
  name=${version##*/}
  cp -r "$version" "$aside/"
  mv -T "$aside/$name" "$folder/$name" || [ -d "$folder/$name" ]
  echo "Version $name exists."
done
