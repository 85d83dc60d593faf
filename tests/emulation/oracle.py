"""Comparison with the oracle for results of the emulated kernels, whichever backend calls go to by then."""

import functools

from swa_attn import testing

assert_close_to_oracle = functools.partial(testing.assert_close_to_oracle, backend="emulated")
