#!/usr/bin/env bash
# One training run, then every combination of code width and clip: quantize, compress, eval.
#
#   examples/requantize_sweep.sh DATA [OUT] [PRESET] [BITS] [KS] [KEY=VALUE...]
#   examples/requantize_sweep.sh runs/road/data runs/sweep demo "4 5 6" "8 10 12.85"
#
# DATA is a dataset directory (pgolf tokenize, or published shards). BITS are values of quant.bits, KS of quant.k (the
# clip in row standard deviations); the embedding keeps its own grid, quant.embed. The preset's quantizer must know k:
# sdclip and gptq do. A cell takes seconds, the training what the preset takes; the calibration is collected once for all.
# Writes below OUT (default runs/sweep): train/, hessians.safetensors, cells/bitsB_kK/, results.jsonl with one line per
# cell, logs/. Run it again with a larger grid and only the new cells are computed; the rest is found up to date.
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: requantize_sweep.sh DATA [OUT] [PRESET] [BITS] [KS] [KEY=VALUE...]" >&2
  exit 2
fi
data=$1
out=${2:-runs/sweep}
preset=${3:-demo}
read -r -a all_bits <<< "${4:-4 5 6}"
read -r -a all_ks <<< "${5:-8 10 12.85}"
settings=(--preset "$preset")
for pair in "${@:6}"; do
  settings+=(--set "$pair")
done

mkdir -p "$out/logs"
log=
trap '[ -z "$log" ] || { echo "requantize_sweep.sh: failed; the end of $log:"; tail -n 5 "$log"; } >&2' ERR

# Rewrites results.jsonl from the finished cells in the order they were made.
collect() {
  python3 - "$@" <<'PYTHON'
import json, os, sys
from pathlib import Path

results, cells = Path(sys.argv[1]), map(Path, sys.argv[2:])
lines = []
for cell in cells:
    files = [cell / f"{stage}.json" for stage in ("quantize", "compress", "eval")]
    quantize, compress, score = (json.loads(file.read_text()) for file in files)
    bits, k = cell.name.removeprefix("bits").split("_k")
    row = {"bits": int(bits), "k": float(k), "entropy_bits": quantize["entropy_bits"], "bpb": score["score"]["bpb"]}
    row |= {key: compress[key] for key in ("artifact_bytes", "total_bytes", "headroom_bytes")}
    lines.append(json.dumps(row) + "\n")
part = results.with_suffix(".part")
part.write_text("".join(lines))
os.replace(part, results)
PYTHON
}

echo "train"
log=$out/logs/train.log
pgolf train "$data" --out "$out/train" "${settings[@]}" > "$log" 2>&1

cells=()
for bits in "${all_bits[@]}"; do
  for k in "${all_ks[@]}"; do
    echo "bits $bits, k $k"
    cell=$out/cells/bits${bits}_k$k
    here=("${settings[@]}" --set "quant.bits=$bits" --set "quant.k=$k" --json)
    mkdir -p "$cell"
    log=$cell/quantize.log
    pgolf quantize "$out/train/checkpoint.safetensors" --data "$data" --out "$cell/quantized.safetensors" \
      --hessians "$out/hessians.safetensors" "${here[@]}" > "$cell/quantize.json" 2> "$log"
    log=$cell/compress.log
    pgolf compress "$cell/quantized.safetensors" --out "$cell/model.pgz" "${here[@]}" > "$cell/compress.json" 2> "$log"
    log=$cell/eval.log
    pgolf eval "$cell/model.pgz" --data "$data" --out "$cell/score.json" "${here[@]}" > "$cell/eval.json" 2> "$log"
    cells+=("$cell")
    log=$out/logs/collect.log
    collect "$out/results.jsonl" "${cells[@]}" > "$log" 2>&1
  done
done

python3 - "$out/results.jsonl" <<'PYTHON'
import json, sys

rows = [json.loads(line) for line in open(sys.argv[1])]
print(f"{'bits':>4} {'k':>7} {'entropy':>8} {'artifact':>12} {'total':>12} {'BPB':>8}")
for row in sorted(rows, key=lambda row: row["artifact_bytes"]):
    sizes = f"{row['artifact_bytes']:>12,} {row['total_bytes']:>12,}"
    print(f"{row['bits']:>4} {row['k']:>7g} {row['entropy_bits']:>8.3f} {sizes} {row['bpb']:>8.4f}")
PYTHON
