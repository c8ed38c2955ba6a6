"""The embedded toy model: a small world, ten languages that describe it, and the recipe that makes a model with SAEs from both.

`python -m lingact.microworld.build` makes everything in the folder `assets/microworld` from a seed. Other modules of lingact use these files only
through the configuration, like any other model, SAE, corpus or task.
"""

LANGUAGES = ("en", "zh", "ru", "es", "it", "id", "ca", "mr", "ml", "hi")
