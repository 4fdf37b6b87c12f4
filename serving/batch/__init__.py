"""The gRPC batch server: many seeds in, a stream of images out."""
