"""`sam local invoke` of every function, in containers, against the local stack."""
