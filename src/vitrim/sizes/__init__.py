"""Several sizes of one model from one run, and the search of the smallest size within a drop of accuracy."""
