#!/bin/sh
# Install from Debian what the tiers of the test suite need beside Python: iproute2 for the network namespaces.
set -eu
PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export PATH

packages=""
command -v ip >/dev/null 2>&1 || packages="$packages iproute2"
[ -n "$packages" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    echo "Needed for every tier of the tests; run: sudo apt-get install -y$packages" >&2
    exit 1
fi
echo "Installing$packages ..."
# shellcheck disable=SC2086  # several packages are several words
said=$({ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages; } 2>&1) || {
    echo "$said" >&2
    exit 1
}
