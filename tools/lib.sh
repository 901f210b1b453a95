# Shared by the scripts in this folder; sourced, never run.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kopsline

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# step TITLE COMMAND...: says what happens, and how long it took.
step() {
  local title=$1 begun=$SECONDS
  shift
  say "== $title"
  "$@"
  say "   done in $((SECONDS - begun)) s"
}

# need COMMAND REMEDY
need() { command -v "$1" >/dev/null || die "$1 is not installed: $2"; }

# This machine as Rust, Lambda and Go name it.
case $(uname -m) in
  x86_64) triple=x86_64-unknown-linux-gnu architecture=x86_64 goarch=amd64 ;;
  aarch64 | arm64) triple=aarch64-unknown-linux-gnu architecture=arm64 goarch=arm64 ;;
  *) die "$(uname -m) is not supported: use an x86_64 or arm64 machine" ;;
esac
[[ $(uname -s) == Linux ]] || die "$(uname -s) is not supported: Lambda's binaries run on Linux only, in a virtual machine for example"
