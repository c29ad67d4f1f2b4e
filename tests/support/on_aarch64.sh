#!/usr/bin/env bash
# Runs tests of the CPU kernels' NEON code under QEMU, with aarch64's own Python and jaxlib, on an x86 Debian or Ubuntu:
#   bash tests/support/on_aarch64.sh DIRECTORY tests/kernels/test_kernels_cpu_products.py
# DIRECTORY keeps what is fetched. It needs apt-get, qemu-user and g++-aarch64-linux-gnu, and the Python that tests run
# with to be the distribution's version. ARM_FLAGS=-march=armv8-a leaves out the dot products. Tests that start
# processes fail here: those would be x86's.
set -euo pipefail
cd "$(dirname "$0")/../.."
there=$(realpath -m "$1")
shift
version=$(python3 -c 'import sys; print("3.%d" % sys.version_info[1])')
root=$there/root

fetch_python() {
  mkdir -p "$there/debs" "$there/lists/partial" "$root"
  local options=(-oAPT::Architecture=arm64 -oAPT::Architectures=arm64 "-oDir::State::Lists=$there/lists")
  apt-get -qq "${options[@]}" update
  (cd "$there/debs" && apt-get -qq "${options[@]}" download "python$version-minimal" "libpython$version-minimal" \
    "libpython$version-stdlib" libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 \
    libsqlite3-0 libncursesw6 libtinfo6 libreadline8 libuuid1 libcrypt1)
  for package in "$there"/debs/*.deb; do dpkg -x "$package" "$root"; done
  [ -e "$root/lib" ] || ln -s usr/lib "$root/lib"
}

fetch_packages() {
  mkdir -p "$there/wheels" "$there/site"
  pip freeze --exclude-editable | grep -viE '^(jax-cuda|nvidia|pytest-xdist)' | sed 's/ .*//' >"$there/packages.txt"
  while read -r package; do
    pip download -q --no-deps --only-binary=:all: --python-version "$version" --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
      --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --platform any -d "$there/wheels" "$package" \
      || echo "left out: $package"
  done <"$there/packages.txt"
  for wheel in "$there"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$there/site"; done
}

write_compiler() {  # -mcpu=native means a machine that the cross compiler is not on
  cat >"$there/g++" <<'COMPILER'
#!/usr/bin/env bash
exec aarch64-linux-gnu-g++ "${@/#-mcpu=native/${ARM_FLAGS:--march=armv8.2-a+dotprod}}"
COMPILER
  chmod +x "$there/g++"
}

[ -e "$root/usr/bin/python$version" ] || fetch_python
[ -e "$there/site/jaxlib" ] || fetch_packages
write_compiler
# XLA_FLAGS: else the tests ask in a child process which flags XLA knows.
export PYTHONPATH="$there/site" CXX="$there/g++" JLLAMA_CACHE="$there/cache${ARM_FLAGS:-}" XLA_FLAGS="--xla_backend_optimization_level=0"
exec qemu-aarch64 -L "$root" "$root/usr/bin/python$version" -m pytest -p no:cacheprovider \
  -o addopts="--strict-markers --import-mode=importlib" "$@"
