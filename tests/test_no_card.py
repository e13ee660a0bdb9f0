"""Without CUDA: nothing of it is imported, and who asks for it is told what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gbp import Explainer, InputError
from gbp.cli.main import main

MODELS = Path(__file__).parent.parent / "models"
DEMO, PICTURE = MODELS / "demo.onnx", MODELS / "demo.png"


def has_card() -> bool:
    from numba import cuda

    return bool(cuda.is_available())


def run(code: str) -> str:
    """What Python prints that starts anew, without the simulator."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_nothing_of_cuda_is_imported_on_the_cpu() -> None:
    code = f"""
import sys, gbp
gbp.Explainer({str(DEMO)!r}).explain({str(PICTURE)!r})
print([name for name in sys.modules if "cuda" in name and not name.startswith("_") and name != "cuda"])
print([name for name in sys.modules if name == "gbp.devices.cuda"])
"""
    assert run(code).split() == ["[]", "[]"]


@pytest.mark.skipif(has_card(), reason="there is a card, or the simulator is on")
def test_the_command_line_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(tmp_path.iterdir())
    code = main(["explain", str(DEMO), str(PICTURE), "--device", "cuda", "-o", str(tmp_path / "x.png")])
    error = capsys.readouterr().err
    assert code == 2
    assert "there is no CUDA here" in error
    assert "gbp-explain[cuda12]" in error
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "error", [AttributeError("module 'numpy' has no attribute 'row_stack'"), OSError("no")]
)
def test_whatever_fails_while_cuda_starts_is_an_error_of_gbp(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> None:
        raise error

    monkeypatch.setitem(sys.modules, "gbp.devices.cuda", SimpleNamespace(cuda_device=start))
    with pytest.raises(InputError, match=r"CUDA does not start: \w+Error: .*gbp-explain\[cuda12\]") as raised:
        Explainer(DEMO, device="cuda")
    assert str(error) in str(raised.value)


def test_a_module_of_cuda_that_cannot_be_imported_is_an_error_of_gbp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gbp.devices.cuda", None)
    with pytest.raises(InputError, match="CUDA does not start: ModuleNotFoundError"):
        Explainer(DEMO, device="cuda")


def test_tf32_is_for_cards() -> None:
    with pytest.raises(InputError, match="tf32 is True on 'cpu'"):
        Explainer(DEMO, tf32=True)


def test_other_devices_are_unknown() -> None:
    with pytest.raises(InputError, match="'cpu', 'cuda'"):
        Explainer(DEMO, device="tpu")
