"""What vitrim does when it is killed, when its files are damaged, and when it is given what it cannot use."""
