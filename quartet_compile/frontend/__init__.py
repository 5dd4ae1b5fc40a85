"""How a user opts in: `quartet`, modules compiled in place, `set_recipe`, and the watch over what runs eagerly."""
