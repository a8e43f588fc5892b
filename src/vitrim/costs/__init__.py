"""What a model costs in parameters, multiply-adds and milliseconds, and limits on these costs."""
