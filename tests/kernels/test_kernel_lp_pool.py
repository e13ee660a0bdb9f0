"""The p-norm of windows."""

from typing import Any

import naive
import numpy as np
import pytest
from harness import Guarded, assert_close, check_forward, noise, pads_of, taps_of

from gbp.kernels.lp_pool import lp_pool_bwd, lp_pool_fwd

GEOMETRIES = {
    "2x2/2": ((4, 6), {"kernel": (2, 2), "stride": (2, 2)}),
    "asymmetric": ((5, 7), {"kernel": (3, 2), "stride": (1, 2), "pads": (2, 0, 1, 1)}),
    "dilated": ((7, 9), {"kernel": (2, 3), "stride": (2, 1), "pads": (1, 2, 1, 2), "dilation": (3, 2)}),
    "dilation and stride share a factor": ((9, 9), {"kernel": (3, 3), "stride": (2, 4), "dilation": (4, 2)}),
    "global": ((5, 6), {"kernel": (5, 6)}),
}


def walk(size: Any, geometry: dict[str, Any]) -> tuple[list[int], list[Any]]:
    """Output size; for each tap the windows, and the pixels where it lies."""
    resolved = naive.Geometry(
        geometry["kernel"],
        geometry.get("stride", (1, 1)),
        pads_of(geometry),
        geometry.get("dilation", (1, 1)),
    )
    out = naive.output_hw(size, resolved)
    return out, [(windows, cells) for _, windows, cells in naive.taps(size, out, resolved)]


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("size", "geometry"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_lp_pool(size: Any, geometry: dict[str, Any], p: int) -> None:
    C, taps = 5, taps_of(geometry)
    x = noise(2, *size, C)
    (OH, OW), walked = walk(size, geometry)
    sums = np.zeros((2, OH, OW, C))
    for windows, cells in walked:
        sums[:, *windows] += np.abs(x[:, *cells].astype(np.float64)) ** p
    expected = sums ** (1 / p)

    def forward(samples: slice, threads: int) -> Any:
        y = Guarded((samples.stop - samples.start, OH, OW, C))
        lp_pool_fwd(Guarded.of(x[samples]), y.view, taps, p, threads)
        return (y.result(),)

    (y,) = check_forward(forward, 2)
    assert_close(y, expected)

    gy, started = noise(6, OH, OW, C, seed=1), noise(6, *size, C, seed=2)
    gradient = np.zeros((6, *size, C))
    shared, norms = np.repeat(x.astype(np.float64), 3, axis=0), np.repeat(expected, 3, axis=0)
    for windows, cells in walked:
        ratio = np.abs(shared[:, *cells]) / norms[:, *windows]
        gradient[:, *cells] += gy[:, *windows] * np.sign(shared[:, *cells]) * ratio ** (p - 1)
    for accumulate in (0, 1):

        def reverse(rows: slice, threads: int, accumulate: int = accumulate) -> Any:
            saved = slice(rows.start // 3, (rows.stop - 1) // 3 + 1)
            gx = Guarded((rows.stop - rows.start, *size, C))
            if accumulate:
                gx.view[...] = started[rows]
            kept = Guarded.of(x[saved]), Guarded.of(y[saved])
            lp_pool_bwd(Guarded.of(gy[rows]), *kept, gx.view, accumulate, taps, p, threads)
            return (gx.result(),)

        assert_close(*check_forward(reverse, 6), gradient + accumulate * started)


def test_the_norm_of_nothing_has_no_gradient() -> None:
    x, y, gx = np.zeros((1, 2, 2, 1), np.float32), np.ones((1, 1, 1, 1), np.float32), noise(1, 2, 2, 1)
    taps = taps_of({"kernel": (2, 2)})
    lp_pool_fwd(x, y, taps, 2, 1)
    lp_pool_bwd(np.ones_like(y), x, y, gx, 0, taps, 2, 1)
    assert y.item() == 0
    np.testing.assert_array_equal(gx, 0)


def test_no_power_overflows() -> None:
    x, y = np.full((1, 2, 2, 1), 1e30, np.float32), np.empty((1, 1, 1, 1), np.float32)
    lp_pool_fwd(x, y, taps_of({"kernel": (2, 2)}), 100, 1)
    np.testing.assert_allclose(y, 1e30 * 4 ** (1 / 100), rtol=1e-6)
