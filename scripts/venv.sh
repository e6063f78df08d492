#!/bin/sh
# Make .venv ready: `scripts/venv.sh` for running a node, `scripts/venv.sh dev` for the tests as well.
#
# Looks for Python 3.11 or newer that can make a venv. As root on Debian or Ubuntu, what is missing
# is installed; otherwise one line names the command that installs it, exit 1. Dependencies are
# installed again only when the requirements or the interpreter change. Relies on neither HOME,
# PATH nor a locale, so it works under `env -i`.
set -eu
PATH="${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
export PATH
cd "$(dirname "$0")/.."

kind="${1:-run}"
case "$kind" in
run) requirements=requirements.txt ;;
dev) requirements=requirements-dev.txt ;;
*) echo "scripts/venv.sh: expected nothing, run or dev, not '$kind'" >&2; exit 2 ;;
esac

stop() {
    echo "$1" >&2
    exit 1
}

recent_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
makes_venvs() { "$1" -c 'import venv, ensurepip' 2>/dev/null; }

# Prints the first interpreter that answers yes to every predicate named.
find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3}; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        for predicate in "$@"; do "$predicate" "$candidate" || continue 2; done
        command -v "$candidate"
        return 0
    done
    return 1
}

# The Debian packages that give this machine what find_python did not find.
missing_packages() {
    if python=$(find_python recent_enough); then
        case "$python" in
        /usr/bin/python3 | /bin/python3) echo python3-venv ;;
        /usr/bin/python3.* | /bin/python3.*) echo "${python##*/}-venv" ;;
        *) echo python3 python3-venv ;;
        esac
    else
        echo python3 python3-venv
    fi
}

install_missing() {
    packages=$(missing_packages)
    command -v apt-get >/dev/null 2>&1 || stop "Python 3.11 or newer with venv and ensurepip is needed; on Debian or Ubuntu: apt-get install -y $packages"
    [ "$(id -u)" = 0 ] || stop "Python 3.11 or newer with venv and ensurepip is needed; run: sudo apt-get install -y $packages"
    echo "Installing $packages ..."
    # shellcheck disable=SC2086  # several packages are several words
    said=$({ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages; } 2>&1) ||
        stop "$said
apt-get could not install what is missing: see its message above, then run: apt-get install -y $packages"
}

works() { [ -x .venv/bin/python ] && .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# What the stamp of this kind has to say: the requirements and the interpreter they were installed for.
wanted() {
    cat requirements.txt
    [ "$1" = run ] || cat requirements-dev.txt
    .venv/bin/python -V
}

current() { works && wanted "$kind" | cmp -s - ".venv/installed-$kind"; }

if current; then exit 0; fi

if ! works || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python recent_enough makes_venvs) || {
        install_missing
        python=$(find_python recent_enough makes_venvs) ||
            stop "No Python 3.11 or newer with venv and ensurepip here, and the distribution has none: install one and run make PYTHON=/path/to/python3"
    }
    echo "Creating .venv with $("$python" -V) ..."
    rm -rf .venv
    "$python" -m venv .venv || stop "Python could not create .venv; see its message above"
fi

echo "Installing $requirements into .venv (once; again only when it changes) ..."
.venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check -r "$requirements" ||
    stop "pip could not install $requirements: see its message above, and whether this machine reaches its package index"
wanted run >.venv/installed-run
if [ "$kind" = dev ]; then wanted dev >.venv/installed-dev; fi
