"""How well laws predict runs that they were not fitted to."""
