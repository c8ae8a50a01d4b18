#define SPECXAI_ISA avx2
#define SPECXAI_VECTOR_BYTES 32
#define SPECXAI_SUMS 12
#define SPECXAI_REGISTER "x"
#include "cpu/peak_simd.inc"
