"""``python -m deploykit ...`` is ``deploykit ...``."""

from deploykit.commands import main

if __name__ == "__main__":
    main()
