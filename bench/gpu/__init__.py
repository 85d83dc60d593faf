"""Everything that `make gpu` does: conformance, tests on the card and the benchmark. See docs/gpu.md."""
