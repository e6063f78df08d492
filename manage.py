#!/usr/bin/env python3
"""Django's command line for this node."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "arklattice.settings")
    try:
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
    except ImportError:
        sys.exit("Django is not installed for this Python; run `make run`, or use .venv/bin/python manage.py")
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        # A setting of the operator's: one line and "wrong usage", like a wrong option.
        sys.stderr.write(f"wrong setting: {str(error).splitlines()[0]}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
