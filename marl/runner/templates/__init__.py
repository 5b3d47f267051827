"""What `marl init` writes: whole programs that run, are linted and type-checked as they stand here. Names in them
(`my_world`, `MyWorld`, ...) are replaced by the user's."""
