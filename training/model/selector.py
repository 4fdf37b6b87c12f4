"""ringo-latent/2: the latent of a seed, chosen by a selector among several candidates.

Some regions of the latent space give broken images. A small network, the selector, scores latents, and each seed takes
the candidate with the highest score (Azadi et al. 2019, "Discriminator Rejection Sampling"; Issenhuth et al. 2022,
"Latent reweighting, an almost free improvement for GANs").

Number `index` of candidate `c` is number `c * latent_dim + index` of ringo-latent/1, so candidate 0 is the latent of a
model without selector. All numbers are rounded to multiples of STEP. So each product and sum is exact in float64, and
every processor, library and batch size chooses the same candidate.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.model.latents import sample_latents
from training.records import UNREADABLE, open_atomically

NAME = "ringo-latent/2"
CANDIDATES = 8  # per seed
STEP = 2.0**-10

Array = Any  # of NumPy or TensorFlow


@dataclass(frozen=True)
class Selector:
    """A network from latents to scores: dense layers with ReLU between them."""

    layers: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]  # kernels [in, out] and biases [out]

    @classmethod
    def from_weights(cls, weights: list[NDArray[np.float32]]) -> "Selector":
        """Return the selector of kernels and biases in turns, rounded to multiples of STEP."""
        rounded = [_round_to_step(array.astype(np.float64), np.round) for array in weights]
        return cls(tuple(zip(rounded[::2], rounded[1::2], strict=True)))

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that tell selectors apart."""
        return hashlib.sha256(b"".join(array.tobytes() for layer in self.layers for array in layer)).hexdigest()[:8]

    def score(self, latents: Array, round_half_even: Callable[[Array], Array]) -> Array:
        """Return the scores float64[N, 1] of `latents` float64[N, latent_dim], arrays of any library."""
        x = latents
        for number, (kernel, bias) in enumerate(self.layers):
            x = x if number == 0 else (x + abs(x)) / 2  # ReLU
            x = _round_to_step(x, round_half_even) @ kernel + bias
        return x

    def choose(self, candidates: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the number int[N] of the first best of `candidates` float32[N, C, latent_dim]."""
        n, count, latent_dim = candidates.shape
        scores = self.score(candidates.reshape(-1, latent_dim).astype(np.float64), np.round)
        return np.asarray(scores.reshape(n, count).argmax(axis=1))

    def sample_latents(self, seeds: NDArray[np.int64], latent_dim: int) -> NDArray[np.float32]:
        """Return the chosen latents float32[N, latent_dim] of `seeds` int64[N]."""
        candidates = sample_latents(seeds, CANDIDATES * latent_dim).reshape(-1, CANDIDATES, latent_dim)
        return candidates[np.arange(len(seeds)), self.choose(candidates)]


def _round_to_step(x: Array, round_half_even: Callable[[Array], Array]) -> Array:
    return round_half_even(x / STEP) * STEP


def save_selector(selector: Selector, path: Path, *, generator: str) -> None:
    """Write `selector` of the generator with the digest `generator`. Raises OSError."""
    arrays: dict[str, Any] = {
        f"{i:03d}": array for i, array in enumerate(array for layer in selector.layers for array in layer)
    }
    with open_atomically(path) as file:
        np.savez(file, generator=generator, **arrays)


def load_selector(path: Path, *, latent_dim: int, generator: str) -> Selector | None:
    """Return the selector in `path`, or None without a file.

    One of another generator is not used, and a line says so.
    Raises TrainingError if the file is damaged or of another `latent_dim`.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.lib.npyio.NpzFile(stream) as file:
            arrays = [file[name] for name in sorted(file.files) if name != "generator"]
            is_current = str(file["generator"]) == generator
        selector = Selector.from_weights(arrays)
        selector.sample_latents(np.zeros(1, np.int64), latent_dim)
    except UNREADABLE as error:
        raise TrainingError(
            f"The selector {path} cannot be read ({error}); delete the file, then run `select` again."
        ) from error
    if not is_current:
        print(f"{path} belongs to another checkpoint and is not used; run `select` for this one.")
    return selector if is_current else None
