#!/bin/sh
# Everything that a machine with a CUDA GPU has to say about this library, in one go: the GPU gives the CPU's scores and
# learns, then the speed of scoring and of whole reranks. Results go to benchmarks/results/*/gpu.json.
#
#     benchmarks/gpu.sh [PYTHON [DIR]]
#
# DIR: amazon_scientific's folder; without it the fit and rerank of a real shop are left out.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python}
"$python" -c 'import torch; assert torch.cuda.is_available(), "torch finds no CUDA device"; print(torch.cuda.get_device_name())'
"$python" -m pytest -q -m gpu tests/test_gpu.py
"$python" -m benchmarks.scoring_speed --device cuda --users 256 --pairwise-users 32 --out benchmarks/results/scoring_speed/gpu.json
"$python" -m benchmarks.throughput --items 1000 5000 --out benchmarks/results/throughput/gpu.json
if [ -n "${2:-}" ]; then
  "$python" -m benchmarks.rerank_time --data-dir "$2" --cross-encoder always --out benchmarks/results/rerank_time/gpu.json
fi
