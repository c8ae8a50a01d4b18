// Vectors of 16 bytes: what every x86-64 and every 64-bit Arm has.
#define SPECXAI_ISA scalar
#define SPECXAI_VECTOR_BYTES 16
#define SPECXAI_SUMS 12
#if defined(__x86_64__)
#define SPECXAI_REGISTER "x"
#elif defined(__aarch64__)
#define SPECXAI_REGISTER "w"
#else
#define SPECXAI_REGISTER "m"
#endif
#include "cpu/peak_simd.inc"
