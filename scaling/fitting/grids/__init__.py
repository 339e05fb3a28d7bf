"""Laws through the optima of single (N, T) grids, as the paper fits them (``--method grids``)."""
