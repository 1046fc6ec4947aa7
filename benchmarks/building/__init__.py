"""The processes of builds.py, each of which imports the fsqueue of its build."""
