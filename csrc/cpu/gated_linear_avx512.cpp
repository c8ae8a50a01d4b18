#define SPECXAI_ISA avx512
#define SPECXAI_VECTOR_BYTES 64
#define SPECXAI_TILE_ROWS 12  // 12 x 2 accumulators, 2 input vectors, 1 broadcast: 27 of 32 registers
#include "cpu/gated_linear_simd.inc"
