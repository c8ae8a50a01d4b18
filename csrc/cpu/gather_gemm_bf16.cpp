// bfloat16 products and float32 sums (AVX512-BF16), for passes that only seek a subspace.
#include <immintrin.h>

#define SPECXAI_ISA bf16
#define SPECXAI_VECTOR_BYTES 64
#define SPECXAI_TILE_VECTORS 4
#define SPECXAI_TILE_SUMS 24  // 6 x 4 sums, 4 pairs of inputs, 1 pair of weights: 29 of 32 registers
#define SPECXAI_DEPTH_BLOCK 256
#define SPECXAI_TILE_FILE "cpu/gather_gemm_bf16_tile.inc"
#include "cpu/gather_gemm_simd.inc"
