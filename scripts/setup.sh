#!/usr/bin/env bash
# Installs what the build needs: the packages named in the given lists (default: apt_packages.txt), and
# the Python environment .venv, the S3 client .deps/awscrt and the grammar library .deps/xgrammar. Does nothing where
# nothing is missing. Uses sudo only where not root.
set -euo pipefail
cd "$(dirname "$0")/.."

lists=("$@")
[ ${#lists[@]} -gt 0 ] || lists=(scripts/apt_packages.txt)

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Packages of the lists that are not installed; of alternatives, the first that apt knows.
missing_packages() {
  local line package chosen
  sed 's/#.*//' "${lists[@]}" | while read -r line; do
    [ -n "$line" ] || continue
    chosen=
    for package in $line; do
      if is_installed "$package"; then chosen=installed; break; fi
    done
    [ "$chosen" = installed ] && continue
    for package in $line; do
      if apt-cache show "$package" >/dev/null 2>&1; then chosen=$package; break; fi
    done
    printf '%s\n' "${chosen:-${line%% *}}"
  done
}

command -v dpkg-query >/dev/null || fail "this needs Debian 12 or Ubuntu 24.04 (no dpkg here); see docs/development.md for what to install by hand"
if [ -n "$(missing_packages)" ]; then
  sudo=
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "not root and no sudo; as root run: apt-get install $(missing_packages | tr '\n' ' ')"
    sudo=sudo
  fi
  say "updating the package lists"
  $sudo apt-get update -qq || say "apt-get update failed; going on with the lists at hand"
  mapfile -t packages < <(missing_packages)
  say "installing ${packages[*]}"
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null ||
    fail "apt-get could not install: ${packages[*]}"
fi

# The Python environment: tests and demo only. Made again when the requirements change.
stamp=.venv/requirements.stamp
if ! cmp -s requirements.txt "$stamp"; then
  say "making the Python environment .venv"
  # The distribution's own Python where there is one: it is the one whose venv package was installed.
  python=python3
  [ -x /usr/bin/python3 ] && python=/usr/bin/python3
  "$python" -m venv --clear .venv || fail "python3 -m venv failed"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt ||
    fail "pip could not install requirements.txt"
  cp requirements.txt "$stamp"
fi

# The S3 client: a build of C libraries that no distribution has.
.venv/bin/python scripts/get_awscrt.py
# The grammar library, likewise.
.venv/bin/python scripts/get_xgrammar.py
