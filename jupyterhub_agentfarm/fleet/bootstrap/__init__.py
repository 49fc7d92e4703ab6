"""How a machine becomes a microserver, is brought to another release, and is let go: from an operator's shell, by their own right to sign in.

`login.py` signs in and runs `machine.py` there; `environment.py` packs what servers need, for a machine without a network; `steps.py` has the order.
"""
