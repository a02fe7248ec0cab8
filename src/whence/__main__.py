"""``python -m whence``: the command line where its script is not on the path."""

from whence.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
