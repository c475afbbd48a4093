#!/usr/bin/env bash
# Checks the GPU of this machine and measures it, in at most six minutes, and writes the table to FILE. PROGRAM is gpu_check,
# built here or elsewhere. Its libraries are those of CUDA_HOME, of the system, or of PyTorch's packages.
#
#   trainer-image/cuda/gpu-check.sh PROGRAM FILE
set -euo pipefail

[ $# = 2 ] || { echo "usage: gpu-check.sh PROGRAM FILE" >&2 && exit 2; }
program=$1 file=$2
if ! { [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; }; then
    echo "gpu-check needs an NVIDIA GPU, and this machine has none: /dev/nvidiactl does not exist." >&2
    exit 2
fi
if [ ! -x "$program" ]; then
    echo "$program is no program: build it with make gpu-check-program, here or on another machine." >&2
    exit 2
fi
paths=${CUDA_HOME:+$CUDA_HOME/lib64:$CUDA_HOME/lib:}
for folder in $(python3 -c 'import glob, site, sys
for place in site.getsitepackages() + sys.path:
    print(*glob.glob(place + "/nvidia/*/lib"), sep="\n")' 2>/dev/null | sort -u); do
    paths+=$folder:
done
export LD_LIBRARY_PATH="$paths${LD_LIBRARY_PATH:-}"
status=0
timeout 360 "$program" >"$file.partial" || status=$?
case $status in
0 | 1) mv "$file.partial" "$file" && cat "$file" ;;
124) echo "gpu_check took more than six minutes; what it wrote is in $file.partial." >&2 ;;
*) rm -f "$file.partial" ;;
esac
exit "$status"
