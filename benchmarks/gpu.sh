#!/bin/sh
# Everything that a machine with a CUDA GPU has to say about this library, in one go: the tests of the cross-encoder on
# the CPU and on the GPU agree, then the speed of scoring on the card. Results go to benchmarks/results/*/gpu.json.
#
#     benchmarks/gpu.sh [PYTHON]
set -eu
cd "$(dirname "$0")/.."
python=${1:-python}
"$python" -c 'import torch; assert torch.cuda.is_available(), "torch finds no CUDA device"; print(torch.cuda.get_device_name())'
"$python" -m pytest -q tests/models/test_packing.py tests/models/test_cross_encoder.py tests/models/test_cross_encoder_training.py
"$python" -m pytest -q -m gpu tests/models/test_cross_encoder.py
"$python" -m benchmarks.scoring_speed --device cuda --users 256 --out benchmarks/results/scoring_speed/gpu.json
"$python" -m benchmarks.throughput --items 1000 5000 20000 --out benchmarks/results/throughput/gpu.json
