#!/usr/bin/env bash
# Runs cargo for programs with CUDA, on a machine that needs no GPU: with the toolkit that toolkit.sh assembles in CACHE, linked
# dynamically, and with a target directory of its own. CUDA_HOME names another toolkit, CUDA_COMPUTE_CAP another card than an H100.
#
#   CACHE=DIR trainer-image/cuda/cargo.sh check|build ARGUMENTS...
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
cache=${CACHE:?set CACHE to the directory of the toolkit}
libraries=libraries
[ "${1:-}" != check ] || libraries=
if [ -z "${CUDA_HOME:-}" ]; then
    CUDA_HOME=$("$here/toolkit.sh" "$cache/cuda-13.0" $libraries)
fi
export CUDA_HOME PATH="$CUDA_HOME/bin:$PATH"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}" CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-$(nproc)}"
# This variable replaces the flags of .cargo/config.toml, which make programs static: CUDA's libraries are shared.
export RUSTFLAGS="-L native=$CUDA_HOME/lib -L native=$CUDA_HOME/lib/stubs"
export CARGO_TARGET_DIR="$cache/target-cuda"
exec "${CARGO:-cargo}" "$@"
