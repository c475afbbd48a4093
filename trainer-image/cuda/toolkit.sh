#!/usr/bin/env bash
# Assembles a CUDA 13.0 toolkit in DIR from NVIDIA's packages on PyPI, on a machine without a GPU and without CUDA, and prints its
# path, which is CUDA_HOME. With `libraries`, the libraries that a program links are there, too (1.3 GB); without, what compiles
# kernels (600 MB).
#
#   trainer-image/cuda/toolkit.sh DIR [libraries]
set -euo pipefail

dir=${1:?usage: toolkit.sh DIR [libraries]}
kind=compiler
packages=(
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
    nvidia-cuda-runtime==13.0.96 nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88
)
case "${2:-}" in
"") ;;
libraries) kind=libraries packages+=(nvidia-cublas==13.1.0.3) ;;
*) echo "toolkit.sh: $2 is unknown: write libraries, or nothing" >&2 && exit 2 ;;
esac

home=$dir/site/nvidia/cu13
if [ ! -f "$dir/$kind" ]; then
    mkdir -p "$dir"
    [ -x "$dir/venv/bin/python" ] || python3 -m venv "$dir/venv"
    "$dir/venv/bin/python" -m pip install --quiet --no-cache-dir --no-deps --upgrade --target "$dir/site" "${packages[@]}" >&2
    # The linker looks for names without a version.
    for library in "$home"/lib/lib*.so.*; do
        plain=${library%%.so.*}.so
        [ -e "$plain" ] || ln -s "$(basename "$library")" "$plain"
    done
    ln -sfn lib "$home/lib64"
    # The driver brings libcuda; the linker only needs its names.
    mkdir -p "$home/lib/stubs"
    grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' "$home/include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' |
        gcc -shared -x c - -Wl,-soname,libcuda.so.1 -o "$home/lib/stubs/libcuda.so"
    touch "$dir/$kind"
fi
echo "$home"
