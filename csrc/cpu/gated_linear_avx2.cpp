#define SPECXAI_ISA avx2
#define SPECXAI_VECTOR_BYTES 32
#define SPECXAI_TILE_ROWS 6  // 6 x 2 accumulators, 2 input vectors, 1 broadcast: 15 of 16 registers
#include "cpu/gated_linear_simd.inc"
