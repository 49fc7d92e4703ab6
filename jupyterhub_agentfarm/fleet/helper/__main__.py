"""Lets `python -I <this folder>` and the one file that is made of it run the same code."""

import importlib
import os
import sys

here = os.path.dirname(os.path.abspath(__file__))
if os.path.isdir(here):  # the folder: its modules are reached as a package, from the folder above
    sys.path.remove(here)
    sys.path.append(os.path.dirname(here))
importlib.import_module("helper.serve").main()
