"""Pages for people: what is live, since when and why, drawn from the registry alone."""

from modelkeep.web.pages import routes

__all__ = ["routes"]
