"""How far a number may move between processors, in one place.

Float32 results depend on the order in which a processor adds: with AVX2, with AVX512 or with neither, in one thread or
two. On an Intel with AVX512 and AMX the sum of a small transformer's outputs lay 3e-7 of the sum of their magnitudes away
from the recorded one (made on an AMD with AVX2), with ATEN_CPU_CAPABILITY=default 1.3e-7. ROOM is thirty times the larger one.
A real fault is far above: the other stream's noise level in the attention between the streams, the subtlest known change
of the model, moves the same sum by 5e-3."""

import pytest

ROOM = 1e-5  # of the magnitudes that were added up
ROUNDED = 1e-6  # recorded numbers have six digits after the point


def near(value, magnitude: float):
    "What equals a recorded sum, or one of its terms, on any processor; `magnitude`: of what is added up."
    return pytest.approx(value, abs=ROOM * magnitude + ROUNDED, rel=0)
