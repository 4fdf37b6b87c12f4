"""Limits, security and ports, shared by all servers."""
