"""Lets `python -I <this folder>` and the one file that is made of it run the same code."""

import importlib
import os
import sys

RELEASE = ""  # in the file: which folder beside it may have the modules unpacked. There Python keeps them compiled; in the file it cannot
here = os.path.dirname(os.path.abspath(__file__))
unpacked = os.path.join(os.path.dirname(here), "helpers", RELEASE)
if os.path.isdir(here):  # the folder: its modules are reached as a package, from the folder above
    sys.path.remove(here)
    sys.path.append(os.path.dirname(here))
elif RELEASE and os.path.isdir(unpacked):
    sys.path.insert(0, unpacked)
importlib.import_module("helper.serve").main()
