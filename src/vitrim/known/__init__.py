"""What vitrim knows by name: models and data sets. Plain data; no library is imported."""
