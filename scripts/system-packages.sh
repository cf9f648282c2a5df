#!/bin/sh
# Install the system packages that a source build of vit-rs uses and this machine lacks.
#
#     sh scripts/system-packages.sh [COMMAND...]
#
# Looks for nasm (libjpeg-turbo's SIMD on x86-64; without it the build works and decodes JPEGs more slowly), make
# (CMake's generator), Python's venv, and every COMMAND named; asks the system's package manager for what is
# missing, through sudo when not root. It never fails: a machine without a package manager it knows, or without
# the right to use it, gets a note on stderr, and the build goes on with what is there.
set -u

note() { printf 'system-packages: %s\n' "$*" >&2; }

missing=""
for command in nasm make "$@"; do
  command -v "$command" >/dev/null 2>&1 || missing="$missing $command"
done
# Arm builds take their SIMD from C intrinsics.
case "$(uname -m)" in
  x86_64 | amd64 | i?86) ;;
  *) missing=$(echo "$missing" | sed 's/ nasm//') ;;
esac
# Debian and its children ship the venv module without the pip that it installs.
if command -v apt-get >/dev/null 2>&1 && ! python3 -c 'import ensurepip' >/dev/null 2>&1; then
  missing="$missing python3-venv"
fi
[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null 2>&1; then
  refresh="apt-get update -qq"
  install="env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"
elif command -v dnf >/dev/null 2>&1; then
  refresh=:
  install="dnf install -y -q"
elif command -v brew >/dev/null 2>&1; then
  refresh=:
  install="brew install --quiet"
else
  note "no apt-get, dnf or brew here; please install:$missing"
  exit 0
fi

# One package after the other: one that is not to be had must not keep the rest away.
work="$refresh; failed=0; for package in $missing; do $install \$package || failed=1; done; exit \$failed"
note "installing:$missing"
if [ "$(id -u)" = 0 ] || [ "${install%% *}" = brew ]; then # Homebrew refuses root and needs no sudo
  sh -c "$work" >&2
elif command -v sudo >/dev/null 2>&1; then
  sudo sh -c "$work" >&2
else
  note "neither root nor sudo here"
  false
fi || note "could not install all of:$missing; going on with what is there"
exit 0
