"""``python cli.py ...`` is ``deploykit ...``, for a checkout that is not installed."""

from deploykit.commands import main

if __name__ == "__main__":
    main()
