#!/usr/bin/env bash
# How far the estimate of memory is from the peak that the kernel counted, on six configurations: a table for docs/benchmarks.md.
# Usage: benches/memory.sh CODEX, where CODEX is the program.
set -euo pipefail
codex=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$codex" prepare-data --task arithmetic --count 2000 --out "$work/few.jsonl" >/dev/null
"$codex" prepare-data --task arithmetic --count 200000 --out "$work/many.jsonl" >/dev/null

echo "| Configuration | Parameters | Estimated MiB | Peak MiB | Off by |"
echo "|---|---|---|---|---|"
measure() {
	local name=$1 data=$2
	shift 2
	local sets=()
	for change in "$@" training.stop_after=8 training.checkpoint_every=2 training.warmup_steps=0; do sets+=(--set "$change"); done
	"$codex" train --template cot-starter --data "mine=$work/$data.jsonl" --output "$work/run" "${sets[@]}" >"$work/out" 2>"$work/log" ||
		{ cat "$work/log" >&2; exit 1; }
	local parameters estimate peak
	parameters=$(sed -n 's/.*"parameters":\([0-9]*\).*/\1/p' "$work/out")
	estimate=$(sed -n 's/.*"memory_estimate":\([0-9]*\).*/\1/p' "$work/log")
	peak=$(sed -n 's/.*"memory_peak":\([0-9]*\).*/\1/p' "$work/log")
	awk -v n="$name" -v p="$parameters" -v e="$estimate" -v m="$peak" \
		'BEGIN { printf "| %s | %.2fM | %.0f | %.0f | %+.1f %% |\n", n, p / 1e6, e / 2^20, m / 2^20, 100 * (e - m) / m }'
	rm -rf "$work/run"
}
model() { echo "model.hidden_size=$1 model.intermediate_size=$2 model.num_attention_heads=$3 model.num_hidden_layers=$4"; }
# shellcheck disable=SC2046 # each word is an argument
{
	measure "cot-starter: width 64, 4 layers, batch 64; 2,000 records" few
	measure "the same; 200,000 records" many
	measure "width 128, 12 layers, batch 256" few $(model 128 384 4 12) training.batch_size=256
	measure "width 256, 6 layers, batch 32" few $(model 256 768 4 6) training.batch_size=32
	measure "width 384, 6 layers, batch 8, 4 accumulated" few $(model 384 1024 6 6) training.batch_size=8 training.gradient_accumulation=4
	measure "width 512, 8 layers, batch 64" few $(model 512 1536 8 8) training.batch_size=64
}
