#define SPECXAI_ISA avx512
#define SPECXAI_VECTOR_BYTES 64
#define SPECXAI_SUMS 24
#define SPECXAI_REGISTER "v"
#include "cpu/peak_simd.inc"
