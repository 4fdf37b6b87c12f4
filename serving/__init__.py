"""Turn a seed into a picture: the gateway, and the embedded model server behind it."""
