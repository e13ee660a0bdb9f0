"""`Strongest`: the units of a channel that are strongest over all images, at most one of each image."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Hit:
    """The strongest unit of a channel in one image.

    Parameters
    ----------
    value
        The unit's activation.
    image
        The image's name.
    at
        The unit's place within the channel's plane; () where a channel is a single unit.
    """

    value: float
    image: str
    at: tuple[int, ...]


class Strongest:
    """For each channel, the hits with the largest values, in falling order.  No two are of one image.

    Parameters
    ----------
    channels
        The channels.
    top
        How many hits of each are kept.  Among equal hits the earlier image comes first.  Units that are
        not above 0 are no hits.
    """

    def __init__(self, channels: tuple[int, ...], top: int) -> None:
        self.channels, self.top = channels, top
        self.hits: dict[int, list[Hit]] = {channel: [] for channel in channels}

    def add(self, planes: NDArray[np.float32], images: list[str]) -> None:
        """Add the strongest unit of each channel in more images.

        Parameters
        ----------
        planes
            float32 (n, C, …): the activations of the layer, with all its channels.
        images
            The names of the n images.
        """
        flat = planes[:, list(self.channels)].reshape(len(planes), len(self.channels), -1)
        places = flat.argmax(axis=2)
        values = np.take_along_axis(flat, places[..., None], 2)[..., 0]
        for k, channel in enumerate(self.channels):
            hits = self.hits[channel]
            for n in range(len(planes)):
                value = float(values[n, k])
                if value <= 0 or (len(hits) == self.top and value <= hits[-1].value):
                    continue
                at = tuple(int(i) for i in np.unravel_index(places[n, k], planes.shape[2:]))
                hits.append(Hit(value, images[n], at))
                hits.sort(key=lambda hit: -hit.value)  # stable: an earlier image stays in front
                del hits[self.top :]

    def to_dict(self) -> dict[str, Any]:
        """The hits in JSON's types."""
        return {str(channel): [asdict(hit) for hit in hits] for channel, hits in self.hits.items()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any], top: int) -> Strongest:
        """The hits from the result of `to_dict`."""
        made = cls(tuple(map(int, saved)), top)
        for channel, hits in saved.items():
            made.hits[int(channel)] = [
                Hit(float(hit["value"]), str(hit["image"]), tuple(hit["at"])) for hit in hits
            ]
        return made
