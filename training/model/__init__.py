"""The GAN: networks, losses, training step and latents."""
