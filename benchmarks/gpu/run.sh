#!/usr/bin/env bash
# Everything that a card is asked, in under six minutes (benchmarks/gpu/estimate.py counts them) and without a network:
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
begun=()

step() {  # NAME SECONDS COMMAND...: goes on after a failure, which is told at the end
    local name=$1 limit=$2 before=$SECONDS
    shift 2
    echo "== $name"
    timeout "$limit" "$@" || failed+=("$name (status $?)")
    echo "== $name took $((SECONDS - before)) s"
}

begin() {  # NAME SECONDS COMMAND...: like step, but at the same time as others, for what is not timed
    local name=$1 limit=$2 said="build/gpu/said/${#begun[@]}"
    shift 2
    mkdir -p build/gpu/said
    timeout "$limit" "$@" > "$said" 2>&1 &
    begun+=("$! $said $name")
}

finish() {  # waits for all that began
    local one pid said name status
    for one in ${begun[@]+"${begun[@]}"}; do
        read -r pid said name <<< "$one"
        wait "$pid"
        status=$?
        echo "== $name"
        if [ "$status" -ne 0 ] && [ "$status" -ne 5 ]; then  # 5: no test was chosen
            failed+=("$name (status $status)")
            tail -40 "$said"
        else
            tail -1 "$said"
        fi
    done
    begun=()
    echo "== so far $((SECONDS - started)) s"
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
export SPECXAI_TUNE=0  # counted choices: each other way is one more kernel to compile; measure.py --more tries them

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
    step "measurements" 240 "$PYTHON" benchmarks/gpu/measure.py --dry --seconds 220
    step "measurements, second call" 240 "$PYTHON" benchmarks/gpu/measure.py --dry --more --seconds 220
    while IFS=$'\t' read -r file chosen; do
        begin "tests of the card, skipped: $(basename "$file") $chosen" 240 "$PYTHON" -m pytest -q -m gpu \
            -p no:cacheprovider "$file" -k "$chosen"
    done < <("$PYTHON" benchmarks/gpu/estimate.py)
    finish
else
    while IFS=$'\t' read -r file chosen; do
        begin "tests: $(basename "$file") $chosen" 80 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider "$file" \
            -k "$chosen"
    done < <("$PYTHON" benchmarks/gpu/estimate.py)
    if command -v compute-sanitizer > /dev/null; then
        # Without torch's cache each tensor is an allocation of its own, so that reads beyond it are seen.
        export PYTORCH_NO_CUDA_MEMORY_CACHING=1
        for tool in memcheck racecheck; do
            begin "compute-sanitizer $tool" 60 compute-sanitizer --tool $tool \
                --error-exitcode 9 "$PYTHON" -m pytest -q -x -p no:cacheprovider tests/native/test_triton_gpu.py \
                -k "small and (tf32x3 or bf16x3) and (8 or 64)"
            # Without graphs, whose memory is never an allocation of its own.
            SPECXAI_TEST_GRAPHS=0 begin "compute-sanitizer $tool, CUDA" 60 \
                compute-sanitizer --tool $tool --error-exitcode 9 "$PYTHON" -m pytest -q -x -p no:cacheprovider \
                tests/native/test_cuda_gpu.py -k small
        done
        unset PYTORCH_NO_CUDA_MEMORY_CACHING
    else
        echo "== compute-sanitizer is not installed: left out"
    fi
    finish
    step "measurements" $((355 - (SECONDS - started))) "$PYTHON" benchmarks/gpu/measure.py \
        --seconds $((330 - (SECONDS - started)))
fi

echo "== all took $((SECONDS - started)) s"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
