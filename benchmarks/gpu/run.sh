#!/usr/bin/env bash
# Everything that a card is asked, in under six minutes and without a network:
#
#     benchmarks/gpu/run.sh          tests, sanitizer, measurements -> benchmarks/results/gpu/CARD/
#     benchmarks/gpu/run.sh --dry    the same on the CPU at tiny sizes -> build/gpu/dry/
#
# PYTHON   an interpreter with torch, triton and torchvision (default: python3)
# WHEELS   a folder of wheels for what else is missing there: pip download -d WHEELS --no-deps scipy safetensors ...
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
dry=
[ "${1:-}" = --dry ] && dry=--dry
started=$SECONDS
failed=()

step() {  # NAME SECONDS COMMAND...: goes on after a failure, which is told at the end
    local name=$1 limit=$2 before=$SECONDS
    shift 2
    echo "== $name"
    timeout "$limit" "$@" || failed+=("$name (status $?)")
    echo "== $name took $((SECONDS - before)) s"
}

# A package as it would be installed, with kernels/ in its place; the compiled module comes along where it was built.
place=build/gpu/site
rm -rf "$place"
mkdir -p "$place"
cp -r specxai "$place/"
rm -rf "$place/specxai/kernels"
cp -r kernels "$place/specxai/kernels"
export PYTHONPATH="$PWD/$place"
export PYTHONDONTWRITEBYTECODE=1

# The compiled CUDA kernels come along where they were built; else they are built here, where nvcc is.
if [ -z "$dry" ] && ! "$PYTHON" -c "import specxai._cuda" 2> /dev/null; then
    if command -v nvcc > /dev/null; then
        PYTHON="$PYTHON" step "CUDA kernels" 60 benchmarks/gpu/build.sh "$place/specxai"
    else
        echo "== nvcc is not here: the CUDA kernels are left out"
    fi
fi

needs="scipy safetensors tqdm triton torchvision timm pytest"
missing=$("$PYTHON" -c "from importlib.util import find_spec as f; print(*(n for n in '$needs'.split() if not f(n)))")
if [ -n "$missing" ] && [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install -q --no-index --find-links "$WHEELS" --no-deps --target build/gpu/wheels $missing
    export PYTHONPATH="$PYTHONPATH:$PWD/build/gpu/wheels"
elif [ -n "$missing" ]; then
    echo "not installed: $missing; bring wheels and name their folder: WHEELS=folder $0"
fi

if [ -n "$dry" ]; then
    export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
    step "measurements" 110 "$PYTHON" benchmarks/gpu/measure.py --dry --seconds 90
    step "tests of the card, skipped" 60 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests/core/test_cuda.py \
        tests/native/test_triton_gpu.py tests/native/test_cuda_gpu.py
else
    step "tests" 80 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider tests/native/test_cuda_gpu.py \
        tests/native/test_triton_gpu.py tests/core/test_cuda.py
    if command -v compute-sanitizer > /dev/null; then
        # Without torch's cache each tensor is an allocation of its own, so that reads beyond it are seen.
        for tool in memcheck racecheck; do
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "compute-sanitizer $tool" 30 compute-sanitizer --tool $tool \
                --error-exitcode 9 "$PYTHON" -m pytest -q -x -p no:cacheprovider tests/native/test_triton_gpu.py \
                -k "small and (tf32x3 or bf16x3) and (8 or 64)"
            # Without graphs, whose memory is never an allocation of its own.
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 SPECXAI_TEST_GRAPHS=0 step "compute-sanitizer $tool, CUDA" 20 \
                compute-sanitizer --tool $tool --error-exitcode 9 "$PYTHON" -m pytest -q -x -p no:cacheprovider \
                tests/native/test_cuda_gpu.py -k small
        done
    else
        echo "== compute-sanitizer is not installed: left out"
    fi
    step "measurements" $((345 - (SECONDS - started))) "$PYTHON" benchmarks/gpu/measure.py \
        --seconds $((300 - (SECONDS - started)))
fi

echo "== all took $((SECONDS - started)) s"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
