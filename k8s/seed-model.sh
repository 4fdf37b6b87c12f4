#!/bin/sh
# Gives the model that ships to the volume in $1, unless that holds a version of it: seed-model VOLUME
# Several pods may do so at once. Each copies aside, as the model server polls, and the first rename wins.
set -eu
folder=$1/apple
for version in "$folder"/[0-9]*; do
  if [ -d "$version" ]; then
    echo "There is ${version##*/} already."
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
  echo "Version $name is there."
done
