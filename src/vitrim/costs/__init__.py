"""What a model costs: parameters, multiply-adds, milliseconds, and budgets of them."""
