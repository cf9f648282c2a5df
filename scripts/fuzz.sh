#!/usr/bin/env bash
# Damages files with a seed and decodes or indexes them, for every target: bash scripts/fuzz.sh [SECONDS, default 60] [SEED, default 1]
# The address space is limited, so that a C library's huge allocation fails and is told.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60} seed=${2:-1}
cargo build --release --locked --manifest-path rust/fuzz/Cargo.toml
ulimit -v 2000000
failed=0
for target in decode exif tar; do
  "${CARGO_TARGET_DIR:-rust/fuzz/target}/release/vit-rs-fuzz" "$target" --seconds "$seconds" --seed "$seed" || failed=1
done
exit "$failed"
