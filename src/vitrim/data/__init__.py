"""Images: finding, reading, preparing and batching them."""
