#include "cpu/narrow_gemm.h"

#define SPECXAI_ISA avx2
#define SPECXAI_VECTOR_BYTES 32
#define SPECXAI_TILE_VECTORS 2
#define SPECXAI_TILE_SUMS 12  // 6 x 2 sums, 2 inputs, 1 weight: 15 of 16 registers
#define SPECXAI_DEPTH_BLOCK 256
#include "cpu/gather_gemm_simd.inc"
#include "cpu/narrow_gemm_simd.inc"
