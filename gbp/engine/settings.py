"""`Settings`: the arguments of `Explainer` that say how plans are made and run."""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import at_least_one
from ..devices import Device, device_named
from ..errors import InputError
from ..graph.op import check_algorithm
from ..kernels.parallel.threads import thread_count

#: Values of the argument `activations`.
ACTIVATIONS = ("gradient", "clamp")


@dataclass(frozen=True)
class Settings:
    """The arguments, checked; `Explainer` describes them.

    Parameters
    ----------
    device
        Where plans run.
    threads
        How many threads a kernel may use.
    memory
        Bytes that a slice of a batch may take; None for the device's default.
    algorithm
        How convolutions are computed.
    clamp
        Whether `activations` is "clamp".
    tf32
        Whether convolutions multiply in TF32.
    cache
        Whether plans are kept on this machine; never those of a card.
    """

    device: Device
    threads: int
    memory: int | None
    algorithm: str
    clamp: bool
    tf32: bool
    cache: bool

    @classmethod
    def checked(
        cls,
        device: str,
        threads: int | None,
        memory: int | None,
        algorithm: str,
        activations: str,
        tf32: bool,
        cache: bool,
    ) -> Settings:
        """The settings for these arguments of `Explainer`.  Raises InputError."""
        check_algorithm(algorithm)
        if activations not in ACTIVATIONS:
            raise InputError(f"activations is {activations!r}.", supported=", ".join(ACTIVATIONS))
        found = device_named(device)
        if not found.is_host and algorithm != "auto":
            raise InputError(f"algorithm is {algorithm!r} on {device!r}.", supported="'auto'")
        if tf32 and not found.has_tf32:
            raise InputError(
                f"tf32 is {tf32!r} on {device!r}.",
                supported="a card of compute capability 8.0 and up",
                hint="Leave it out to compute in float32.",
            )
        return cls(
            found,
            thread_count(threads),
            at_least_one("memory", memory),
            algorithm,
            clamp=activations == "clamp",
            tf32=bool(tf32),
            cache=bool(cache) and found.is_host,
        )
