"""The processes of builds.py, each of which runs under the Python that it is given."""
