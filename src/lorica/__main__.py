"""`python -m lorica`, where the `lorica` script is not on the path."""

from lorica.cli import main

if __name__ == "__main__":
    main()
