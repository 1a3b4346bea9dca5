"""Requests a second and latency of serving, ours and the peers': servers on one core, the load on another."""
