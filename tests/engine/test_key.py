from __future__ import annotations

from typing import Annotated

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdtune.effects import NoEffect
from bdtune.engine.key import canonical_json, derive_seed, digest_of, key_of, sample_generator
from bdtune.engine.node import Node
from bdtune.engine.numerics import Numerics
from tests.engine.toys import Numbers, Threshold, Train, chain

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=5))
def test_key_does_not_depend_on_the_order_of_a_mapping(value):
    assert key_of(value) == key_of(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_numbers_are_refused(value):
    with pytest.raises(ValueError):
        canonical_json({"x": value})


def test_equal_numbers_written_differently_and_defaults_give_one_key():
    keys = {Node(Train(plus=plus), {"x": Numbers()}).recipe for plus in (0.1, 1e-1, "0.1", "1e-1", "1.0e-1")}
    assert len(keys) == 1
    assert Node(Train(plus=0), {}).recipe == Node(Train(), {}).recipe


@pytest.mark.parametrize("knobs", [{"plus": 2.0}, {"epochs": 2}, {"seconds": 0.5}, {"fail": True}])
def test_every_knob_moves_the_key(knobs):
    assert Node(Train(**knobs), {}).recipe != Node(Train(), {}).recipe


def test_knobs_without_effect_do_not_move_the_key():
    class Patient(Train):
        name = "patient"
        seconds: Annotated[float, NoEffect] = 0.0

    assert Node(Patient(seconds=3), {}).recipe == Node(Patient(), {}).recipe


def test_a_later_knob_leaves_the_keys_and_seeds_before_it_alone():
    one, two = chain(tail=1.0), chain(tail=2.0)
    assert one.recipe != two.recipe
    assert one.inputs["base"].recipe == two.inputs["base"].recipe
    assert one.seed == two.seed


def test_numerics_move_keys_of_trained_stages_only():
    fp32, bf16 = (Numerics(device="cpu", precision=p) for p in ("fp32", "bf16"))
    assert Node(Train(), {}, numerics=fp32).recipe != Node(Train(), {}, numerics=bf16).recipe
    assert Node(Threshold(), {}, numerics=fp32).recipe == Node(Threshold(), {}, numerics=bf16).recipe


def test_digest_sees_values_types_shapes_names_and_info():
    base = {"a": np.arange(4, dtype=np.int64)}
    variants = [
        ({"a": np.arange(4, dtype=np.int32)}, {}),
        ({"a": np.arange(4).reshape(2, 2)}, {}),
        ({"b": np.arange(4)}, {}),
        ({"a": np.array([0, 1, 2, 4])}, {}),
        (base, {"n": 1}),
    ]
    assert len({digest_of(base, {}), *(digest_of(*variant) for variant in variants)}) == 6
    assert digest_of(base, {}) == digest_of({"a": np.arange(8, dtype=np.int64)[:4]}, {})
    assert digest_of({"a": np.zeros(0)}, {}) != digest_of({}, {})


def test_seeds_depend_on_every_name_and_are_stable():
    assert derive_seed(0, "simclr", 0) == 4495299402537516959
    assert len({derive_seed(m, n, r) for m in range(3) for n in ("a", "b") for r in range(3)}) == 18
    first = sample_generator(1, "blend", "train", 5).random(3)
    assert np.array_equal(first, sample_generator(1, "blend", "train", 5).random(3))
    assert not np.array_equal(first, sample_generator(1, "blend", "train", 6).random(3))
