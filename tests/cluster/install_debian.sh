#!/usr/bin/env bash
# Installs what a grade 2 cluster (tests/cluster/node.py) needs from Debian: a container runtime, its network plugins, a DNS server.
# Run again, it does nothing. The node starts a containerd of its own, in a folder of its own, beside any other.
#
#   tests/cluster/install_debian.sh        # as root, on Debian 12 or newer
set -euo pipefail

declare -A provides=(
  [containerd]=/usr/bin/containerd [runc]=/usr/sbin/runc [containernetworking-plugins]=/usr/lib/cni/bridge
  [dnsmasq-base]=/usr/sbin/dnsmasq [iptables]=/usr/sbin/iptables [iproute2]=/usr/sbin/ip
  [ipset]=/usr/sbin/ipset
)
missing=()
for package in "${!provides[@]}"; do
  [ -x "${provides[$package]}" ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
[ "$(id -u)" = 0 ] || { echo "install_debian.sh: error: needs root to install ${missing[*]}" >&2; exit 1; }
command -v apt-get >/dev/null || { echo "install_debian.sh: error: no apt-get here; install by hand: ${missing[*]}" >&2; exit 1; }
echo "install_debian.sh: installing ${missing[*]} (Debian)" >&2
apt-get update -qq >&2
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
