"""The generator and the projected discriminator of the first stage in PyTorch."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from training.model.backbone import EPSILON, REPEATS, STRIDES, load_weights
from training.model.networks import NEAREST, SLOPE

# As in training.model.gan.build_projected.
INPUT_SIZE, TAPS, WIDTHS, WIDEST = 64, (1, 2, 3, 5), (64, 64, 64, 128), 128


class UpsampleConv(nn.Module):
    """Upsampling and a 3x3 convolution as one transposed convolution, as in training.model.networks."""

    def __init__(self, channels: int, filters: int, *, smooth: bool) -> None:
        super().__init__()
        self.register_buffer("upsampling", torch.tensor(NEAREST))
        self.kernel = nn.Parameter(torch.empty(channels, filters, 3, 3))
        nn.init.xavier_uniform_(self.kernel)
        self.smooth = smooth

    def forward(self, x):
        """Return [N, filters, 2H, 2W] for [N, C, H, W]."""
        kernel = torch.einsum("ya,xb,ioab->ioyx", self.upsampling, self.upsampling, self.kernel)
        if not self.smooth:
            return functional.conv_transpose2d(x, kernel, stride=2, padding=1)
        x = functional.conv_transpose2d(x, kernel, stride=2)
        return functional.avg_pool2d(functional.avg_pool2d(x, 2, stride=1), 2, stride=1)


class Generator(nn.Module):
    """Latents [N, latent_dim] -> images [N, 3, S, S] in [-1, 1]."""

    def __init__(self, latent_dim: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.dense = nn.Linear(latent_dim, 16 * channels[0], bias=False)
        layers: list[nn.Module] = [nn.BatchNorm2d(channels[0]), nn.LeakyReLU(SLOPE)]
        for level, (before, width) in enumerate(pairwise(channels), start=2):
            layers += [
                UpsampleConv(before, width, smooth=level == len(channels)),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 3, 3, padding=1), nn.Tanh())

    def forward(self, latents):
        """Return the images of latents."""
        x = self.dense(functional.normalize(latents) * latents.shape[1] ** 0.5)
        return self.layers(x.reshape(len(x), -1, 4, 4))


def frozen_conv(weights, convolution: str, normalisation: str, stride: int = 1) -> nn.Conv2d:
    """Return a convolution of EfficientNet-Lite1 with its batch normalisation folded in.

    Kernels are flipped: on a flipped image, PyTorch's symmetric padding is TensorFlow's "same".
    """
    scale = weights[f"{normalisation}.weight"] / np.sqrt(weights[f"{normalisation}.running_var"] + EPSILON)
    kernel = (weights[f"{convolution}.weight"] * scale[:, None, None, None])[:, :, ::-1, ::-1].copy()
    filters, channels, size, _ = kernel.shape
    groups = filters if "depthwise" in convolution else 1
    layer = nn.Conv2d(groups * channels, filters, size, stride, size // 2, groups=groups).requires_grad_(False)
    layer.weight.copy_(torch.tensor(kernel))
    layer.bias.copy_(torch.tensor(weights[f"{normalisation}.bias"] - weights[f"{normalisation}.running_mean"] * scale))
    return layer


class Block(nn.Module):
    """One inverted residual block."""

    def __init__(self, weights, name: str, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if f"{name}._expand_conv.weight" in weights:
            layers += [frozen_conv(weights, f"{name}._expand_conv", f"{name}._bn0"), nn.ReLU6()]
        layers += [frozen_conv(weights, f"{name}._depthwise_conv", f"{name}._bn1", stride), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, frozen_conv(weights, f"{name}._project_conv", f"{name}._bn2"))
        self.is_residual = stride == 1 and layers[0].in_channels == self.layers[-1].out_channels

    def forward(self, x):
        """Return [N, filters, H/stride, W/stride] for [N, C, H, W]."""
        y = self.layers(x)
        return x + y if self.is_residual else y


def build_backbone() -> nn.ModuleList:
    """Return the stem with the first group, then groups between TAPS."""
    weights, block, parts = load_weights("lite1"), 0, nn.ModuleList()
    layers: list[nn.Module] = [frozen_conv(weights, "_conv_stem", "_bn0", 2), nn.ReLU6()]
    for group, (stride, repeats) in enumerate(zip(STRIDES[: TAPS[-1]], REPEATS["lite1"], strict=False), start=1):
        for repeat in range(repeats):
            layers.append(Block(weights, f"_blocks.{block}", stride if repeat == 0 else 1))
            block += 1
        if group in TAPS:
            parts.append(nn.Sequential(*layers))
            layers = []
    return parts


def build_head(size: int, channels: int) -> nn.Sequential:
    """Return a head: features to logits, 5x5 or (size 4) 1x1."""
    if size > 8:
        widths = [channels, *(min(64 << level, WIDEST) for level in range(int(math.log2(size // 8))))]
        kernel, stride = 4, 2
    else:
        widths, kernel, stride = [channels, WIDEST], 3, 1
    layers: list[nn.Module] = []
    for before, width in pairwise(widths):
        convolution = nn.Conv2d(before, width, kernel, stride, 1, bias=False)
        layers += [spectral_norm(convolution), nn.BatchNorm2d(width, eps=1e-3), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(widths[-1], 1, 4)))


class Discriminator(nn.Module):
    """Maps images [N, 3, S, S] in [-1, 1] to each head's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = build_backbone()
        sources = [part[-1].layers[-1].out_channels for part in self.backbone]
        sides = [INPUT_SIZE >> level for level in range(1, len(TAPS) + 1)]
        self.projections = nn.ParameterList(map(random_1x1, sources, WIDTHS))
        self.mixings = nn.ParameterList(map(random_1x1, WIDTHS[1:], WIDTHS))
        self.means = nn.ParameterList(fixed(torch.zeros(1, width, 1, 1)) for width in WIDTHS)
        self.deviations = nn.ParameterList(fixed(torch.ones(())) for _ in WIDTHS)
        self.heads = nn.ModuleList(map(build_head, sides, WIDTHS))

    def forward(self, images):
        """Return the logits of images, which count as flipped."""
        x, mixed = images * (127.5 / 128.0) + 0.5 / 128.0, []
        for part, projection in zip(self.backbone, self.projections, strict=True):
            x = part(x)
            mixed.append(functional.conv2d(x, projection))
        for i in reversed(range(len(mixed) - 1)):
            coarse = functional.conv2d(mixed[i + 1], self.mixings[i])
            coarse = functional.interpolate(coarse, mixed[i].shape[2:], mode="bilinear")
            mixed[i] = (mixed[i] + coarse) / math.sqrt(2.0)
        parts = zip(mixed, self.means, self.deviations, self.heads, strict=True)
        return [head((features - mean) / deviation) for features, mean, deviation, head in parts]


def fixed(tensor) -> nn.Parameter:
    """Return a parameter that is not trained."""
    return nn.Parameter(tensor, requires_grad=False)


def random_1x1(inputs: int, outputs: int) -> nn.Parameter:
    """Return a fixed kernel [outputs, inputs, 1, 1] of N(0, 1/inputs)."""
    return fixed(torch.randn(outputs, inputs, 1, 1) / math.sqrt(inputs))


def fit(config, pixels, after_batch: Callable[[], bool]) -> None:
    """Train on `pixels` uint8[n, S, S, 3] until `after_batch` returns False."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = Generator(config.latent_dim, config.generator_channels).to(device, memory_format=torch.channels_last)
    discriminator = Discriminator().to(device, memory_format=torch.channels_last)
    photos = torch.tensor(pixels).permute(0, 3, 1, 2)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(photos), config.batch_size, shuffle=True, drop_last=True
    )
    networks = [[p for p in network.parameters() if p.requires_grad] for network in (generator, discriminator)]
    betas = (config.beta_1, config.beta_2)
    optimizers = [torch.optim.Adam(weights, config.learning_rate, betas, fused=True) for weights in networks]
    while True:
        for (batch,) in loader:
            real = batch.to(device, torch.float32, memory_format=torch.channels_last) / 127.5 - 1.0
            generated = generator(torch.randn(len(real), config.latent_dim, device=device))
            real_logits, generated_logits = discriminator(real), discriminator(generated)
            for_generator = -sum(logits.mean() for logits in generated_logits) / len(WIDTHS)
            for_discriminator = sum(
                functional.relu(1.0 - of_real).mean() + functional.relu(1.0 + of_generated).mean()
                for of_real, of_generated in zip(real_logits, generated_logits, strict=True)
            ) / len(WIDTHS)
            gradients = [
                torch.autograd.grad(for_generator, networks[0], retain_graph=True),
                torch.autograd.grad(for_discriminator, networks[1]),
            ]
            for optimizer, weights, values in zip(optimizers, networks, gradients, strict=True):
                for weight, gradient in zip(weights, values, strict=True):
                    weight.grad = gradient
                optimizer.step()
            if not after_batch():
                return
