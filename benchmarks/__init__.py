"""What the project measures: us and the peer side by side, ratios out."""
