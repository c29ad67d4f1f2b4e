// All parts of the CPU kernels in one file, for `kernels_cpu.py`: each by itself would read the same headers again.
#define JLLAMA_PART jllama_attention_float32
#define JLLAMA_TYPE float
#include "attention.cc"
#undef JLLAMA_PART
#undef JLLAMA_TYPE
#define JLLAMA_PART jllama_attention_bfloat16
#define JLLAMA_TYPE bf16
#include "attention.cc"
#undef JLLAMA_PART
#undef JLLAMA_TYPE
#define JLLAMA_PART jllama_attention_float16
#define JLLAMA_TYPE half
#include "attention.cc"
#undef JLLAMA_PART
#undef JLLAMA_TYPE
#define JLLAMA_PART jllama_dense_float32
#define JLLAMA_TYPE float
#include "dense.cc"
#undef JLLAMA_PART
#undef JLLAMA_TYPE
#define JLLAMA_PART jllama_dense_bfloat16
#define JLLAMA_TYPE bf16
#include "dense.cc"
#undef JLLAMA_PART
#undef JLLAMA_TYPE
#define JLLAMA_PART jllama_dense_float16
#define JLLAMA_TYPE half
#include "dense.cc"
#undef JLLAMA_PART
#undef JLLAMA_TYPE
#define JLLAMA_PART jllama_eight_bits
#define JLLAMA_FORM EIGHT_BITS
#include "quantised.cc"
#undef JLLAMA_PART
#undef JLLAMA_FORM
#define JLLAMA_PART jllama_four_bits
#define JLLAMA_FORM FOUR_BITS
#include "quantised.cc"
#undef JLLAMA_PART
#undef JLLAMA_FORM
#define JLLAMA_PART jllama_of_levels
#define JLLAMA_FORM OF_LEVELS
#include "quantised.cc"
#undef JLLAMA_PART
#undef JLLAMA_FORM
#define JLLAMA_PART jllama_six_bits
#define JLLAMA_FORM SIX_BITS
#include "quantised.cc"
#undef JLLAMA_PART
#undef JLLAMA_FORM
#define JLLAMA_PART jllama_halves
#define JLLAMA_FORM HALVES
#include "quantised.cc"
#undef JLLAMA_PART
#undef JLLAMA_FORM
#define JLLAMA_PART jllama_six_halves
#define JLLAMA_FORM SIX_HALVES
#include "quantised.cc"
#undef JLLAMA_PART
#undef JLLAMA_FORM
