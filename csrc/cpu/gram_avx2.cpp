#define SPECXAI_ISA avx2
#define SPECXAI_VECTOR_BYTES 32
#define SPECXAI_TILE_VECTORS 2
#define SPECXAI_TILE_SUMS 12  // 6 x 2 sums, 2 inputs, 1 factor: 15 of 16 registers
#include "cpu/gram_simd.inc"
