#!/usr/bin/env bash
# Trains on a file that is larger than memory, stops, and goes on: a table for docs/benchmarks.md.
# Usage: benches/data.sh CODEX GIGABYTES, where CODEX is the program. Needs 1.7 times as much free disk in TMPDIR.
set -euo pipefail
codex=$1 gigabytes=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$codex" prepare-data --task arithmetic --count 200000 --out "$work/part.jsonl" >/dev/null
part=$(stat -c %s "$work/part.jsonl")
for ((written = 0; written < gigabytes * 1000 * 1000 * 1000; written += part)); do cat "$work/part.jsonl"; done >"$work/data.jsonl"

train() {
	local begun=$SECONDS
	"$codex" train --template cot-starter --data "large=$work/data.jsonl" --output "$work/run" --set training.checkpoint_every=4 \
		--set training.warmup_steps=0 --set training.stop_after="$1" >"$work/out" 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
	local peak
	peak=$(sed -n 's/.*"memory_peak":\([0-9]*\).*/\1/p' "$work/log")
	awk -v n="$2" -v d="$(stat -c %s "$work/data.jsonl")" -v c="$(du -sB1 "$work/run/cache" | cut -f1)" -v s="$((SECONDS - begun))" -v m="$peak" \
		'BEGIN { printf "| %s | %.1f GB | %.1f GB | %d s | %.0f MB |\n", n, d / 1e9, c / 1e9, s, m / 1e6 }'
}
echo "| Attempt | Data | Cache of tokens | Time | Peak of memory |"
echo "|---|---|---|---|---|"
train 8 "first: reads, tokenizes, trains 8 steps"
train 16 "second: checks the cache, trains 8 more"
