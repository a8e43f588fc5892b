"""Model folders, and how other libraries load them."""
