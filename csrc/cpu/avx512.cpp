#define SPECXAI_ISA avx512
#define SPECXAI_VECTOR_BYTES 64
#define SPECXAI_REGISTERS 32
#include "cpu/simd.inc"
