"""Modelkeep keeps models good for life."""

__version__ = "0.1.0"
