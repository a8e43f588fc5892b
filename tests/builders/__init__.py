"""Models, data and clocks that tests are built from."""
