"""`python -m vitrim` and `torchrun -m vitrim`."""

from vitrim.cli import main

if __name__ == "__main__":
    main()
