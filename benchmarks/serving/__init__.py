"""Requests a second and latency of serving, ours and the peers', each with a server on one core and the load on another."""
