"""`python -m fullquant` is the command `fullquant`, for environments whose scripts are not on PATH."""

from fullquant.cli import main

if __name__ == "__main__":
    main()
