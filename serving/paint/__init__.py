"""The batch client, and `verify`."""
