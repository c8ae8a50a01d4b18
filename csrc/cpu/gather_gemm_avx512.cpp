#include "cpu/narrow_gemm.h"

#define SPECXAI_ISA avx512
#define SPECXAI_VECTOR_BYTES 64
#define SPECXAI_TILE_VECTORS 4
#define SPECXAI_TILE_SUMS 24  // 6 x 4 sums, 4 inputs, 1 weight: 29 of 32 registers
#define SPECXAI_DEPTH_BLOCK 128  // x 64 probes: 32 KB of inputs, which all outputs of a position read
#include "cpu/gather_gemm_simd.inc"
#include "cpu/narrow_gemm_simd.inc"
