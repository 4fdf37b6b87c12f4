"""The same two networks in PyTorch, trained in the way of its DCGAN tutorial: two optimizers, a DataLoader."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from training.model.networks import NEAREST, SLOPE


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


class Discriminator(nn.Module):
    """Images [N, 3, S, S] -> logits [N]."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *channels[:-1]), channels, strict=True):
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Sequential(
            nn.Conv2d(channels[-1] + 1, channels[-1], 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Flatten(),
            nn.Linear(16 * channels[-1], 1),
        )

    def forward(self, images):
        """Return the logits of images."""
        x = self.layers(images)
        spread = (x.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        return self.last(torch.cat([x, spread.expand(len(x), 1, *x.shape[2:])], dim=1)).flatten()


def fit(config, pixels, on_batch: Callable[[], bool]) -> None:
    """Train on `pixels` uint8[n, S, S, 3] until `on_batch`, called after each batch, returns False."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = Generator(config.latent_dim, config.generator_channels).to(device)
    discriminator = Discriminator(config.discriminator_channels).to(device)
    photos = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(photos), config.batch_size, shuffle=True, drop_last=True
    )
    loss = nn.BCEWithLogitsLoss()
    betas = (config.beta_1, 0.999)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), config.learning_rate, betas)
    g_optimizer = torch.optim.Adam(generator.parameters(), config.learning_rate, betas)
    ones = torch.ones(config.batch_size, device=device)
    while True:
        for (batch,) in loader:
            real = batch.to(device).float() / 127.5 - 1.0
            d_optimizer.zero_grad()
            loss(discriminator(real), ones).backward()
            generated = generator(torch.randn(len(real), config.latent_dim, device=device))
            loss(discriminator(generated.detach()), 0 * ones).backward()
            d_optimizer.step()
            g_optimizer.zero_grad()
            loss(discriminator(generated), ones).backward()
            g_optimizer.step()
            if not on_batch():
                return
