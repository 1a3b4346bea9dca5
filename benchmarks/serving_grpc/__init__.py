"""gRPC: our server, and what the Python gRPC stack gives, side by side."""
