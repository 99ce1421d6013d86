"""Networks of any framework: in goes a user's network, out comes its row of the table.

Each module holds one `Framework`: how its networks are run with a visit around each sub-module's
call, and what depends on the framework. None is imported before a network of its kind is given.
"""
