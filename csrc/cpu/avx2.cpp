#define SPECXAI_ISA avx2
#define SPECXAI_VECTOR_BYTES 32
#define SPECXAI_REGISTERS 16
#include "cpu/simd.inc"
