"""From a seed to an image: gateway, batch server, model server."""

__version__ = "0.1.0"  # that of pyproject.toml
