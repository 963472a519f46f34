"""How the options of a recipe's `model` section are carried out, one file each.

Each says before weights are loaded what cannot work (``known`` from files and installed packages alone, ``check`` with
torch), carries it out on the loaded pipeline, and tries for `cachedit doctor` what works on this machine.
"""
