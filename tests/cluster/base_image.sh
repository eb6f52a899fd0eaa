#!/usr/bin/env bash
# A stand-in for python:3.11-slim-bookworm where no container registry is reached: Debian bookworm with its own Python 3.11, from
# Debian's package archive. `make images` takes it as BASE_IMAGE; an image of this tag that is there already is kept.
#
#   tests/cluster/base_image.sh [TAG]        # default fedhelp-base:bookworm; prints the tag; needs root and Debian's debootstrap
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
tag=${1:-fedhelp-base:bookworm}
packages=python3.11,python3.11-venv,python3-distutils,ca-certificates,tzdata  # debootstrap finds no virtual packages: distutils by name

fail() { echo "base_image.sh: error: $1" >&2; exit 1; }

"$here/docker.sh" >/dev/null
if docker image inspect "$tag" >/dev/null 2>&1; then
  echo "$tag"
  exit 0
fi
[ "$(id -u)" = 0 ] || fail "making a base image needs root (debootstrap); where a registry is reached, use BASE_IMAGE=python:3.11-slim-bookworm"
if ! command -v debootstrap >/dev/null; then
  echo "base_image.sh: installing debootstrap (Debian)" >&2
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap; } >&2 ||
    fail "debootstrap could not be installed"
fi
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root
echo "base_image.sh: making $tag (a minute)" >&2
debootstrap --variant=minbase --include="$packages" bookworm "$root" >"$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; fail "debootstrap failed"; }
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale,info}/* "$root"/var/log/*
ln -sf python3.11 "$root/usr/bin/python3"  # as in the official image: `python3` and `python` are 3.11
ln -sf python3.11 "$root/usr/bin/python"
tar -C "$root" --one-file-system --numeric-owner -c . | docker import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8' \
  --change 'CMD ["python3"]' - "$tag" >/dev/null
echo "$tag"
