#!/usr/bin/env bash
# Builds specxai/_cuda*.so into FOLDER for the cards of this machine, without CMake or a network:
#
#     benchmarks/gpu/build.sh FOLDER
#
# pybind11's headers are the package's, or those that torch brings.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
folder=$1
arch=${ARCH:-$("$PYTHON" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())")}
[ "$arch" = 90 ] && arch=90a
headers=$("$PYTHON" -c "
from importlib.util import find_spec
from pathlib import Path
print(Path((find_spec('pybind11') or find_spec('torch')).origin).parent / 'include')")
python_headers=$("$PYTHON" -c "import sysconfig; print(sysconfig.get_path('include'))")
suffix=$("$PYTHON" -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
made=build/gpu/objects
rm -rf "$made"
mkdir -p "$made"
flags=(-std=c++17 -O3 -Icsrc -gencode "arch=compute_$arch,code=sm_$arch" -Xcompiler "-fPIC,-fvisibility=hidden")
jobs=()
for source in csrc/cuda/*.cu csrc/bindings/cuda.cpp; do
    nvcc "${flags[@]}" -I"$headers" -I"$python_headers" -c "$source" -o "$made/$(basename "$source").o" &
    jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
nvcc "${flags[@]}" -shared -cudart static "$made"/*.o -o "$folder/_cuda$suffix"
