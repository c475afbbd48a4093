#!/usr/bin/env bash
# Puts a program with CUDA and every library that it needs into ROOT, which is then the root of an image. The driver's own libraries
# (libcuda, libnvidia-ml) come from the node: the NVIDIA container toolkit mounts them.
#
#   trainer-image/cuda/collect.sh PROGRAM CUDA_HOME ROOT
set -euo pipefail

[ $# = 3 ] || { echo "usage: collect.sh PROGRAM CUDA_HOME ROOT" >&2 && exit 2; }
program=$1 home=$2 root=$3
libraries=$root/usr/lib/x86_64-linux-gnu
mkdir -p "$libraries" "$root/lib64" "$root/tmp"
chmod 1777 "$root/tmp"
strip --strip-all -o "$root/codex" "$program"
listed=$(LD_LIBRARY_PATH="$home/lib:$home/lib/stubs" ldd "$program")
if grep -q 'not found' <<<"$listed"; then
    printf 'collect.sh: libraries of %s are missing:\n%s\n' "$program" "$(grep 'not found' <<<"$listed")" >&2
    exit 1
fi
while read -r library; do
    case "$library" in
    */stubs/*) ;;
    */ld-linux-x86-64.so.2) cp -L "$library" "$root/lib64/" ;;
    *) cp -L "$library" "$libraries/" ;;
    esac
done < <(awk '$3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' <<<"$listed" | sort -u)
# Opened by name at run time: by NVRTC, and by the driver.
cp -L "$home"/lib/libnvrtc-builtins.so.* "$libraries/"
for name in libdl.so.2 libpthread.so.0 librt.so.1; do
    path=$(ldconfig -p | awk -v name="$name" '$1 == name && /x86-64/ { print $NF; exit }')
    [ -z "$path" ] || cp -L "$path" "$libraries/"
done
