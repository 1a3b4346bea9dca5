"""Linear models learnt out of core and data-parallel."""
