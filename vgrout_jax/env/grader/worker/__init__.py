"""What runs inside the sandbox: a server that forks one child per stage of an answer.

Nothing here imports the rest of the project, and nothing here ever holds an expected value.
"""
