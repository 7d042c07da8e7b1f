"""`python -m iq` is `iq`."""

from iq.cli import main

if __name__ == "__main__":
    main()
