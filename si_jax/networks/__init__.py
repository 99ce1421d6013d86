"""Networks of any framework: a module that holds a `Framework` is imported once it is needed."""
