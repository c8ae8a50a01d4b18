#define SPECXAI_ISA avx512
#define SPECXAI_VECTOR_BYTES 64
#define SPECXAI_TILE_SUMS 24  // 6 x 4 sums, 4 or 6 inputs, 1 factor: 29 or 31 of 32 registers
#include "cpu/span_simd.inc"
