#!/usr/bin/env bash
# One training run, then every combination of code width and clip: quantize, compress, eval.
#
#   examples/requantize_sweep.sh DATA [OUT] [PRESET] [BITS] [KS] [KEY=VALUE...]
#   examples/requantize_sweep.sh runs/road/data runs/sweep demo 4,5,6 8,10,12.85
#
# DATA is a dataset directory (pgolf tokenize, or published shards). BITS are values of quant.bits, KS of quant.k (the
# clip in row standard deviations); the embedding keeps its own grid, quant.embed. The preset's quantizer must know k:
# sdclip and gptq do. A cell takes seconds, the training what the preset takes; the calibration is collected once for all.
# BPB is that of the last training documents, so that nothing is chosen by looking at validation.
# Writes below OUT (default runs/sweep): train/, cells/, shared/, held_out_*/, results.jsonl with one row per cell,
# logs/. Run it again with a larger grid and only the new cells are computed; docs/sweeps.md has the rest.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: requantize_sweep.sh DATA [OUT] [PRESET] [BITS] [KS] [KEY=VALUE...]" >&2
  exit 2
fi
data=$1
out=${2:-runs/sweep}
settings=(--preset "${3:-demo}")
for pair in "${@:6}"; do
  settings+=(--set "$pair")
done

mkdir -p "$out/logs"
log=
trap '[ -z "$log" ] || { echo "requantize_sweep.sh: failed; the end of $log:"; tail -n 5 "$log"; } >&2' ERR

echo "train"
log=$out/logs/train.log
pgolf train "$data" --out "$out/train" "${settings[@]}" > "$log" 2>&1

echo "quantize, compress, eval"
log=$out/logs/sweep.log
pgolf sweep quantize "$out/train/checkpoint.safetensors" --data "$data" --out "$out" "${settings[@]}" \
  --set "quant.bits=${4:-4,5,6}" --set "quant.k=${5:-8,10,12.85}" 2> "$log"
