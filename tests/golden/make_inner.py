"""Gradients of and at inner tensors of whole networks, in float64 by torch autograd.

    python tests/golden/make_inner.py                       writes inner.npz, which the tests read
    python tests/golden/make_inner.py --check [NAME ...]    compares gbp at every tensor of these networks
    python tests/golden/make_inner.py --part 1/8 [NAME ...] at every eighth, which takes less memory

Needs torch, as `make_golden.py`, whose networks, pictures and rules these are; comparing needs gbp as well.

For some tensors t of each network `inner.npz` holds, under `<network>/<tensor>/`:

    value                  a digest of t
    <rule>/at              a digest of the gradient of the explained logit with respect to t
    <rule>/of              a digest of the gradient of Σ seed · t with respect to the picture; see `seed_of`
    <rule>/at_yardstick    as `<rule>_yardstick` in `make_golden.py`, for that gradient
    <rule>/of_yardstick    the same for the other gradient

`inner_digest.py` says what a digest is.  The gradient at a rectifier's output is that before its gate.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_golden import NOISE, RULES, Network, Noise, Rule, gaussian, relative_error
from torch import Tensor

GOLDEN = Path(__file__).resolve().parent
sys.path[:0] = [str(GOLDEN.parents[1] / "models"), str(GOLDEN.parent)]
import zoo  # noqa: E402
from inner_digest import digest, seed_of  # noqa: E402

#: Five architectures: plain, with branches, residual, shuffled, dense.
NETWORKS = ("squeezenet", "inception_v1", "resnet50", "shufflenet", "densenet121")
#: Tensors of each that are stored, evenly over its depth.
STORED = 4
#: Runs under noise that tell what rounding may do.
TRIALS = 3
#: Below this error nothing is a matter of rounding.
FLOOR, MARGIN = 1e-5, 4


class Inner(Network):
    """A network whose tensors stay."""

    def tensors(self, x: Tensor, rule: Rule, noise: Noise | None = None) -> dict[str, Tensor]:
        """Every tensor by name, those of the picture and the logits included, as a graph of autograd."""
        self.kept: dict[str, Tensor] = {}
        outer = self

        class Keeping(dict[str, Tensor]):
            def __setitem__(self, name: str, value: Tensor) -> None:
                super().__setitem__(name, value)
                outer.kept[name] = value

        picture = x.detach().requires_grad_()
        self.kept[self._graph.input[0].name] = picture
        self.output = self._run(picture, rule, noise, Keeping)
        return self.kept


class Truth:
    """One network and picture under one rule: the gradients, and what rounding may do to them."""

    def __init__(self, network: Inner, x: Tensor, rule: str, noise: Noise | None = None) -> None:
        self.kept = network.tensors(x, RULES[rule], noise)
        self.picture, self.output = next(iter(self.kept.values())), network.output
        self._at: dict[int, dict[str, Tensor]] = {}

    def at(self, target: int) -> dict[str, Tensor]:
        """The gradient of a logit at every tensor that it depends on."""
        if target in self._at:
            return self._at[target]
        moved = {name: tensor for name, tensor in self.kept.items() if tensor.requires_grad}
        found = torch.autograd.grad(
            self.output.flatten()[target], list(moved.values()), retain_graph=True, allow_unused=True
        )
        self._at[target] = {name: g for name, g in zip(moved, found, strict=True) if g is not None}
        return self._at[target]

    def of(self, name: str) -> Tensor:
        """The gradient of Σ seed · tensor with respect to the picture."""
        tensor = self.kept[name]
        seed = torch.from_numpy(seed_of(tuple(tensor.shape))).double()
        (found,) = torch.autograd.grad(tensor, self.picture, seed, retain_graph=True)
        return found


def made(network: str) -> tuple[Any, Inner, Tensor, int]:
    """The model, its float64 network, the picture and the explained class."""
    model, x = zoo.build(network, 0), torch.from_numpy(zoo.picture(0)).double()
    exact = Inner(model, torch.float64)
    return model, exact, x, int(exact.logits(x).argmax())


def trials(network: Inner, x: Tensor, rule: str) -> Iterator[Truth]:
    return (Truth(network, x, rule, gaussian(trial)) for trial in range(TRIALS))


def store() -> None:
    """Write inner.npz."""
    entries: dict[str, Any] = {}
    for name in NETWORKS:
        _, network, x, target = made(name)
        for rule in RULES:
            truth = Truth(network, x, rule)
            at = truth.at(target)
            inner = list(at)[1:-1]
            chosen = [inner[i] for i in np.linspace(0, len(inner) - 1, STORED).astype(int)]
            of = {t: truth.of(t) for t in chosen}
            off: dict[str, list[float]] = {}
            for other in trials(network, x, rule):
                others = other.at(target)
                for t in chosen:
                    off.setdefault(f"{t}/{rule}/at", []).append(relative_error(others[t], at[t]))
                    off.setdefault(f"{t}/{rule}/of", []).append(relative_error(other.of(t), of[t]))
            for t in chosen:
                entries[f"{name}/{t}/value"] = digest(truth.kept[t].detach().numpy())
                entries[f"{name}/{t}/{rule}/at"] = digest(at[t].numpy())
                entries[f"{name}/{t}/{rule}/of"] = digest(of[t].numpy())
            entries |= {f"{name}/{key}_yardstick": max(errors) for key, errors in off.items()}
        print(name, flush=True)
    np.savez_compressed(GOLDEN / "inner.npz", **entries)


def check(names: list[str], part: tuple[int, int] = (1, 1)) -> bool:
    """Compare gbp with the truth at every tensor, or at part i of n; prints what is off by too much."""
    from gbp import Explainer

    well = True
    for name in names:
        model, network, x, target = made(name)
        explainer = Explainer(model)
        kept = [tensor.name for tensor in explainer.tensors][:-1][part[0] - 1 :: part[1]]
        seed = np.eye(1000, dtype=np.float32)[[target]]
        worst, count, rounding = {"value": 0.0, "at": 0.0, "of": 0.0}, 0, 0
        with explainer.run(x.numpy().astype(np.float32), kept) as run:
            for rule in RULES:
                truth = Truth(network, x, rule)
                at = truth.at(target)
                others: list[Truth] = []
                for tensor in kept:
                    value = truth.kept[tensor].detach()
                    pairs = {
                        "value": (run.value(tensor), value),
                        "at": (run.vjp(seed, rule, wrt=tensor), at[tensor]),
                        "of": (run.vjp(seed_of(tuple(value.shape)), rule, of=tensor), truth.of(tensor)),
                    }
                    for what, (got, exact) in pairs.items():
                        error = relative_error(torch.from_numpy(got), exact)
                        count += 1
                        if error > FLOOR:  # may be a gate that rounding tips
                            rounding += 1
                            others = others or list(trials(network, x, rule))
                            again = [
                                o.kept[tensor].detach()
                                if what == "value"
                                else o.at(target)[tensor]
                                if what == "at"
                                else o.of(tensor)
                                for o in others
                            ]
                            allowed = MARGIN * max(relative_error(o, exact) for o in again)
                            if error > allowed:
                                well = False
                                print(f"{name} {tensor} {rule} {what}: {error:.1e}, allowed {allowed:.1e}")
                            continue
                        worst[what] = max(worst[what], error)
        figures = ", ".join(f"{what} {error:.1e}" for what, error in worst.items())
        print(
            f"{name}: {len(kept)} tensors, {count} comparisons, worst {figures}; {rounding} above {FLOOR:g}, "
            f"each within {MARGIN} times what noise of {NOISE:g} does"
            if well
            else f"{name}: not within",
            flush=True,
        )
    return well


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--check"]:
        sys.exit(not check(sys.argv[2:] or list(NETWORKS)))
    if sys.argv[1:2] == ["--part"]:
        first, count = map(int, sys.argv[2].split("/"))
        sys.exit(not check(sys.argv[3:] or list(NETWORKS), (first, count)))
    store()
