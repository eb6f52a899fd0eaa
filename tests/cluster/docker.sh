#!/usr/bin/env bash
# A Docker engine that answers: the one that runs already, else, as root, one started here. Called by `make images`, base_image.sh
# and the tests that need images. On Debian, as root, what is missing is installed first: that is a CI machine, not somebody's desk.
#
#   tests/cluster/docker.sh        # prints the engine's version, or one sentence on what to do, and ends with 1
set -euo pipefail

fail() { echo "docker.sh: error: $1" >&2; exit 1; }

answers() { docker version --format '{{.Server.Version}}' 2>/dev/null; }

answers && exit 0
[ "$(id -u)" = 0 ] || fail "no Docker engine answers; start it (systemctl start docker), or set DOCKER_HOST to one that you may use"
if ! command -v dockerd >/dev/null; then
  command -v apt-get >/dev/null || fail "no Docker engine is installed; install Docker 20.10 or newer"
  echo "docker.sh: installing docker.io (Debian)" >&2
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io iptables; } >&2 ||
    fail "docker.io could not be installed; install Docker 20.10 or newer by hand"
fi
log=${TMPDIR:-/tmp}/fedhelp-dockerd.log
setsid nohup dockerd >"$log" 2>&1 </dev/null &
for _ in $(seq 150); do
  answers && exit 0
  sleep 0.2
done
fail "dockerd was started but does not answer after 30 s; its log is $log"
