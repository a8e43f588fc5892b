"""`python -m vitrim`, which is also what `torchrun -m vitrim` starts."""

from vitrim.cli import main

if __name__ == "__main__":
    main()
