"""JAX and jax-cfd: what is set and provided before they are imported, and what if they are not."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
import torch

from sda_core.errors import PluginError
from sda_kolmogorov.jax_compat import from_jax, random_keys, to_jax

VARIABLE = "XLA_PYTHON_CLIENT_PREALLOCATE"


def python(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_jax_cfd_works_in_a_fresh_process_and_leaves_the_gpu_to_torch() -> None:
    code = f"""
import os, sys
from sda_kolmogorov.jax_compat import cfd, jax
grid = cfd.grids.Grid((8, 8), domain=((0, 1), (0, 1)))
v = cfd.initial_conditions.filtered_velocity_field(jax.random.key(0), grid)
step = cfd.equations.semi_implicit_navier_stokes(
    density=1.0, viscosity=0.1, dt=0.001, grid=grid,
    forcing=cfd.forcings.simple_turbulence_forcing(grid, 1.0, 2, -0.1),
)
print(jax.numpy.isfinite(step(v)[0].data).all(), os.environ["{VARIABLE}"])
"""
    assert python(code) == "True false"


def test_a_choice_of_ones_own_stays() -> None:
    code = f"import os, sda_kolmogorov.jax_compat; print(os.environ['{VARIABLE}'])"
    assert python(code, **{VARIABLE: "true"}) == "true"


def test_states_and_forcing_are_described_without_jax() -> None:
    code = """
import sys
from sda_kolmogorov.kolmogorov import KolmogorovFlow
flow = KolmogorovFlow()
flow.spec, flow.context()
print("jax" in sys.modules)
"""
    assert python(code) == "False"


@pytest.mark.parametrize("missing", ["jax", "jax_cfd.base"])
def test_what_is_missing_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "sda_kolmogorov.jax_compat")
    with pytest.raises(ImportError, match=rf"import of {missing}.*pip install jax") as caught:
        importlib.import_module("sda_kolmogorov.jax_compat")
    assert isinstance(caught.value, PluginError)  # shown without a traceback


def test_arrays_cross_unchanged() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    torch.testing.assert_close(from_jax(to_jax(x), x.device), x.detach(), rtol=0, atol=0)
    y = x.detach().double().transpose(0, 2)
    torch.testing.assert_close(from_jax(to_jax(y), y.device), y.float(), rtol=0, atol=0)


def test_keys_follow_the_generator() -> None:
    def draw(n: int, seed: int) -> torch.Tensor:
        from sda_kolmogorov.jax_compat import jax

        keys = random_keys(n, torch.Generator().manual_seed(seed))
        return from_jax(jax.vmap(jax.random.normal)(keys), torch.device("cpu"))

    assert torch.equal(draw(3, 0), draw(3, 0))
    assert len({*draw(3, 0).tolist(), *draw(3, 1).tolist()}) == 6
