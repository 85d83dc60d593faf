"""Random small cases: every backend against the oracle, poison included."""

import torch
from fitting import fit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swa_attn
from swa_attn.testing import AttentionCase, assert_close_to_oracle, build


@st.composite
def cases(draw, rectangular=False):
    kv_heads = draw(st.integers(1, 3))
    q_len = draw(st.integers(1, 8))
    lengths = st.integers(0, 70)
    sequence = st.tuples(st.just(q_len) if rectangular else st.integers(0, 12), lengths)
    fp8 = draw(st.booleans())
    return AttentionCase(
        seqs=tuple(draw(st.lists(sequence, min_size=1, max_size=4))),
        window=draw(st.none() | st.integers(1, 40)),
        page_size=draw(st.integers(1, 20)),
        num_q_heads=kv_heads * draw(st.integers(1, 7)),
        num_kv_heads=kv_heads,
        head_dim=8 * draw(st.integers(1, 5)),
        v_head_dim=8 * draw(st.integers(1, 5)),
        cache_dtype=torch.float8_e4m3fn if fp8 else None,
        sinks=draw(st.booleans()),
        softcap=draw(st.sampled_from([0.0, 5.0])),
        host=draw(st.sampled_from([0.0, 0.5])),
        layout=draw(st.sampled_from(["nhd", "hnd", "packed", "padded", "skewed"])),
        score_scale=draw(st.sampled_from([1.0, 30.0])),
        seed=draw(st.integers(0, 9)),
    )


common = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@common
@given(case=cases())
def test_prefill(backend, case):
    inputs = build(fit(case, backend))
    out, lse = swa_attn.prefill(*inputs.prefill_args, **inputs.options)
    assert_close_to_oracle(inputs, out, lse)


@common
@given(case=cases(rectangular=True))
def test_decode(backend, case):
    inputs = build(fit(case, backend))
    out, lse = swa_attn.decode(*inputs.decode_args, **inputs.options)
    assert_close_to_oracle(inputs, out.flatten(0, 1), lse.flatten(0, 1))
