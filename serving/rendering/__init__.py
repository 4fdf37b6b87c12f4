"""From a query to the bytes of its image."""
