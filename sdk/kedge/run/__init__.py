"""`kedge run` and `kedge init`: one recipe's whole way, and a recipe to begin with."""
