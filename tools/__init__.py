"""Commands for those who work on vitrim."""
