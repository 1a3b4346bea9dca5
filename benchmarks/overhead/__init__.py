"""What `modelkeep apply` costs over a plain script doing the same reads, fits and evaluation."""
