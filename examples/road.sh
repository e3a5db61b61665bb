#!/usr/bin/env bash
# The whole road by hand: every stage is a command of its own, and each writes its own log.
#
#   examples/road.sh TEXT [OUT] [PRESET] [KEY=VALUE...]
#   examples/road.sh notes.txt runs/road demo quant.bits=5
#
# TEXT is a .txt or .jsonl file (also .gz, .zst) or a directory of such files: 1 MB or more for the demo preset.
# Takes about as long as `pgolf run --preset PRESET`: some minutes on two cores for demo, under one for tiny.
# Writes below OUT (default runs/road): data/ train/ quantize/ compress/ eval/ ttt/ submission/, the places where
# `pgolf run --out OUT` keeps them too, and logs/. A stage that is up to date is skipped, so a stopped run goes on.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: road.sh TEXT [OUT] [PRESET] [KEY=VALUE...]" >&2
  exit 2
fi
text=$1
out=${2:-runs/road}
settings=(--preset "${3:-demo}")
for pair in "${@:4}"; do
  settings+=(--set "$pair")
done

mkdir -p "$out/logs"
log=
trap '[ -z "$log" ] || { echo "road.sh: failed; the end of $log:"; tail -n 5 "$log"; } >&2' ERR

echo "tokenize"
log=$out/logs/tokenize.log
pgolf tokenize "$text" --out "$out/data" "${settings[@]}" > "$log" 2>&1

echo "train"
log=$out/logs/train.log
pgolf train "$out/data" --out "$out/train" "${settings[@]}" > "$log" 2>&1

echo "quantize"
log=$out/logs/quantize.log
pgolf quantize "$out/train/checkpoint.safetensors" --data "$out/data" --out "$out/quantize/quantized.safetensors" \
  "${settings[@]}" > "$log" 2>&1

echo "compress"
log=$out/logs/compress.log
pgolf compress "$out/quantize/quantized.safetensors" --out "$out/compress/model.pgz" "${settings[@]}" > "$log" 2>&1

echo "eval"
log=$out/logs/eval.log
pgolf eval "$out/compress/model.pgz" --data "$out/data" --out "$out/eval/score.json" "${settings[@]}" > "$log" 2>&1

echo "ttt"
log=$out/logs/ttt.log
pgolf ttt "$out/compress/model.pgz" --data "$out/data" --out "$out/ttt/score.json" "${settings[@]}" > "$log" 2>&1

echo "package"
log=$out/logs/package.log
pgolf package-submission "$out/compress/model.pgz" --out "$out/submission" --data "$out/data" --force \
  "${settings[@]}" > "$log" 2>&1

cat "$out/logs/eval.log" "$out/logs/package.log"
