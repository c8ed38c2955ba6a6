"""The embedded toy model: a small world, ten languages that describe it, and the recipe that makes a model with SAEs from both.

Everything in the folder `assets/microworld` is made by `python -m lingact.microworld.build` from a seed. Other modules of
lingact see those files only through the same configuration that points at any other model, SAE, corpus or task.
"""

LANGUAGES = ("en", "zh", "ru", "es", "it", "id", "ca", "mr", "ml", "hi")
