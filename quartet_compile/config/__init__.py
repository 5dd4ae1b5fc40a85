"""What a user writes, as data: recipes, rules, options, marks, names."""
