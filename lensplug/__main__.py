"""`python -m lensplug`: the command line."""

from lensplug.app.command import main

if __name__ == "__main__":
    main()
