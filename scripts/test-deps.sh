#!/bin/sh
# Install from Debian what the tiers of the test suite need beside Python: iproute2 for the network namespaces,
# PostgreSQL's programs for the tests on it, which start a server of their own.
set -eu
PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export PATH

packages=""
command -v ip >/dev/null 2>&1 || packages="$packages iproute2"
set -- /usr/lib/postgresql/*/bin/initdb
[ -x "$1" ] || command -v initdb >/dev/null 2>&1 || packages="$packages postgresql"
[ -n "$packages" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
    echo "Needed for every tier of the tests; run: sudo apt-get install -y$packages" >&2
    exit 1
fi

install() {
    said=$({ DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } 2>&1) || {
        echo "$said" >&2
        exit 1
    }
}

echo "Installing$packages ..."
apt-get update -qq
settings=/etc/postgresql-common/createcluster.conf
case "$packages" in
*postgresql*)
    # The package would start a server that stays, and nobody asked for one.
    if [ ! -e "$settings" ]; then
        install postgresql-common
        sed -i 's/^#\{0,1\}create_main_cluster *=.*/create_main_cluster = false/' "$settings"
    fi
    ;;
esac
# shellcheck disable=SC2086  # several packages are several words
install $packages
