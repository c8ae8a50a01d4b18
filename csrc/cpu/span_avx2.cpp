#define SPECXAI_ISA avx2
#define SPECXAI_VECTOR_BYTES 32
#define SPECXAI_TILE_SUMS 8  // 2 x 4 sums, 4 or 2 inputs, 1 factor: 13 or 11 of 16 registers
#include "cpu/span_simd.inc"
