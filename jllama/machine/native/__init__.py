"""C++ of `kernels/cpu/` becomes libraries. Without jax, which is imported meanwhile in a first start ever."""
