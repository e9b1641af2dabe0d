"""``python cli.py ...`` is ``deploykit ...``, for a checkout that is not installed."""

from deploykit.cli import main

if __name__ == "__main__":
    main()
