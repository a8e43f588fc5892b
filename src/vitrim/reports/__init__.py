"""What a run reports: the numbers, and the pages and tables that are made from them."""
