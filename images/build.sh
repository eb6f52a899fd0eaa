#!/usr/bin/env bash
# Build the images and print their sizes. Called by `make images`.
#
#   images/build.sh [hub] [silo]
#
# From the environment:
#   BASE_IMAGE            default python:3.11-slim-bookworm
#   IMAGE_REPOSITORY      default fedhelp: the images are called fedhelp/hub and fedhelp/silo
#   VERSION               the tag; default: the product's version
#   CUDA                  no: the silo image with PyTorch's CPU build (its tag ends in -cpu), for machines without a GPU
#   TORCH_INDEX           for CUDA=no: the address of PyTorch's index of CPU builds, or of a mirror
#   DOCKER_BUILD_OPTIONS  more options of `docker build`, such as --network=host where a proxy listens on this machine
# The build uses this machine's own package index settings (PIP_*, UV_* and proxy variables, pip's config) and CA certificates. They
# are handed over as build secrets and stay out of the images.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
fail() { echo "build.sh: error: $1" >&2; exit 1; }

version=${VERSION:-$(sed -n 's/^VERSION = "\(.*\)"$/\1/p' components/images.py)}
repository=${IMAGE_REPOSITORY:-fedhelp}
base=${BASE_IMAGE:-python:3.11-slim-bookworm}
[ $# -gt 0 ] || set -- hub silo
[ "${CUDA:-yes}" = yes ] || [[ " $* " != *" silo "* ]] || [ -n "${TORCH_INDEX:-}" ] ||
  fail "CUDA=no takes PyTorch's CPU build from its own index; give that index' address as TORCH_INDEX (images/README.md)"

# A client that speaks BuildKit: with the buildx plugin, or one older than 23, which has it built in.
docker=
for client in docker /usr/bin/docker; do
  command -v "$client" >/dev/null || continue
  major=$("$client" version --format '{{.Client.Version}}' 2>/dev/null | cut -d. -f1) || true
  if "$client" buildx version >/dev/null 2>&1 || [ "${major:-99}" -lt 23 ]; then docker=$client; break; fi
done
[ -n "$docker" ] || fail "no docker client with BuildKit found; install Docker 20.10 or newer with its buildx plugin"
"$docker" version --format '{{.Server.Version}}' >/dev/null 2>&1 || fail "no Docker engine answers; start it, or set DOCKER_HOST"

secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT
index_from_pip() { # pip's config file knows an index that uv has not been told of
  [ -n "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ] || "${PYTHON:-python3}" -m pip config get "$1" 2>/dev/null || true
}
{
  for name in TORCH_INDEX PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST UV_DEFAULT_INDEX UV_INDEX UV_INDEX_URL UV_EXTRA_INDEX_URL UV_INSECURE_HOST \
    HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
    [ -z "${!name:-}" ] || printf '%s=%q\n' "$name" "${!name}"
  done
  url=${PIP_INDEX_URL:-$(index_from_pip global.index-url)}
  [ -z "$url" ] || printf 'PIP_INDEX_URL=%q\nUV_DEFAULT_INDEX=%q\n' "$url" "${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$url}}"
} >"$secrets/index"
certificates=${SSL_CERT_FILE:-${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}}
if [ -r "$certificates" ]; then cp "$certificates" "$secrets/certificates"; else : >"$secrets/certificates"; fi

epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
revision=$(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown)
for name in "$@"; do
  tag=$repository/$name:$version
  [ "$name:${CUDA:-yes}" != silo:no ] || tag=$tag-cpu
  echo "building $tag on $base"
  DOCKER_BUILDKIT=1 "$docker" build --progress=plain --file images/Dockerfile --target "$name" --tag "$tag" \
    --secret "id=index,src=$secrets/index" --secret "id=certificates,src=$secrets/certificates" \
    --build-arg "BASE_IMAGE=$base" --build-arg "CUDA=${CUDA:-yes}" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
    --build-arg "CREATED=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)" ${DOCKER_BUILD_OPTIONS:-} .
  "$docker" image inspect "$tag" --format "$tag: {{.Size}} bytes" | awk '{printf "%s %.0f MB\n", $1, $2 / 1e6}'
done
