"""From a seed to an image: gateway, batch server, model server."""
