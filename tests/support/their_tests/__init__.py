"""Run the tests of packages that fsqueue plugs into, with ours in the place of their classes."""
