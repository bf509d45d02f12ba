"""The documentation site: pages made from the code, Sphinx over the repository, and a check of every link."""
