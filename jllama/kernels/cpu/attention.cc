// The part for caches of JLLAMA_TYPE.
#include "attention.h"

extern "C" void JLLAMA_PART(const Attention& call, int64_t task) { attend_task<JLLAMA_TYPE>(call, task); }
